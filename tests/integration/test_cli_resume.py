"""The command's `stream --reconnect`: what it writes, and how it exits."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from harness.drive.fault_proxy import FaultProxy, NetworkFault
from tests.support.command import Run, command_environment, runner
from tests.support.service import COMMAND, Certificates, client_for, launched_server
from worker_service.server import Server


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def streaming(environment: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [COMMAND, "stream", *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_job(run: Run, script: str) -> str:
    return run("start", "sh", "-c", f"'{script}'").stdout.split()[3]


def test_command_resumes_and_reports_the_interruption_once(
    server: Server, certificates: Certificates, gate: Path
) -> None:
    direct = runner(command_environment(server.address, certificates))
    job_id = start_job(direct, f"echo 12345; read x < {gate}; echo 6789; exit 7")
    with FaultProxy(server.address, NetworkFault()) as proxy:
        there = command_environment(proxy.address, certificates)
        process = streaming(there, "--reconnect", "--exit-status", job_id)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "12345\n"
    with process:
        assert process.stderr.readline().startswith(
            "worker-service: interrupted after 6 bytes, reconnecting: the server cannot be reached"
        )
        with FaultProxy(server.address, NetworkFault(), int(proxy.address.rpartition(":")[2])):
            gate.write_text("go on\n")
            output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("6789\n", "", 7)


def test_command_gives_up_with_the_offset_to_resume_at(
    server: Server, certificates: Certificates
) -> None:
    direct = runner(command_environment(server.address, certificates))
    job_id = start_job(direct, "echo 12345; exec sleep 100")
    with FaultProxy(server.address, NetworkFault()) as proxy:
        there = command_environment(proxy.address, certificates)
        process = streaming(there, "--reconnect", "--give-up-after", "500ms", job_id)
        assert process.stdout is not None
        assert process.stdout.readline() == "12345\n"
    with process:
        _, errors = process.communicate(timeout=30)
    first, last = errors.splitlines()
    assert first.startswith("worker-service: interrupted after 6 bytes, reconnecting: ")
    assert "; received 6 bytes, then failed attempts: " in last
    assert last.endswith("; resume with --from-offset 6 [UNAVAILABLE]")
    assert process.returncode == 5
    direct("stop", "--grace", "0", job_id)


def test_job_of_a_killed_server_is_reported_as_gone(certificates: Certificates) -> None:
    with launched_server(certificates) as (server, address):
        there = command_environment(address, certificates)
        with client_for(address, certificates.admin) as admin:
            job_id = admin.start("sh", ["-c", "echo 12345; exec sleep 20"])
            pid = admin.query(job_id).pid
        process = streaming(there, "--reconnect", job_id)
        assert process.stdout is not None
        assert process.stdout.readline() == "12345\n"
        server.kill()
        server.wait(30)
    os.kill(pid, signal.SIGKILL)  # without cgroups, a job outlives a killed server
    with launched_server(certificates, "--listen", address), process:
        output, errors = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", 3)
    assert f"job {job_id} is gone: the server that answers now does not know it" in errors
    assert errors.endswith(" [NOT_FOUND]\n")
    assert "--from-offset" not in errors
