"""A host that allows no more threads: streams are refused, other calls go on, the end is orderly.

The server's threads fail to start as they do beyond RLIMIT_NPROC or pids.max; the client, which is
in the same process, keeps its own.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest

from tests.support.service import Certificates, client_for, running_server, wait_until
from worker_service import server as server_module
from worker_service.client import CallError, Output
from worker_service.config import Settings
from worker_service.errors import HostExhaustedError
from worker_service.gate import IDLE_MIN_STREAMS
from worker_service.linux import LIBC
from worker_service.server import _SPARE_THREADS

ADMITTED = _SPARE_THREADS - IDLE_MIN_STREAMS
REFUSED = 3


@pytest.fixture
def allow_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether the server's threads can be started; also the one with which gRPC's server ends."""
    start = threading.Thread.start
    allowed = True

    def start_if_allowed(thread: threading.Thread) -> None:
        target = getattr(thread, "_target", None)
        servers = thread.name.startswith("rpc_") or "cancel_all_calls" in str(target)
        if servers and not allowed:
            raise RuntimeError("can't start new thread")
        start(thread)

    def allow(value: bool) -> None:
        nonlocal allowed
        allowed = value

    monkeypatch.setattr(threading.Thread, "start", start_if_allowed)
    return allow


def test_streams_beyond_the_threads_are_refused_and_other_calls_are_answered(
    certificates: Certificates, allow_threads: Callable[[bool], None]
) -> None:
    with (
        running_server(certificates) as server,
        client_for(server.address, certificates.admin, timeout_s=10) as admin,
        ExitStack() as streams,
    ):

        def open_stream() -> Iterator[Output]:
            outputs = admin.stream(job_id, timeout_s=30)
            streams.callback(outputs.close)  # type: ignore[attr-defined] # it is a generator
            assert next(outputs).data == b"on\n"
            return outputs

        job_id = admin.start("sh", ["-c", "echo on; exec sleep 100"])
        first = open_stream()
        allow_threads(False)
        for _ in range(ADMITTED):
            open_stream()
        for _ in range(REFUSED):
            with pytest.raises(CallError, match="the host allows no more") as refused:
                open_stream()
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert admin.query(job_id).running
        assert list(admin.list_jobs())
        second = admin.start("true")
        allow_threads(True)
        for _ in range(ADMITTED):
            open_stream()
        assert admin.stop(job_id, grace_s=0)
        assert list(first) == []
        wait_until(lambda: not admin.query(second).running, "the other job's end")


def test_start_without_a_free_process_is_refused_and_leaves_nothing(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running_server(certificates) as server,
        client_for(server.address, certificates.admin) as admin,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(LIBC, "posix_spawn", lambda *_: errno.EAGAIN, raising=False)
            with pytest.raises(CallError, match="no room for another process") as refused:
                admin.start("true")
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list(admin.list_jobs()) == []
        assert next(admin.stream(admin.start("echo", ["on"]))).data == b"on\n"


def test_server_does_not_start_without_room_for_its_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    started = 0

    def start_some(thread: threading.Thread) -> None:
        nonlocal started
        if started == _SPARE_THREADS:
            raise RuntimeError("can't start new thread")
        started += 1
        start(thread)

    # Signals and standard error are the process's own: neither may be changed here.
    monkeypatch.setattr(server_module, "_prepare_signals", set)
    monkeypatch.setattr(server_module, "StderrHandler", lambda: pytest.fail("it starts"))
    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(HostExhaustedError, match=f"only {_SPARE_THREADS} threads more"):
        server_module.serve(Settings(), announce=lambda _: None)


def test_server_stops_orderly_without_a_thread(
    certificates: Certificates, allow_threads: Callable[[bool], None]
) -> None:
    with (
        running_server(certificates) as server,
        client_for(server.address, certificates.admin) as admin,
    ):
        job_id = admin.start("sh", ["-c", "echo on; exec sleep 100"])
        outputs = admin.stream(job_id)
        assert next(outputs).data == b"on\n"
        allow_threads(False)
        assert server.stop(grace_s=0)
        assert list(outputs) == []
