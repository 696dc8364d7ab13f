"""Every client certificate that must be refused, and every TLS version but 1.3.

The numbers are those of the project's catalogue of cases.
"""

import datetime as dt
import socket
import ssl
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from harness.drive.identities import (
    ADMIN,
    CASES,
    USER,
    Authority,
    Case,
    Wanted,
    server_wanted,
)
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from tests.support.service import Certificates, client_for, running_server
from worker_service.client import CallError, Client
from worker_service.errors import ConfigurationError
from worker_service.server import Server
from worker_service.tls import check_refuses_tls12

UNKNOWN_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


def status_of_a_query(server: Server, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    """Query an unknown job: NOT_FOUND shows that the caller got through."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(server.address, credentials, options) as channel:
        stub = jobworker_pb2_grpc.JobWorkerStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.QueryJob(pb.QueryJobRequest(job_id=UNKNOWN_ID), timeout=15)
    code: grpc.StatusCode = refused.value.code()
    return code


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number}-{case.name}")
def test_a_client_certificate_gets_the_status_that_it_deserves(
    case: Case, server: Server, certificates: Certificates, tmp_path: Path
) -> None:
    authority = {
        "ours": certificates.authority,
        "other": Authority("other CA", 1),
        "namesake": Authority("test CA", 2),
    }[case.authority]
    files = authority.write(tmp_path, "client", case.wanted)
    credentials = grpc.ssl_channel_credentials(
        certificates.server.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
    )
    expected = grpc.StatusCode.NOT_FOUND if case.expected == "OK" else None
    expected = expected or getattr(grpc.StatusCode, case.expected)
    assert status_of_a_query(server, credentials) is expected


def test_1_a_client_without_a_certificate_is_refused(
    server: Server, certificates: Certificates
) -> None:
    credentials = grpc.ssl_channel_credentials(certificates.server.ca.read_bytes())
    assert status_of_a_query(server, credentials) is grpc.StatusCode.UNAVAILABLE


def test_11_plaintext_is_refused(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = jobworker_pb2_grpc.JobWorkerStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.QueryJob(pb.QueryJobRequest(job_id=UNKNOWN_ID), timeout=15)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_12_a_client_refuses_a_server_of_another_name(
    certificates: Certificates, tmp_path: Path
) -> None:
    files = certificates.authority.write(tmp_path, "server", server_wanted(("example.org",)))
    with (
        running_server(certificates, cert=files.cert, key=files.key) as elsewhere,
        client_for(elsewhere.address, certificates.admin) as client,
        pytest.raises(CallError) as refused,
    ):
        client.query(UNKNOWN_ID)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def test_13_a_client_that_trusts_another_ca_refuses_the_server(
    server: Server, certificates: Certificates, tmp_path: Path
) -> None:
    stranger = Authority("other CA", 1).write(tmp_path, "stranger", Wanted(roles=(ADMIN,)))
    files = certificates.admin
    credentials = grpc.ssl_channel_credentials(
        stranger.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
    )
    assert status_of_a_query(server, credentials) is grpc.StatusCode.UNAVAILABLE


def s_client(server: Server, certificates: Certificates, *options: str) -> str:
    """Run openssl's own client, ended by its empty input, and return what it says."""
    files = certificates.admin
    done = subprocess.run(
        [
            "openssl", "s_client", "-connect", server.address, "-CAfile", str(files.ca),
            "-cert", str(files.cert), "-key", str(files.key), "-alpn", "h2", *options,
        ],
        input=b"", capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    return (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_14_openssl_is_refused_every_version_below_tls_13(
    version: str, server: Server, certificates: Certificates
) -> None:
    # SECLEVEL=0: so that it is the server that refuses, and not openssl's own policy.
    said = s_client(server, certificates, version, "-cipher", "ALL:@SECLEVEL=0")
    assert "CONNECTED(" in said
    assert "Cipher is (NONE)" in said
    assert "no peer certificate available" in said


def test_14_openssl_gets_tls_13(server: Server, certificates: Certificates) -> None:
    said = s_client(server, certificates, "-tls1_3")
    assert "New, TLSv1.3, Cipher is TLS_" in said
    assert "ALPN protocol: h2" in said
    assert "Verify return code: 0 (ok)" in said


def test_a_server_that_accepts_tls_12_does_not_start(tmp_path: Path) -> None:
    # Another server stands in for ours: one whose TLS was not restricted.
    files = Authority("lax CA", 3).write(tmp_path, "server", server_wanted())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True):
                return

        accepting = pool.submit(accept)
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=r"accepted TLS 1\.2"):
            check_refuses_tls12(f"127.0.0.1:{port}")
        accepting.result(10)


@pytest.mark.parametrize("linger", [b"", struct.pack("ii", 1, 0)], ids=["closed", "reset"])
def test_a_server_that_hangs_up_on_tls_12_has_refused_it(linger: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)  # the client's hello has come, and the rest of it stays unread
                if linger:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        hanging_up = pool.submit(hang_up)
        check_refuses_tls12(f"127.0.0.1:{listener.getsockname()[1]}")
        hanging_up.result(10)


def test_a_server_that_is_not_there_is_not_taken_for_one_that_refuses() -> None:
    with pytest.raises(ConfigurationError, match="does not answer"):
        check_refuses_tls12("127.0.0.1:1")


def test_15_a_connection_that_does_not_speak_http2_gets_nowhere(
    server: Server, certificates: Certificates
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.server.ca))
    context.load_cert_chain(certificates.admin.cert, certificates.admin.key)
    context.set_alpn_protocols(["http/1.1"])
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=15) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=host) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = connection.recv(4096)
        except OSError:
            answer = b""
    assert not answer.startswith(b"HTTP/1.1 200")


def test_25_a_stream_ends_when_its_clients_certificate_expires(
    server: Server, certificates: Certificates, admin: Client, tmp_path: Path
) -> None:
    job_id = admin.start("sh", ["-c", "echo ready; sleep 100"])
    wanted = Wanted(roles=(USER,), ends=dt.timedelta(seconds=5))
    files = certificates.authority.write(tmp_path, "expiring", wanted)
    with client_for(server.address, files) as client:
        stream = client.stream(job_id, timeout_s=60)
        assert next(stream).data == b"ready\n"
        started_s = time.monotonic()
        with pytest.raises(CallError, match="expired") as ended:
            next(stream)
        assert ended.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - started_s < 10
        # The connection is still there, as a resumed session would be (24); the caller is not.
        with pytest.raises(CallError, match="expired") as refused:
            client.query(job_id)
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
    admin.stop(job_id, grace_s=0)


def test_26_renewed_certificates_are_used_without_a_restart_and_streams_live_on(
    certificates: Certificates, tmp_path: Path
) -> None:
    first = certificates.authority.write(tmp_path, "server", server_wanted())
    with (
        running_server(certificates, cert=first.cert, key=first.key) as server,
        client_for(server.address, certificates.admin) as client,
    ):
        job_id = client.start("sh", ["-c", "echo ready; sleep 100"])
        stream = client.stream(job_id, timeout_s=60)
        next(stream)
        before = _serial(server)
        certificates.authority.write(tmp_path, "server", server_wanted())
        after = _serial(server)
        assert before != after
        with client_for(server.address, certificates.admin) as another:
            assert another.stop(job_id, grace_s=0)
        assert list(stream) == []


def test_26_renewed_files_that_do_not_fit_are_told_once_and_the_old_ones_stay(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = certificates.authority.write(tmp_path, "server", server_wanted())
    with running_server(certificates, cert=first.cert, key=first.key) as server:
        before = _serial(server)
        first.key.write_text("no key")
        assert {_serial(server) for _ in range(3)} == {before}
        assert caplog.text.count("renewed certificates are not used yet") == 1
        certificates.authority.write(tmp_path, "server", server_wanted())
        assert _serial(server) != before


def _serial(server: Server) -> bytes:
    """Return the certificate that a new handshake is shown."""
    host, _, port = server.address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=15).encode()
