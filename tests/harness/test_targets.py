"""Targets: servers that are launched, paused and ended, and machines that are looked into."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest

from harness.checks.check import Need, Scale
from harness.drive.client import Client
from harness.drive.identities import IdentityStore, make_identities
from harness.drive.receiver import StreamPlan
from harness.record.history import Outcome, Recorder
from harness.record.verdict import BrokenError, UnsupportedError
from harness.run.capabilities import ask
from harness.targets.address import AddressTarget, JobHost
from harness.targets.local import OUR_COMMAND, LocalTarget
from harness.targets.target import OUR_FLAGS, Variant, flags_for

ORIGINAL = (
    "{python} -m tests.support.original_server --listen {listen} --ca {ca} --cert {cert} "
    "--key {key}"
)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def ours(identities: IdentityStore) -> LocalTarget:
    return LocalTarget(identities, f"{OUR_COMMAND} --no-limits")


def test_a_variant_becomes_flags_and_an_unknown_one_is_unsupported() -> None:
    variant = Variant(max_streams=3, keepalive_s=1.5)
    assert flags_for(variant, OUR_FLAGS) == [
        "--max-streams", "3", "--keepalive-time", "1.5s", "--keepalive-timeout", "1.5s",
    ]  # fmt: skip
    assert flags_for(Variant(), {}) == []
    with pytest.raises(UnsupportedError, match="--launch-flag max_streams="):
        flags_for(variant, {})


def test_every_setting_of_a_variant_has_a_flag_of_ours() -> None:
    assert set(OUR_FLAGS) == {each.name for each in dataclasses.fields(Variant)}


def test_a_launched_server_is_ended_with_its_context(ours: LocalTarget) -> None:
    with ours.launched() as server:
        assert not server.has_died()
        assert server.wait_exit(0) is None
    assert server.wait_exit(0) == 0
    assert not server.has_died()  # it was told to


def test_a_killed_server_was_asked_to_end_and_one_that_dies_has_died(ours: LocalTarget) -> None:
    with ours.launched() as server:
        server.signal(signal.SIGKILL)
        assert server.wait_exit(10) == -signal.SIGKILL
        assert not server.has_died()
    with (
        ours.launched() as server,
        Client(server.address, ours.identities.files("admin"), Recorder()) as client,
    ):
        client.start("sh", ["-c", f"kill -9 {server.pid}"])  # whose reply may be lost with it
        assert server.wait_exit(10) == -signal.SIGKILL
        assert server.has_died()


def test_a_paused_server_answers_nobody_and_an_unanswered_call_is_unknown(
    ours: LocalTarget,
) -> None:
    recorder = Recorder()
    with (
        ours.launched() as server,
        Client(server.address, ours.identities.files("admin"), recorder) as client,
    ):
        job_id = client.must_start("sleep", ["100"])
        client.timeout_s = 0.5
        server.signal(signal.SIGSTOP)
        assert server.pid
        os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # all threads
        call = client.query(job_id).call
        server.signal(signal.SIGCONT)
        assert call.outcome is Outcome.UNKNOWN
        client.timeout_s = 20
        assert client.must_query(job_id).status == "running"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sh -c 'echo wrong turn; exit 3'", "wrong turn"),
        ("/nonexistent/server", "ended at its start"),
    ],
)
def test_a_server_that_does_not_come_up_is_broken_and_its_words_are_shown(
    command: str, said: str, identities: IdentityStore
) -> None:
    with (
        pytest.raises(BrokenError, match=said),
        LocalTarget(identities, command, {}).launched(),
    ):
        pass


def test_a_launch_command_with_an_unknown_word_is_refused(identities: IdentityStore) -> None:
    target = LocalTarget(identities, "server {port}", {})
    with pytest.raises(UnsupportedError, match=r"\{listen\}, \{ca\}"), target.launched():
        pass


def test_capabilities_tell_ours_from_the_originals(
    ours: LocalTarget, identities: IdentityStore
) -> None:
    with ours.launched() as server:
        own = ask(ours, server, Scale.FULL)
        # The same server, of which nothing but its address is known.
        given = AddressTarget(server.address, identities)
        known = ask(given, server, Scale.FULL)
    assert own[Need.OFFSETS] == own[Need.LISTING] == own[Need.GRACE] == own[Need.LAUNCH] == ""
    assert known[Need.OFFSETS] == known[Need.HOST] == ""
    assert known[Need.LAUNCH]
    original = LocalTarget(identities, ORIGINAL, {})
    with original.launched() as server:
        theirs = ask(original, server, Scale.FULL)
    for need in (Need.OFFSETS, Need.LISTING, Need.GRACE, Need.LIMIT_FIELDS, Need.STREAM_CAP):
        assert need in theirs[need] or "a flag" in theirs[need]
    assert theirs[Need.PYTHON] == theirs[Need.LAUNCH] == ""


def test_a_servers_machine_is_seen_through_its_jobs(
    ours: LocalTarget, identities: IdentityStore
) -> None:
    with ours.launched() as server:
        host = JobHost(server.address, identities.files("admin"))
        done = host.run("echo seen; exit 3")
        assert (done.exit_code, done.stdout) == (3, "seen\n")
        assert host.run("kill -9 $$").exit_code == 128 + signal.SIGKILL


def test_a_receiver_can_be_cancelled_and_leaves_when_its_plan_says(ours: LocalTarget) -> None:
    recorder = Recorder()
    with (
        ours.launched() as server,
        Client(server.address, ours.identities.files("user"), recorder) as user,
        Client(server.address, ours.identities.files("admin"), recorder) as admin,
    ):
        job_id = admin.must_start(
            sys.executable,
            ["-u", "-c", "import time; print('x' * 99); time.sleep(99)"],
        )
        plan = StreamPlan(stop_after_bytes=10, keep_bytes=5)
        stream = user.stream(job_id, plan)
        assert (stream.code, stream.outcome) == ("CANCELLED", Outcome.OK)
        assert stream.text == "xxxxx"
        receiver = user.receiver(job_id)
        receiver.cancel()
        assert receiver.run().code == "CANCELLED"
        assert Path(f"/proc/{server.pid}").exists()
