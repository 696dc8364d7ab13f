"""What the gate does to every call: one audit line, and a refusal unless it is listed."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from harness.clock import poll_until
from harness.identities import ADMIN, USER, CertFiles, Wanted, serial_number
from tests.support.service import Certificates, client_for, running_server
from worker_service import server as server_module
from worker_service.client import CallError
from worker_service.identity import PERMISSIONS, Role
from worker_service.server import Server
from worker_service.tls import CertificateFiles, channel_credentials

TOMORROW = "/jobworker.v1.JobWorker/Tomorrow"


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
    assert f"job={job_id} role=user serial={user_serial}" in refused
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
