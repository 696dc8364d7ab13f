"""The guest as a target: servers start, end, die, and restart on the same cgroup root."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.checks.check import Check, Need, Stage
from harness.checks.limits import CHECKS
from harness.drive.client import Client
from harness.drive.identities import IdentityStore
from harness.host.repository import ROOT
from harness.record.history import Cause, History, Interruption, Recorder, load
from harness.record.verdict import BrokenError, Finding, Verdict
from harness.run.check_runner import Options, Silent, run_checks
from harness.targets.guest import GuestTarget
from harness.targets.target import Variant
from harness.vm.guest import Guest, boot_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def target(guest: Guest, identities: IdentityStore) -> GuestTarget:
    return GuestTarget(guest, identities, ROOT)


def must_start(stage: Stage) -> None:
    with stage.client() as client:
        client.must_start("true")


def check_of(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)


def test_concurrent_servers_leave_no_job_and_no_cgroup(
    target: GuestTarget, identities: IdentityStore
) -> None:
    with target.launch() as one, target.launch(Variant(stop_grace_s=1)) as two:
        assert one.address != two.address
        assert one.cgroup_root != two.cgroup_root
        for server in (one, two):
            files = identities.files("admin")
            with Client(server.address, files, Recorder(), slow=True) as client:
                job_id = client.must_start("cat", ["/proc/self/cgroup"])
                assert Path(server.cgroup_root).name in client.output(job_id)
                client.must_start("sleep", ["8642"])
    left = target.guest.run("pgrep -xf 'sleep 8642'; ls /sys/fs/cgroup | grep ^jw-")
    assert left.stdout == ""
    assert one.wait_exit(0) == 0


def test_killed_server_has_died_and_a_new_one_starts_on_its_root(target: GuestTarget) -> None:
    with target.launch() as first:
        assert not first.has_died()
        target.guest.run(f"kill -KILL {first.pid}")
        assert first.wait_exit(30) == -signal.SIGKILL
        assert first.has_died()
        first.signal(signal.SIGTERM)  # has no effect
        with target.launch(cgroup_root=first.cgroup_root) as second:
            assert second.cgroup_root == first.cgroup_root


def test_server_that_ends_during_its_start_is_broken_and_shows_its_log(target: GuestTarget) -> None:
    with (
        pytest.raises(BrokenError, match=r"ended during its start with 2(?s:.*)No such option"),
        target.launch(flags=["--no-such-flag"]),
    ):
        pass


def test_paused_server_is_ended(target: GuestTarget) -> None:
    with target.launch() as server:
        server.signal(signal.SIGSTOP)
        assert server.wait_exit(1) is None
    assert server.wait_exit(0) == 0


def test_check_passes_in_the_guest(target: GuestTarget, tmp_path: Path) -> None:
    [result] = run_checks(target, [check_of("limits.defaults")], Options("1", tmp_path), Silent())
    assert result.verdict is Verdict.PASS, result.findings


def test_description_has_kernel_controllers_and_processor(target: GuestTarget) -> None:
    description = target.describe()
    kernel = target.guest.require("uname -r").strip()
    assert f"kernel Linux {kernel}, controllers cpuset cpu io memory" in description
    assert description.endswith("(TCG)" if target.emulated else "(KVM)")


def no_judge(history: History) -> Iterator[Finding]:
    raise AssertionError(history)


@pytest.mark.parametrize("end_requested", [False, True])
def test_guest_that_dies_during_a_check_is_broken_and_shows_its_console(
    identities: IdentityStore, tmp_path: Path, *, end_requested: bool
) -> None:
    with boot_guest("dying") as guest:
        guest.require("echo last words > /dev/ttyS0")

        def run(stage: Stage) -> None:
            with stage.client() as client:
                client.must_start("true")  # answered, so the server was reachable
                if end_requested:
                    stage.server.signal(signal.SIGTERM)
                guest.machine.process.kill()
                client.must_start("true")  # raises UnmetError, as if the server broke a promise

        check = Check("limits.dying", "It is so.", run, no_judge)
        after = Check("limits.after", "It is so.", must_start, no_judge, alone=True)
        doomed = GuestTarget(guest, identities, ROOT)
        known = dict.fromkeys(Need, "")
        results = run_checks(doomed, [check, after], Options("1", tmp_path), Silent(), known)
        with pytest.raises(BrokenError, match="died"):
            guest.run("true")
    for result in results:
        assert {finding.verdict for finding in result.findings} == {Verdict.BROKEN}
        # The kernel closes QEMU's sockets just before QEMU's exit is visible: then ssh "broke".
        assert re.search(r"guest dying-\w+ (died|broke)", result.decisive[0].got)
        assert "last words" in result.decisive[0].got
    interruptions = load(tmp_path / results[0].history).all(Interruption)
    [broken] = [each for each in interruptions if each.cause is Cause.PROMISE_BROKEN]
    assert "UNAVAILABLE" in broken.detail
