"""Credentials from files, and the check that our own server refuses TLS 1.2."""

import shutil
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.drive.identities import ADMIN, Authority, CertificateSpec, server_spec
from worker_service.errors import ConfigurationError
from worker_service.tls import CertificateFiles, check_refuses_tls12, server_credentials


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    written = Authority().write(tmp_path, "server", server_spec())
    return CertificateFiles(written.ca, written.cert, written.key)


def _expose_key(files: CertificateFiles) -> None:
    files.key.chmod(0o640)


def _write_for_everyone(files: CertificateFiles) -> None:
    files.ca.chmod(0o666)


def _swap_key(files: CertificateFiles) -> None:
    other = Authority().write_pair(files.key.parent, "other", CertificateSpec(roles=(ADMIN,)))
    shutil.copy(other.key, files.key)


def _garble_key(files: CertificateFiles) -> None:
    files.key.write_text("not a key")


def _remove_certificate(files: CertificateFiles) -> None:
    files.certificate.unlink()


def test_server_credentials_accepts_a_matching_pair(files: CertificateFiles) -> None:
    assert server_credentials(files) is not None


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_expose_key, "has mode 0640, others can read it"),
        (_write_for_everyone, "has mode 0666, everyone can write it"),
        (_swap_key, "does not belong to certificate"),
        (_garble_key, "is not an unencrypted PEM private key"),
        (_remove_certificate, "No such file"),
    ],
    ids=["exposed key", "writable CA", "other key", "malformed key", "missing certificate"],
)
def test_server_credentials_rejects_unsafe_or_mismatched_files(
    damage: Callable[[CertificateFiles], None], text: str, files: CertificateFiles
) -> None:
    damage(files)
    with pytest.raises(ConfigurationError, match=text):
        server_credentials(files)


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept one connection in place of our server, and yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        accepting = pool.submit(accept)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        accepting.result(10)


def test_check_refuses_tls12_rejects_a_server_that_accepts_it(files: CertificateFiles) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def accept(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    with (
        answering(accept) as address,
        pytest.raises(ConfigurationError, match=r"accepted TLS 1\.2"),
    ):
        check_refuses_tls12(address)


@pytest.mark.parametrize("linger", [b"", struct.pack("ii", 1, 0)], ids=["closed", "reset"])
def test_check_refuses_tls12_takes_a_closed_or_reset_connection_as_refusal(linger: bytes) -> None:
    def hang_up(connection: socket.socket) -> None:
        connection.recv(1)  # the client's hello has arrived, and the rest of it stays unread
        if linger:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with answering(hang_up) as address:
        check_refuses_tls12(address)


def test_check_refuses_tls12_rejects_a_server_that_does_not_answer() -> None:
    with pytest.raises(ConfigurationError, match="does not answer"):
        check_refuses_tls12("127.0.0.1:1")
