"""What the gate does to every call: one audit line, and a refusal unless it is listed."""

import datetime as dt
import logging
import queue
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from harness.drive.identities import ADMIN, USER, CertFiles, Wanted, serial_number
from harness.host.clock import poll_until
from tests.integration.test_streams import wait_until
from tests.support.service import Certificates, client_for, running_server
from worker_service import server as server_module
from worker_service import service as service_module
from worker_service.client import CallError
from worker_service.identity import PERMISSIONS, Role
from worker_service.log import Chunk
from worker_service.server import Server
from worker_service.service import Gate
from worker_service.tls import CertificateFiles, channel_credentials
from worker_service.wire import encode_output

TOMORROW = "/jobworker.v1.JobWorker/Tomorrow"
QUERY = "/jobworker.v1.JobWorker/QueryJob"
STREAM = "/jobworker.v1.JobWorker/StreamLogs"
FLOOD_BYTES = 2**25  # more than any client's window takes
CUT_WITHIN_S = 2.5  # 2 s are promised, and the machine may be busy
STALLED_S = 1.0  # a stream that can send does so within milliseconds


def channel(address: str, files: CertFiles) -> grpc.Channel:
    return grpc.secure_channel(
        address, channel_credentials(CertificateFiles(files.ca, files.cert, files.key))
    )


def lines_of(caplog: pytest.LogCaptureFixture, rpc: str, count: int = 1) -> list[str]:
    """Wait for the audit lines of an rpc: a call's comes after its answer."""

    def found() -> list[str] | None:
        lines = [
            record.getMessage()
            for record in caplog.records
            if record.name == "worker_service.audit"
            and re.match(rf"rpc={re.escape(rpc)}\s", record.getMessage())
        ]
        return lines if len(lines) >= count else None

    return poll_until(found, 10, f"{count} audit lines of {rpc}")


def test_each_call_leaves_one_line_that_says_who_what_and_how_it_ended(
    server: Server, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "worker_service.audit"),
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
    [started] = lines_of(caplog, "StartJob")
    assert started.startswith(
        f"rpc=StartJob command='sh' job={job_id} role=admin serial={admin_serial} peer=ipv4:"
    )
    assert " code=OK ms=" in started
    [streamed] = lines_of(caplog, "StreamLogs")
    assert f"job={job_id} role=user serial={user_serial}" in streamed
    [refused] = lines_of(caplog, "StopJob")
    # Who may not call is refused before the request is read: it may never come.
    assert refused.startswith(f"rpc=StopJob role=user serial={user_serial}")
    assert "code=PERMISSION_DENIED" in refused
    assert "detail=" in refused
    # What a client says cannot make a line of its own, and a job's arguments are nobody's business.
    [forged] = lines_of(caplog, "QueryJob")
    assert "\n" not in forged
    assert "swordfish" not in caplog.text


def test_what_is_no_call_of_ours_leaves_a_line_too(
    server: Server, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "worker_service.audit"),
        channel(server.address, certificates.user) as connection,
    ):
        for method, code in (
            ("DeleteJob", grpc.StatusCode.UNIMPLEMENTED),
            ("QueryJob", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            call: Any = connection.unary_unary(f"/jobworker.v1.JobWorker/{method}")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"\xff\xff\xff", timeout=10)  # no message of any kind
            assert refused.value.code() is code
            [line] = lines_of(caplog, method)
            assert f"role=user serial={serial_number(certificates.user)}" in line
            assert f"code={code.name}" in line


@pytest.fixture
def server_of_tomorrow(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server with one more rpc, that whoever added it forgot to give to anybody."""

    def build(self: Server) -> grpc.Server:
        built = original(self)
        handler = grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: empty_pb2.Empty(),
            request_deserializer=empty_pb2.Empty.FromString,
            response_serializer=empty_pb2.Empty.SerializeToString,
        )
        built.add_registered_method_handlers("jobworker.v1.JobWorker", {"Tomorrow": handler})
        built.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("jobworker.v1.JobWorker", {"Tomorrow": handler}),)
        )
        return built

    original = Server._build
    monkeypatch.setattr(server_module.Server, "_build", build)
    with running_server(certificates) as running:
        yield running


@pytest.mark.parametrize("role", ["admin", "user", "none"])
def test_an_rpc_added_tomorrow_is_refused_to_everybody_until_it_is_listed(
    role: str,
    server_of_tomorrow: Server,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    roles = {"admin": (ADMIN,), "user": (USER,), "none": ()}[role]
    files = certificates.authority.write(tmp_path, "caller", Wanted(roles=roles))
    with channel(server_of_tomorrow.address, files) as connection:
        call: Any = connection.unary_unary(TOMORROW)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        # It is there: once it is listed, whoever may is answered.
        monkeypatch.setitem(PERMISSIONS, TOMORROW, frozenset({Role.ADMIN}))
        if role == "admin":
            assert call(b"", timeout=10) == b""


def test_who_is_put_on_the_deny_list_is_refused_and_cut_off(
    certificates: Certificates, tmp_path: Path
) -> None:
    denied = tmp_path / "denied"
    denied.write_text("# nobody\n")
    with (
        running_server(certificates, deny_serials=denied) as server,
        client_for(server.address, certificates.admin) as admin,
        client_for(server.address, certificates.user) as user,
    ):
        job_id = admin.start("sh", ["-c", "echo ready; sleep 100"])
        stream = user.stream(job_id, timeout_s=60)
        assert next(stream).data == b"ready\n"
        denied.write_text(f"{serial_number(certificates.user)}\n")
        with pytest.raises(CallError, match="no longer accepted") as ended:
            next(stream)
        assert ended.value.code is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(CallError, match="no longer accepted"):
            user.query(job_id)
        admin.query(job_id)
        denied.write_text("")
        user.query(job_id)
        admin.stop(job_id, grace_s=0)


@contextmanager
def begun(connection: grpc.Channel, method: str, *messages: bytes) -> Iterator[Any]:
    """Begin a call: send its headers and some messages, and neither more nor its end."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for message in messages:
        requests.put(message)
    call: Any = connection.stream_stream(method)(iter(requests.get, None), timeout=30)  # type: ignore[arg-type]
    try:
        yield call
    finally:
        call.cancel()
        requests.put(None)


def refusal(call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    return refused.value


@pytest.mark.parametrize("method", ["QueryJob", "StreamLogs"])
def test_who_may_not_call_is_refused_before_anything_of_the_request_has_come(
    method: str,
    server: Server,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    nobody = certificates.authority.write(tmp_path, "nobody", Wanted(roles=()))
    with (
        caplog.at_level(logging.INFO, "worker_service.audit"),
        channel(server.address, nobody) as connection,
        begun(connection, f"/jobworker.v1.JobWorker/{method}") as call,
    ):
        assert refusal(call).code() is grpc.StatusCode.PERMISSION_DENIED
    [line] = lines_of(caplog, method)
    assert "code=PERMISSION_DENIED" in line


def test_a_request_that_does_not_come_ends_its_call_and_others_find_a_thread(
    certificates: Certificates, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "REQUEST_MAX_S", 2.0)
    # A crowd, here of more than one, gets less time.
    monkeypatch.setattr(server_module, "Gate", lambda *given: Gate(given[0], given[1], 1))
    with (
        caplog.at_level(logging.INFO, "worker_service.audit"),
        running_server(certificates, max_streams=1, unary_threads=1) as server,
        channel(server.address, certificates.user) as connection,
        begun(connection, QUERY) as query,
        begun(connection, STREAM) as stream,
    ):
        # Both threads are taken, until the calls are cut off.
        for call in (query, stream):
            assert refusal(call).code() is grpc.StatusCode.CANCELLED
        [queried], [streamed] = (lines_of(caplog, rpc) for rpc in ("QueryJob", "StreamLogs"))
        for line in (queried, streamed):
            assert "peer=ipv4:" in line
            assert "code=CANCELLED" in line
        waits_s = re.findall(r"no request within ([0-9.]+) s", f"{queried} {streamed}")
        assert sorted(waits_s) == ["1", "2"]
        wait_until(lambda: server.admission.taken() == 0)
        with client_for(server.address, certificates.admin) as admin:
            assert admin.list_jobs() == []


def test_a_call_that_ends_without_a_request_is_told_so(
    server: Server, certificates: Certificates
) -> None:
    with channel(server.address, certificates.user) as connection:
        for method in (QUERY, STREAM):
            call: Any = connection.stream_stream(method)(iter(()), timeout=10)
            refused = refusal(call)
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "without a request" in str(refused)


@pytest.mark.parametrize("cause", ["denied", "expired"])
def test_a_client_that_does_not_read_is_cut_off_when_it_may_no_longer_call(
    cause: str,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
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
        caplog.at_level(logging.INFO, "worker_service.audit"),
        running_server(certificates, deny_serials=denied) as server,
        client_for(server.address, certificates.admin) as admin,
        ExitStack() as stack,
    ):
        job_id = admin.start("sh", ["-c", f"head -c {FLOOD_BYTES} /dev/zero; sleep 100"])
        due_s = time.monotonic() + ends.total_seconds()
        files = certificates.authority.write(tmp_path, "caller", Wanted(roles=(USER,), ends=ends))
        stream = stack.enter_context(client_for(server.address, files)).stream(job_id, timeout_s=60)
        next(stream)
        wait_until(lambda: time.monotonic() - sent_at_s[-1] > STALLED_S)
        if cause == "denied":
            due_s = time.monotonic()
            denied.write_text(f"{serial_number(files)}\n")
        wait_until(lambda: server.admission.taken() == 0)
        assert 0 < time.monotonic() - due_s < CUT_WITHIN_S
        [line] = lines_of(caplog, "StreamLogs")
        assert "code=CANCELLED" in line
        assert ("no longer accepted" if cause == "denied" else "expired at") in line
        admin.stop(job_id, grace_s=0)
        del stream


def test_health_is_not_watched_and_reflection_counts_as_a_stream(
    certificates: Certificates,
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with (
        running_server(certificates, max_streams=1) as server,
        channel(server.address, certificates.admin) as connection,
    ):
        with begun(connection, "/grpc.health.v1.Health/Watch", b"") as watch:
            assert refusal(watch).code() is grpc.StatusCode.PERMISSION_DENIED
        with begun(connection, method, request) as first:
            next(first)
            with begun(connection, method, request) as second:
                assert refusal(second).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_status_in_a_line_is_the_one_that_the_client_got(
    server: Server, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    request = health_pb2.HealthCheckRequest(service="nobody's").SerializeToString()
    with (
        caplog.at_level(logging.INFO),
        channel(server.address, certificates.admin) as connection,
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
            lines_of(caplog, rpc) for rpc in ("Check", "ServerReflectionInfo")
        )
    assert "code=NOT_FOUND" in checked
    assert "code=CANCELLED" in reflected
    assert "unexpected error" not in caplog.text


def test_what_a_client_says_makes_neither_a_line_nor_a_status_long(
    server: Server, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "worker_service.audit"),
        client_for(server.address, certificates.admin) as admin,
        channel(server.address, certificates.admin) as connection,
    ):
        for name in ("x" * 100_000, "\N{PILE OF POO}" * 30_000):
            with pytest.raises(CallError, match=r"cut; all were \d+ bytes") as refused:
                admin.start(name)
            assert refused.value.code is grpc.StatusCode.NOT_FOUND
            assert len(str(refused.value)) < 2000
        call: Any = connection.unary_unary("/jobworker.v1.JobWorker/" + "x" * 5000)
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=10)
        lines = [*lines_of(caplog, "StartJob", 2), *lines_of(caplog, "x" * 80)]
    assert all(len(line) < 2000 for line in lines)
