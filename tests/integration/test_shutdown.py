"""A server that gets a signal ends, even if a call or its jobs do not."""

import re
import signal
import sys
import threading
from typing import Final

import grpc
import pytest

from tests.support.service import COMMAND, Certificates, client_for, launched_server
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


IGNORES: Final = ("env", "--ignore-signal=CHLD,HUP,INT,QUIT,TERM,PIPE")
DEFAULTS: Final = ("env", "--default-signal=HUP,INT,QUIT,TERM")


@pytest.mark.timeout(60)
def test_inherited_ignored_signals_stay_ignored_except_sigterm(certificates: Certificates) -> None:
    with launched_server(certificates, program=(*IGNORES, COMMAND)) as (process, address):
        with client_for(address, certificates.admin) as client:
            job_id = client.start("sh", ["-c", "echo on; exit 3"])
            assert [output.data for output in client.stream(job_id)] == [b"on\n"]
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                process.send_signal(number)
            assert client.query(job_id).exit_code == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@pytest.mark.timeout(60)
def test_second_sighup_does_not_cut_the_grace_but_sigint_does(certificates: Certificates) -> None:
    log_names = set(certificates.directory.glob("server-*.log"))
    with launched_server(certificates, "--stop-grace", "1h", program=(*DEFAULTS, COMMAND)) as (
        process,
        address,
    ):
        with client_for(address, certificates.admin) as client:
            script = "exec 2>&-; trap 'echo term' TERM; echo on; while :; do sleep 0.1; done"
            stream = client.stream(client.start("sh", ["-c", script]))
            assert next(stream).data == b"on\n"
            process.send_signal(signal.SIGHUP)
            assert next(stream).data == b"term\n"
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    [log] = set(certificates.directory.glob("server-*.log")) - log_names
    assert "SIGHUP: stopping" in log.read_text()
    assert "SIGINT again: killing" in log.read_text()


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
