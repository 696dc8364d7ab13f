"""A server that is asked to end does so, even when a call of it never comes back."""

import re
import signal
import sys
import threading

import grpc
import pytest

from tests.support.service import Certificates, client_for, launched_server
from worker_service.client import CallError
from worker_service.server import Server

# A server whose `list` never comes back, and that is less patient than ours.
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
def test_a_call_that_never_comes_back_does_not_keep_the_server(certificates: Certificates) -> None:
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
def test_a_storm_of_signals_ends_a_server_like_one(certificates: Certificates) -> None:
    with launched_server(certificates, "--stop-grace", "1h") as (process, address):
        with client_for(address, certificates.admin) as client:
            stream = client.stream(client.start("sh", ["-c", "trap '' TERM; echo on; sleep 100"]))
            assert next(stream).data == b"on\n"
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        assert process.returncode == 0


def test_jobs_that_do_not_end_keep_neither_the_calls_nor_the_server(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: float | None) -> None:
        raise TimeoutError("the reactor did not stop within 15 s")

    server = Server(certificates.settings())
    server.start()
    close = server.worker.close
    monkeypatch.setattr(server.worker, "close", never)
    assert not server.stop()
    with client_for(server.address, certificates.admin) as client, pytest.raises(CallError) as no:
        client.list_jobs()
    assert no.value.code is grpc.StatusCode.UNAVAILABLE
    close()


def test_a_quiet_server_tells_of_every_call_all_the_same(certificates: Certificates) -> None:
    earlier = set(certificates.directory.glob("server-*.log"))
    with launched_server(certificates, "--log-level", "error") as (process, address):
        with client_for(address, certificates.admin) as client:
            client.list_jobs()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    [log] = set(certificates.directory.glob("server-*.log")) - earlier
    assert re.search(r"INFO worker_service\.audit .*ListJobs .*code=OK", log.read_text())
