"""A set-up error is told once, with the side that refused, its reason and what to change."""

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from harness.dialects.load import load_dialect
from harness.drive.certificates import Authority, server_spec
from harness.drive.reachability import require_job_worker
from harness.host.cert_files import CertFiles
from harness.host.ports import free_port
from harness.record.verdict import BrokenError
from tests.support.service import Certificates, running_server

TIMEOUT_S = 5.0
BACKLOG = 8
OTHER_AUTHORITY = 3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def refusal(address: str, files: CertFiles, timeout_s: float = TIMEOUT_S) -> str:
    with pytest.raises(BrokenError) as caught:
        require_job_worker(address, files, timeout_s=timeout_s)
    return str(caught.value)


@contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept connections until the context ends, and serve each on this one thread."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:

        def run() -> None:
            with suppress(OSError):  # shut down at the end
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(TIMEOUT_S)
                        serve(connection)

        thread = threading.Thread(target=run, name="accepting")
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def grpc_server(credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    """Run a gRPC server without any service."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_job_worker_is_judged(certificates: Certificates) -> None:
    with running_server(certificates) as server:
        require_job_worker(server.address, certificates.admin)


def test_closed_port(certificates: Certificates) -> None:
    text = refusal(f"127.0.0.1:{free_port()}", certificates.admin)
    assert "no connection: Connection refused; start the server, or correct the address" in text


def test_name_that_does_not_resolve(certificates: Certificates) -> None:
    text = refusal("no-such-host.invalid:50051", certificates.admin)
    assert "no connection: " in text
    assert "correct the address" in text


def test_port_that_accepts_and_says_nothing(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        text = refusal(address, certificates.admin, 0.3)
    assert "accepted the connection and did not answer within 0.3 s" in text


def test_port_that_hangs_up(certificates: Certificates) -> None:
    with accepting(lambda connection: connection.shutdown(socket.SHUT_RDWR)) as address:
        text = refusal(address, certificates.admin)
    assert "ended the connection without a reason" in text


def test_server_without_tls(certificates: Certificates) -> None:
    with grpc_server(None) as address:
        text = refusal(address, certificates.admin)
    assert "it does not speak TLS: wrong version number; start it with TLS" in text


def test_server_of_another_authority(certificates: Certificates, tmp_path: Path) -> None:
    other = Authority("another CA", OTHER_AUTHORITY)
    admin = certificates.admin
    files = other.write(tmp_path, "server", server_spec())
    with running_server(certificates) as server:
        text = refusal(server.address, replace(admin, ca=files.ca))
        with pytest.raises(BrokenError, match=r"identities DIR --name HOST --scheme nixpig` made"):
            require_job_worker(server.address, replace(admin, ca=files.ca), load_dialect("nixpig"))
    assert "this side refused the server's certificate: " in text
    assert "self-signed certificate" in text or "unable to get local issuer" in text
    assert "identities DIR" in text


def test_server_of_another_name(certificates: Certificates) -> None:
    spec = server_spec(["worker.example"])
    files = certificates.authority.write_pair(certificates.directory, "named", spec)
    with tls_server(files) as address:
        text = refusal(address, certificates.admin)
    assert "this side refused the server's certificate: " in text
    assert "mismatch" in text


def test_server_whose_certificate_has_expired(certificates: Certificates) -> None:
    spec = replace(server_spec(), ends=-dt.timedelta(hours=1))
    files = certificates.authority.write_pair(certificates.directory, "expired", spec)
    with tls_server(files) as address:
        text = refusal(address, certificates.admin)
    assert "this side refused the server's certificate: certificate has expired" in text


def test_client_certificate_that_the_server_refuses(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Authority("another CA", OTHER_AUTHORITY).write(tmp_path, "admin", server_spec())
    files = replace(certificates.admin, cert=other.cert, key=other.key)
    with running_server(certificates) as server:
        text = refusal(server.address, files)
    assert "refused this side's certificate" in text or "without a reason" in text
    assert "start the server with the ca.crt" in text


def test_server_that_names_why_it_refuses_the_client(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Authority("another CA", OTHER_AUTHORITY).write(tmp_path, "admin", server_spec())
    files = replace(certificates.admin, cert=other.cert, key=other.key)
    with tls_server(certificates.server) as address:
        text = refusal(address, files)
    assert "the server refused this side's certificate: " in text
    assert "unknown ca" in text


def test_server_of_tls_1_2(certificates: Certificates) -> None:
    with tls_server(certificates.server, version=ssl.TLSVersion.TLSv1_2) as address:
        text = refusal(address, certificates.admin)
    assert "the server refused TLS 1.3: " in text
    assert "protocol version" in text


def test_server_without_http2(certificates: Certificates) -> None:
    with tls_server(certificates.server, protocols=["http/1.1"]) as address:
        text = refusal(address, certificates.admin)
    assert "HTTP/2" in text or "no application protocol" in text


def test_grpc_server_that_is_no_job_worker(certificates: Certificates) -> None:
    files = certificates.server
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())], files.ca.read_bytes(), True
    )
    with grpc_server(credentials) as address:
        text = refusal(address, certificates.admin)
    assert "it has no rpc jobworker.v1.JobWorker/QueryJob (UNIMPLEMENTED)" in text


@contextmanager
def tls_server(
    files: CertFiles,
    *,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    protocols: list[str] | None = None,
) -> Iterator[str]:
    """Run a TLS server of OpenSSL, which requires a client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(protocols or ["h2"])

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            while secured.recv(4096):
                pass

    with accepting(serve) as address:
        yield address
