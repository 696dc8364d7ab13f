"""A server that gets a signal ends, even if a call or its jobs do not."""

import re
import signal
import sys
import threading

import grpc
import pytest

from tests.support.service import Certificates, client_for, launched_server
from worker_service.client import CallError
from worker_service.server import Server

# A server whose `ListJobs` never returns, with shorter time limits than ours.
STUCK = """
import threading
from worker_service import server, service
from worker_service.cli import main
server._CALLS_GRACE_S = server._CALLS_END_MAX_S = 0.3
def never(self, request, context):
    print("stuck", flush=True)
    threading.Event().wait()
service.JobWorkerService.ListJobs = never
main()
"""


@pytest.mark.timeout(60)
def test_server_exits_although_a_call_never_returns(certificates: Certificates) -> None:
    with launched_server(certificates, program=(sys.executable, "-c", STUCK)) as (process, address):

        def lists() -> None:
            with client_for(address, certificates.admin) as client, pytest.raises(CallError):
                client.list_jobs()

        caller = threading.Thread(target=lists)
        caller.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1
        caller.join(20)
        assert not caller.is_alive()


@pytest.mark.timeout(60)
def test_many_signals_end_a_server_with_exit_code_0(certificates: Certificates) -> None:
    with launched_server(certificates, "--stop-grace", "1h") as (process, address):
        with client_for(address, certificates.admin) as client:
            stream = client.stream(client.start("sh", ["-c", "trap '' TERM; echo on; sleep 100"]))
            assert next(stream).data == b"on\n"
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        assert process.returncode == 0


def test_stop_ends_the_calls_although_jobs_do_not_end(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: float | None) -> None:
        raise TimeoutError("the reactor did not stop within 15 s")

    server = Server(certificates.settings())
    server.start()
    close = server.worker.close
    monkeypatch.setattr(server.worker, "close", never)
    assert not server.stop()
    with (
        client_for(server.address, certificates.admin) as client,
        pytest.raises(CallError) as ended,
    ):
        client.list_jobs()
    assert ended.value.code is grpc.StatusCode.UNAVAILABLE
    close()


def test_audit_lines_are_written_at_log_level_error(certificates: Certificates) -> None:
    earlier = set(certificates.directory.glob("server-*.log"))
    with launched_server(certificates, "--log-level", "error") as (process, address):
        with client_for(address, certificates.admin) as client:
            client.list_jobs()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    [log] = set(certificates.directory.glob("server-*.log")) - earlier
    assert re.search(r"INFO worker_service\.audit .*ListJobs .*code=OK", log.read_text())
