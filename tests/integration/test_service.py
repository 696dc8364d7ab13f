"""What the rpcs answer: statuses, texts, roles, shutdown."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from tests.integration.test_streams import collect, wait_until
from tests.support.service import Certificates, client_for, launched_server, running_server
from worker_service.cgroup import Limits
from worker_service.client import CallError, Client
from worker_service.identity import PERMISSIONS
from worker_service.server import Server
from worker_service.tls import CertificateFiles, channel_credentials

LAST_WORDS = "trap 'echo bye; exit 0' TERM; echo $$; sleep 100 >/dev/null 2>&1 & wait"
UNKNOWN_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


def channel(server: Server, certificates: Certificates, role: str) -> grpc.Channel:
    files = certificates.admin if role == "admin" else certificates.user
    return grpc.secure_channel(
        server.address, channel_credentials(CertificateFiles(files.ca, files.cert, files.key))
    )


@pytest.mark.parametrize(
    ("job_id", "code"),
    [
        (UNKNOWN_ID, grpc.StatusCode.NOT_FOUND),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("../../etc/passwd", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_an_unknown_or_malformed_id_is_refused_by_every_rpc(
    admin: Client, job_id: str, code: grpc.StatusCode
) -> None:
    for call in (admin.stop, admin.query, lambda job: list(admin.stream(job))):
        with pytest.raises(CallError) as refused:
            call(job_id)
        assert refused.value.code is code
        assert job_id in str(refused.value)


@pytest.mark.parametrize(
    ("command", "arguments", "code", "text"),
    [
        ("/no/such/program", [], grpc.StatusCode.NOT_FOUND, "errno 2"),
        ("no-such-program", [], grpc.StatusCode.NOT_FOUND, "PATH="),
        ("/etc/passwd", [], grpc.StatusCode.FAILED_PRECONDITION, "errno 13"),
        ("/tmp", [], grpc.StatusCode.FAILED_PRECONDITION, "errno 21"),  # noqa: S108
        ("", [], grpc.StatusCode.INVALID_ARGUMENT, "command_name is empty"),
        ("echo", ["a\0b"], grpc.StatusCode.INVALID_ARGUMENT, "NUL"),
        ("echo", ["x" * 131_072], grpc.StatusCode.INVALID_ARGUMENT, "131071"),
        ("echo", ["x" * 100_000] * 30, grpc.StatusCode.INVALID_ARGUMENT, "2000000"),
    ],
)
def test_a_command_that_cannot_run_is_refused_with_its_cause_and_leaves_no_job(
    admin: Client, command: str, arguments: list[str], code: grpc.StatusCode, text: str
) -> None:
    jobs = len(admin.list_jobs())
    with pytest.raises(CallError, match=text) as refused:
        admin.start(command, arguments)
    assert refused.value.code is code
    assert len(admin.list_jobs()) == jobs


def test_limits_are_refused_by_a_server_without_limits(admin: Client) -> None:
    with pytest.raises(CallError, match="--no-limits") as refused:
        admin.start("true", limits=Limits(cpu_millicores=500))
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_job_gets_its_environment_and_directory_and_no_secret(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do not tell")
    job_id = admin.start("env", environment={"COLOUR": "blue"}, working_directory="/usr")
    output = collect(admin, job_id).decode()
    assert "COLOUR=blue\n" in output
    assert "do not tell" not in output
    assert "GRPC" not in output
    assert collect(admin, admin.start("pwd", working_directory="/usr")) == b"/usr\n"


def test_stop_ends_a_tree_that_ignores_sigterm(admin: Client) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 100) & echo $!; while :; do sleep 100; done"
    job_id = admin.start("sh", ["-c", script])
    child = int(next(admin.stream(job_id)).data)
    admin.stop(job_id, grace_s=0.2)
    job = admin.query(job_id)
    assert (job.status, job.signal) == ("signaled", signal.SIGKILL)
    wait_until(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie whose parent has not looked is dead."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_last_words_of_a_sigterm_handler_are_delivered(admin: Client) -> None:
    job_id = admin.start(
        "sh", ["-c", "trap 'echo bye; exit 3' TERM; echo ready; sleep 100 >/dev/null 2>&1 & wait"]
    )
    next(admin.stream(job_id))
    admin.stop(job_id)
    assert collect(admin, job_id) == b"ready\nbye\n"
    assert admin.query(job_id).exit_code == 3


def test_100_concurrent_stops_all_succeed(admin: Client) -> None:
    job_id = admin.start("sleep", ["100"])
    with ThreadPoolExecutor(100) as pool:
        messages = list(pool.map(lambda _: admin.stop(job_id), range(100)))
    assert messages == ["ended with signal 15"] * 100
    assert admin.stop(job_id) == "ended with signal 15"


def test_a_user_may_query_and_stream_and_nothing_else(admin: Client, user: Client) -> None:
    job_id = admin.start("echo", ["hello"])
    assert collect(user, job_id) == b"hello\n"
    assert user.query(job_id).status == "exited"
    refused_calls = (lambda: user.start("true"), lambda: user.stop(job_id), user.list_jobs)
    for call in refused_calls:
        with pytest.raises(CallError, match="role user may not call") as refused:
            call()
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_every_method_that_is_served_has_its_permissions() -> None:
    # One that has none would be refused to everybody: safe, and of no use.
    methods = {
        f"/{service.full_name}/{method.name}"
        for service in (
            pb.DESCRIPTOR.services_by_name["JobWorker"],
            health_pb2.DESCRIPTOR.services_by_name["Health"],
            reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
        )
        for method in service.methods
    }
    # Health.List is newer than the requirements; Watch keeps every name that it was asked for.
    refused = {"/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch"}
    assert methods - refused <= set(PERMISSIONS)
    assert not refused & set(PERMISSIONS)


def test_a_method_without_permissions_is_refused_to_an_admin(
    server: Server, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PERMISSIONS, "/jobworker.v1.JobWorker/QueryJob")
    with client_for(server.address, certificates.admin) as client, pytest.raises(CallError) as no:
        client.query(UNKNOWN_ID)
    assert no.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_an_unknown_rpc_is_unimplemented(server: Server, certificates: Certificates) -> None:
    with channel(server, certificates, "user") as connection:
        call: Any = connection.unary_unary("/jobworker.v1.JobWorker/DeleteJob")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_for_both_roles_and_reflection_for_admins(
    server: Server, certificates: Certificates
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for role in ("admin", "user"):
        with channel(server, certificates, role) as connection:
            health: Any = health_pb2_grpc.HealthStub(connection)
            checked = health.Check(
                health_pb2.HealthCheckRequest(service="jobworker.v1.JobWorker"), timeout=10
            )
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
    with channel(server, certificates, "admin") as connection:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(connection)
        [answer] = stub.ServerReflectionInfo(iter([request]), timeout=10)
        names = {service.name for service in answer.list_services_response.service}
        assert "jobworker.v1.JobWorker" in names
    with channel(server, certificates, "user") as connection:
        stub = reflection_pb2_grpc.ServerReflectionStub(connection)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([request]), timeout=10))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_an_unexpected_exception_does_not_leak_its_text(
    server: Server, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(server.worker, "query", fail)
    with client_for(server.address, certificates.user) as client, pytest.raises(CallError) as no:
        client.query(UNKNOWN_ID)
    assert no.value.code is grpc.StatusCode.INTERNAL
    assert "swordfish" not in str(no.value)


def test_sigterm_ends_jobs_and_streams_and_exits_0(certificates: Certificates) -> None:
    with launched_server(certificates, "--stop-grace", "1s") as (process, address):
        with client_for(address, certificates.admin) as client:
            job_id = client.start("sh", ["-c", LAST_WORDS])
            stream = client.stream(job_id, timeout_s=30)
            pid = int(next(stream).data)
            stubborn = client.start("sh", ["-c", "trap '' TERM; echo on; sleep 100"])
            next(client.stream(stubborn))
            started_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert b"".join(output.data for output in stream) == b"bye\n"
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - started_s < 20
        assert not _alive(pid)


def test_a_second_server_on_the_same_port_says_so(certificates: Certificates) -> None:
    with running_server(certificates) as first:
        files = certificates.server
        command = [sys.executable, "-m", "worker_service", "serve", "--no-limits"]
        command += ["--ca", str(files.ca), "--cert", str(files.cert), "--key", str(files.key)]
        second = subprocess.run(
            [*command, "--listen", first.address],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    assert f"cannot listen on {first.address}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_key_that_others_may_read_is_refused_at_start(certificates: Certificates) -> None:
    files = certificates.server
    exposed = files.key.with_name("exposed.key")
    exposed.write_bytes(files.key.read_bytes())
    exposed.chmod(0o640)
    command = [sys.executable, "-m", "worker_service", "serve", "--no-limits", "--listen"]
    command += ["127.0.0.1:0", "--ca", str(files.ca), "--cert", str(files.cert)]
    # Less than a mutant's test may take: a server that starts all the same must not outlive it.
    refused = subprocess.run(
        [*command, "--key", str(exposed)], capture_output=True, text=True, timeout=10, check=False
    )
    assert refused.returncode == 1
    assert "mode 0640" in refused.stderr
    swapped = subprocess.run(
        [*command, "--key", str(certificates.admin.key)],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    assert swapped.returncode == 1
    assert "does not belong to certificate" in swapped.stderr
    assert os.path.exists(exposed)  # noqa: PTH110 - refused, not touched


def test_a_call_to_a_dead_server_ends_at_its_deadline(certificates: Certificates) -> None:
    with client_for("127.0.0.1:1", certificates.admin, timeout_s=2) as client:
        started_s = time.monotonic()
        with pytest.raises(CallError) as failed:
            client.query(UNKNOWN_ID)
        assert time.monotonic() - started_s < 10
    assert failed.value.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }


def test_the_stub_of_the_original_reaches_every_rpc(
    server: Server, certificates: Certificates
) -> None:
    with channel(server, certificates, "admin") as connection:
        stub = jobworker_pb2_grpc.JobWorkerStub(connection)
        started = stub.StartJob(pb.StartJobRequest(command_name="true"), timeout=10)
        assert stub.StopJob(pb.StopJobRequest(job_id=started.job_id), timeout=10).success
