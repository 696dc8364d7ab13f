"""Targets: launching, pausing and ending servers, access to hosts, and capabilities."""

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.checks.check import Need, Scale
from harness.drive.client import Client
from harness.drive.identities import IdentityStore, make_identities
from harness.drive.receiver import StreamPlan
from harness.host.clock import poll_until
from harness.record.history import Outcome, Recorder
from harness.record.verdict import BrokenError, UnsupportedError
from harness.run.capabilities import probe_capabilities
from harness.targets.address import AddressTarget, JobHost
from harness.targets.launching import (
    END_TIMEOUT_S,
    NEXT_END_TIMEOUT_S,
    LaunchingTarget,
    LaunchOptions,
)
from harness.targets.local import OUR_COMMAND, LocalHost, LocalTarget
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


def test_variant_becomes_flags_and_an_unknown_setting_is_unsupported() -> None:
    variant = Variant(max_streams=3, keepalive_s=1.5)
    assert flags_for(variant, OUR_FLAGS) == [
        "--max-streams", "3", "--keepalive-time", "1.5s", "--keepalive-timeout", "1.5s",
    ]  # fmt: skip
    assert flags_for(Variant(), {}) == []
    with pytest.raises(UnsupportedError, match="--launch-flag max_streams="):
        flags_for(variant, {})


def test_our_server_has_a_flag_for_every_setting() -> None:
    assert set(OUR_FLAGS) == {each.name for each in dataclasses.fields(Variant)}


def test_launched_server_ends_with_its_context(ours: LocalTarget) -> None:
    with ours.launch() as server:
        assert not server.has_died()
        assert server.wait_exit(0) is None
    assert server.wait_exit(0) == 0
    assert not server.has_died()  # the harness ended it


class Stubborn:
    """A server that ignores SIGTERM. It is its own process."""

    address = "127.0.0.1:1"
    pid = 1

    def __init__(self) -> None:
        self.killed = False
        self.waited_s: list[float] = []

    def signal(self, number: signal.Signals) -> None:
        self.killed = number is signal.SIGKILL

    def wait_exit(self, timeout_s: float) -> int | None:
        self.waited_s.append(timeout_s)
        return -signal.SIGKILL if self.killed else None

    def has_died(self) -> bool:
        return False

    def log_tail(self) -> str:
        return ""


class StubbornTarget(LaunchingTarget[Stubborn]):
    def command_line(self, cgroup_root: str, flags: object = (), files: object = None) -> str:
        raise NotImplementedError

    @contextmanager
    def _run_server(self, options: LaunchOptions) -> Iterator[Stubborn]:
        del options
        server = Stubborn()
        yield server
        self._end(server)


def test_servers_that_follow_one_which_ignored_sigterm_get_little_time(
    identities: IdentityStore,
) -> None:
    target = StubbornTarget("stubborn", identities, {}, LocalHost())
    waited_s = []
    for _ in range(3):
        with target.launch() as server:
            pass
        assert server.killed
        waited_s.append(server.waited_s[1])
    assert waited_s == [END_TIMEOUT_S, NEXT_END_TIMEOUT_S, NEXT_END_TIMEOUT_S]


def test_a_server_launched_by_a_pool_thread_outlives_the_pool(ours: LocalTarget) -> None:
    with ExitStack() as stack:
        with ThreadPoolExecutor(1) as pool:
            server = pool.submit(stack.enter_context, ours.launch()).result()
            thread = Path(f"/proc/self/task/{pool.submit(threading.get_native_id).result()}")
        poll_until(lambda: None if thread.exists() else True, 20, "the kernel's end of the thread")
        with Client(server.address, ours.identities.files("admin"), Recorder()) as client:
            client.must_start("true")
        assert not server.has_died()


def test_has_died_distinguishes_a_crash_from_the_harness_signal(ours: LocalTarget) -> None:
    with ours.launch() as server:
        server.signal(signal.SIGKILL)
        assert server.wait_exit(10) == -signal.SIGKILL
        assert not server.has_died()
    with (
        ours.launch() as server,
        Client(server.address, ours.identities.files("admin"), Recorder()) as client,
    ):
        client.start("sh", ["-c", f"kill -9 {server.pid}"])  # whose reply may be lost with it
        assert server.wait_exit(10) == -signal.SIGKILL
        assert server.has_died()


def test_call_to_a_paused_server_is_unknown(
    ours: LocalTarget,
) -> None:
    recorder = Recorder()
    with (
        ours.launch() as server,
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
    ("command", "text"),
    [
        ("sh -c 'echo wrong turn; exit 3'", "wrong turn"),
        ("/nonexistent/server", "ended during its start"),
    ],
)
def test_server_that_does_not_start_is_broken_and_shows_its_log(
    command: str, text: str, identities: IdentityStore
) -> None:
    with (
        pytest.raises(BrokenError, match=text),
        LocalTarget(identities, command, {}).launch(),
    ):
        pass


def test_launch_command_with_an_unknown_placeholder_is_unsupported(
    identities: IdentityStore,
) -> None:
    target = LocalTarget(identities, "server {socket}", {})
    with pytest.raises(UnsupportedError, match=r"\{ca\}, \{cert\}"), target.launch():
        pass


def test_capabilities_of_our_server_and_the_original_differ(
    ours: LocalTarget, identities: IdentityStore
) -> None:
    with ours.launch() as server:
        own = probe_capabilities(ours, server, Scale.FULL)
        # The same server, of which only the address is known.
        given = AddressTarget(server.address, identities)
        known = probe_capabilities(given, server, Scale.FULL)
    assert own[Need.OFFSETS] == own[Need.LISTING] == own[Need.GRACE] == own[Need.LAUNCH] == ""
    assert known[Need.OFFSETS] == known[Need.HOST] == ""
    assert known[Need.LAUNCH]
    original = LocalTarget(identities, ORIGINAL, {})
    with original.launch() as server:
        theirs = probe_capabilities(original, server, Scale.FULL)
    for need in (Need.OFFSETS, Need.LISTING, Need.GRACE, Need.LIMIT_FIELDS, Need.STREAM_CAP):
        assert need in theirs[need] or "a flag" in theirs[need]
    assert theirs[Need.PYTHON] == theirs[Need.LAUNCH] == ""


def test_job_host_runs_scripts_as_jobs(ours: LocalTarget, identities: IdentityStore) -> None:
    with ours.launch() as server:
        host = JobHost(server.address, identities.files("admin"))
        done = host.run("echo seen; exit 3")
        assert (done.exit_code, done.stdout) == (3, "seen\n")
        assert host.run("kill -9 $$").exit_code == 128 + signal.SIGKILL


def test_receiver_ends_by_cancel_and_by_its_plan(ours: LocalTarget) -> None:
    recorder = Recorder()
    with (
        ours.launch() as server,
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
