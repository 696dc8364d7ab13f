"""The gate around every call: audit lines, refusals, and bounded waits."""

import datetime as dt
import logging
import queue
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from harness.drive.certificates import ADMIN, USER, CertificateSpec, serial_number
from tests.support.calls import begin_call, refusal
from tests.support.service import (
    Certificates,
    audit_lines,
    channel_for,
    client_for,
    running_server,
    wait_until,
)
from worker_service import gate as gate_module
from worker_service import server as server_module
from worker_service import service as service_module
from worker_service.client import CallError
from worker_service.identity import PERMISSIONS, Role
from worker_service.log import Chunk
from worker_service.server import Server
from worker_service.wire import encode_output

UNLISTED = "/jobworker.v1.JobWorker/Unlisted"
QUERY = "/jobworker.v1.JobWorker/QueryJob"
STREAM = "/jobworker.v1.JobWorker/StreamLogs"
FLOOD_BYTES = 2**25  # more than any client's window holds
CUT_WITHIN_S = 2.5  # the promised 2 s, and a margin for a busy machine
STALLED_S = 1.0  # a stream that can send does so within milliseconds


def test_audit_line_reports_caller_subject_and_status(
    server: Server, certificates: Certificates, audit_log: pytest.LogCaptureFixture
) -> None:
    with (
        client_for(server.address, certificates.admin) as admin,
        client_for(server.address, certificates.user) as user,
    ):
        job_id = admin.start("sh", ["-c", "echo the password is $0", "swordfish"])
        assert b"".join(each.data for each in user.stream(job_id)) == b"the password is swordfish\n"
        with pytest.raises(CallError):
            user.stop(job_id)
        with pytest.raises(CallError):
            user.query("two\nlines rpc=StopJob role=admin")
    admin_serial, user_serial = map(serial_number, (certificates.admin, certificates.user))
    [started] = audit_lines(audit_log, "StartJob")
    assert started.startswith(
        f"rpc=StartJob command='sh' job={job_id} role=admin serial={admin_serial} peer=ipv4:"
    )
    assert " code=OK ms=" in started
    [streamed] = audit_lines(audit_log, "StreamLogs")
    assert f"job={job_id} role=user serial={user_serial}" in streamed
    [refused] = audit_lines(audit_log, "StopJob")
    # A forbidden caller is refused before the request is read, so the line has no subject.
    assert refused.startswith(f"rpc=StopJob role=user serial={user_serial}")
    assert "code=PERMISSION_DENIED" in refused
    assert "detail=" in refused
    # A client's text cannot forge a line, and a job's arguments are not logged.
    [forged] = audit_lines(audit_log, "QueryJob")
    assert "\n" not in forged
    assert "swordfish" not in audit_log.text


def test_unknown_rpc_and_unreadable_request_are_audited(
    server: Server, certificates: Certificates, audit_log: pytest.LogCaptureFixture
) -> None:
    with channel_for(server.address, certificates.user) as connection:
        for method, code in (
            ("ForgetJob", grpc.StatusCode.UNIMPLEMENTED),
            ("QueryJob", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            call: Any = connection.unary_unary(f"/jobworker.v1.JobWorker/{method}")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"\xff\xff\xff", timeout=10)  # not a message of any type
            assert refused.value.code() is code
            [line] = audit_lines(audit_log, method)
            assert f"role=user serial={serial_number(certificates.user)}" in line
            assert f"code={code.name}" in line


@pytest.fixture
def server_with_unlisted_rpc(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server with an additional rpc that `PERMISSIONS` does not list."""

    def build(self: Server) -> grpc.Server:
        built = original(self)
        handler = grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: empty_pb2.Empty(),
            request_deserializer=empty_pb2.Empty.FromString,
            response_serializer=empty_pb2.Empty.SerializeToString,
        )
        built.add_registered_method_handlers("jobworker.v1.JobWorker", {"Unlisted": handler})
        built.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("jobworker.v1.JobWorker", {"Unlisted": handler}),)
        )
        return built

    original = Server._build
    monkeypatch.setattr(server_module.Server, "_build", build)
    with running_server(certificates) as running:
        yield running


@pytest.mark.parametrize("role", ["admin", "user", "none"])
def test_unlisted_rpc_is_refused_to_every_role(
    role: str,
    server_with_unlisted_rpc: Server,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    roles = {"admin": (ADMIN,), "user": (USER,), "none": ()}[role]
    files = certificates.authority.write(tmp_path, "caller", CertificateSpec(roles=roles))
    with channel_for(server_with_unlisted_rpc.address, files) as connection:
        call: Any = connection.unary_unary(UNLISTED)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        # It exists: once it is listed, it answers the roles that it is listed for.
        monkeypatch.setitem(PERMISSIONS, UNLISTED, frozenset({Role.ADMIN}))
        if role == "admin":
            assert call(b"", timeout=10) == b""


@pytest.mark.parametrize("method", ["QueryJob", "StreamLogs"])
def test_forbidden_caller_is_refused_before_the_request_arrives(
    method: str,
    server: Server,
    certificates: Certificates,
    audit_log: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    no_role = certificates.authority.write(tmp_path, "no-role", CertificateSpec(roles=()))
    with (
        channel_for(server.address, no_role) as connection,
        begin_call(connection, f"/jobworker.v1.JobWorker/{method}") as call,
    ):
        assert refusal(call).code() is grpc.StatusCode.PERMISSION_DENIED
    [line] = audit_lines(audit_log, method)
    assert "code=PERMISSION_DENIED" in line


def test_call_without_a_request_is_cancelled_in_time_and_frees_its_thread(
    certificates: Certificates, audit_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "REQUEST_MAX_S", 2.0)
    # One of them may wait that long: half of the two that may be other calls than stops.
    with (
        running_server(certificates, max_streams=1, unary_threads=2) as server,
        channel_for(server.address, certificates.user) as connection,
        begin_call(connection, QUERY) as query,
        begin_call(connection, STREAM) as stream,
    ):
        # Both hold a slot until they are cancelled.
        for call in (query, stream):
            assert refusal(call).code() is grpc.StatusCode.CANCELLED
        [queried], [streamed] = (audit_lines(audit_log, rpc) for rpc in ("QueryJob", "StreamLogs"))
        for line in (queried, streamed):
            assert "peer=ipv4:" in line
            assert "code=CANCELLED" in line
        waits_s = re.findall(r"no request arrived within ([0-9.]+) s", f"{queried} {streamed}")
        assert sorted(waits_s) == ["1", "2"]
        wait_until(lambda: server.admission.taken() == 0, "the slot to be free")
        with client_for(server.address, certificates.admin) as admin:
            assert not list(admin.list_jobs())


def test_call_that_ends_without_a_request_is_an_invalid_argument(
    server: Server, certificates: Certificates
) -> None:
    with channel_for(server.address, certificates.user) as connection:
        for method in (QUERY, STREAM):
            call: Any = connection.stream_stream(method)(iter(()), timeout=10)
            refused = refusal(call)
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "without a request" in str(refused)


@pytest.mark.parametrize("cause", ["denied", "expired"])
def test_stalled_stream_is_cancelled_once_its_client_is_denied_or_expired(
    cause: str,
    certificates: Certificates,
    audit_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    denied = tmp_path / "denied"
    denied.write_text("")
    sent_at_s: list[float] = []

    def encode(chunk: Chunk) -> bytes:
        sent_at_s.append(time.monotonic())
        return encode_output(chunk)

    monkeypatch.setattr(service_module, "encode_output", encode)
    ends = dt.timedelta(seconds=4) if cause == "expired" else dt.timedelta(days=1)
    with (
        running_server(certificates, deny_serials=denied) as server,
        client_for(server.address, certificates.admin) as admin,
        ExitStack() as stack,
    ):
        job_id = admin.start("sh", ["-c", f"head -c {FLOOD_BYTES} /dev/zero; sleep 100"])
        due_s = time.monotonic() + ends.total_seconds()
        spec = CertificateSpec(roles=(USER,), ends=ends)
        files = certificates.authority.write(tmp_path, "caller", spec)
        stream = stack.enter_context(client_for(server.address, files)).stream(job_id, timeout_s=60)
        next(stream)
        wait_until(lambda: time.monotonic() - sent_at_s[-1] > STALLED_S, "the stream to stall")
        if cause == "denied":
            due_s = time.monotonic()
            denied.write_text(f"{serial_number(files)}\n")
        wait_until(lambda: server.admission.taken() == 0, "the slot to be free")
        assert 0 < time.monotonic() - due_s < CUT_WITHIN_S
        [line] = audit_lines(audit_log, "StreamLogs")
        assert "code=CANCELLED" in line
        assert ("no longer accepted" if cause == "denied" else "expired at") in line
        admin.stop(job_id, grace_s=0)
        del stream


def test_health_watch_is_refused_and_reflection_takes_a_stream_slot(
    certificates: Certificates,
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with (
        running_server(certificates, max_streams=1) as server,
        channel_for(server.address, certificates.admin) as connection,
    ):
        with begin_call(connection, "/grpc.health.v1.Health/Watch", b"") as watch:
            assert refusal(watch).code() is grpc.StatusCode.PERMISSION_DENIED
        with begin_call(connection, method, request) as first:
            next(first)
            with begin_call(connection, method, request) as second:
                assert refusal(second).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_status_in_the_audit_line_is_the_clients(
    server: Server, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    request = health_pb2.HealthCheckRequest(service="unknown").SerializeToString()
    with (
        caplog.at_level(logging.INFO),
        channel_for(server.address, certificates.admin) as connection,
    ):
        check: Any = connection.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as unknown:
            check(request, timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(connection)
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        call = stub.ServerReflectionInfo(iter(requests.get, None), timeout=10)
        next(call)
        call.cancel()
        requests.put(None)
        [checked], [reflected] = (
            audit_lines(caplog, rpc) for rpc in ("Check", "ServerReflectionInfo")
        )
    assert "code=NOT_FOUND" in checked
    assert "code=CANCELLED" in reflected
    assert "unexpected error" not in caplog.text


def test_long_text_of_a_client_is_truncated_in_status_and_audit_line(
    server: Server, certificates: Certificates, audit_log: pytest.LogCaptureFixture
) -> None:
    with (
        client_for(server.address, certificates.admin) as admin,
        channel_for(server.address, certificates.admin) as connection,
    ):
        for name in ("x" * 100_000, "\N{PILE OF POO}" * 30_000):
            with pytest.raises(CallError, match=r"truncated from \d+ bytes") as refused:
                admin.start(name)
            assert refused.value.code is grpc.StatusCode.NOT_FOUND
            assert len(str(refused.value)) < 2000
        call: Any = connection.unary_unary("/jobworker.v1.JobWorker/" + "x" * 5000)
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=10)
        lines = [*audit_lines(audit_log, "StartJob", 2), *audit_lines(audit_log, "x" * 80)]
    assert all(len(line) < 2000 for line in lines)
