"""The server's properties that no check of the harness sees: its tables, its log, its start."""

import logging
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from harness.drive.certificates import server_spec
from jobworker.v1 import jobworker_pb2 as pb
from tests.support.service import Certificates, channel_for, client_for, running_server
from worker_service.client import CallError
from worker_service.identity import PERMISSIONS
from worker_service.server import Server

UNKNOWN_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


def test_every_served_method_has_permissions() -> None:
    # A method without any would be refused to every role: safe, but useless.
    methods = {
        f"/{service.full_name}/{method.name}"
        for service in (
            pb.DESCRIPTOR.services_by_name["JobWorker"],
            health_pb2.DESCRIPTOR.services_by_name["Health"],
            reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
        )
        for method in service.methods
    }
    # Health.List is not required; Health.Watch keeps every name that a client has sent.
    refused = {"/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch"}
    assert methods - refused <= set(PERMISSIONS)
    assert not refused & set(PERMISSIONS)


def test_health_answers_both_roles_and_reflection_only_admins(
    server: Server, certificates: Certificates
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for files in (certificates.admin, certificates.user):
        with channel_for(server.address, files) as connection:
            health: Any = health_pb2_grpc.HealthStub(connection)
            checked = health.Check(
                health_pb2.HealthCheckRequest(service="jobworker.v1.JobWorker"), timeout=10
            )
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
    with channel_for(server.address, certificates.admin) as connection:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(connection)
        [answer] = stub.ServerReflectionInfo(iter([request]), timeout=10)
        names = {service.name for service in answer.list_services_response.service}
        assert "jobworker.v1.JobWorker" in names
    with channel_for(server.address, certificates.user) as connection:
        stub = reflection_pb2_grpc.ServerReflectionStub(connection)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([request]), timeout=10))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_unexpected_exception_is_internal_and_its_text_only_in_the_log(
    server: Server,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(server.worker, "query", fail)
    with (
        client_for(server.address, certificates.user) as client,
        pytest.raises(CallError, match=r"see [0-9a-f-]{36} in the server's log") as failed,
    ):
        client.query(UNKNOWN_ID)
    assert failed.value.code is grpc.StatusCode.INTERNAL
    assert "swordfish" not in str(failed.value)
    assert "swordfish" in caplog.text


def test_second_server_on_the_same_port_exits_with_one_line(certificates: Certificates) -> None:
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


def test_client_gives_up_on_an_unreachable_server_at_its_deadline(
    certificates: Certificates,
) -> None:
    with client_for("127.0.0.1:1", certificates.admin, timeout_s=2) as client:
        started_s = time.monotonic()
        with pytest.raises(CallError) as failed:
            client.query(UNKNOWN_ID)
        assert time.monotonic() - started_s < 10
    assert failed.value.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }


def test_client_refuses_a_server_with_another_name(
    certificates: Certificates, tmp_path: Path
) -> None:
    files = certificates.authority.write(tmp_path, "server", server_spec(("example.org",)))
    with (
        running_server(certificates, cert=files.cert, key=files.key) as elsewhere,
        client_for(elsewhere.address, certificates.admin) as client,
        pytest.raises(CallError) as refused,
    ):
        client.query(UNKNOWN_ID)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def test_mismatched_renewed_files_are_logged_once_and_the_old_ones_stay(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def served_certificate(server: Server) -> str:
        host, _, port = server.address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)), timeout=15)

    first = certificates.authority.write(tmp_path, "server", server_spec())
    with (
        caplog.at_level(logging.WARNING),
        running_server(certificates, cert=first.cert, key=first.key) as server,
    ):
        before = served_certificate(server)
        first.key.write_text("not a key")
        assert {served_certificate(server) for _ in range(3)} == {before}
        assert caplog.text.count("renewed certificates are not used yet") == 1
        certificates.authority.write(tmp_path, "server", server_spec())
        assert served_certificate(server) != before
