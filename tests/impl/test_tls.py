"""Credentials from files, and the check that our own server refuses TLS 1.2."""

import datetime as dt
import math
import os
import shutil
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self
from unittest import mock

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from harness.drive.certificates import ADMIN, Authority, CertificateSpec, server_spec
from harness.host.clock import poll_until
from harness.host.processes import run
from worker_service import watched_files
from worker_service.errors import ConfigurationError
from worker_service.tls import (
    CertificateFiles,
    Reloader,
    channel_credentials,
    check_refuses_tls12,
)


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
    assert Reloader(files).credentials() is not None


_LOADS = "from worker_service.tls import Reloader; Reloader(None)"


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ("import grpc, worker_service", "ConfigurationError: grpc was imported before"),
        ("import worker_service, grpc", "AttributeError"),  # its argument is looked at
    ],
)
def test_server_credentials_refuses_a_grpc_that_was_imported_before_tls12_was_off(
    imports: str, expected: str
) -> None:
    environment = {**os.environ}
    environment.pop("GRPC_SSL_CIPHER_SUITES", None)  # this process has set it
    done = run([sys.executable, "-c", f"{imports}; {_LOADS}"], 60, environment=environment)
    assert expected in done.stderr.splitlines()[-1]


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
        Reloader(files).credentials()


def test_certificate_that_starts_soon_is_refused_with_the_seconds(tmp_path: Path) -> None:
    spec = replace(server_spec(), starts=dt.timedelta(seconds=30))
    written = Authority().write(tmp_path, "server", spec)
    with pytest.raises(ConfigurationError, match=r"not valid before .*Z, (29|30) s from now; wait"):
        Reloader(CertificateFiles(written.ca, written.cert, written.key)).credentials()


def test_renewed_certificate_is_used_once_it_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_files, "RETRY_S", 0)
    authority = Authority()
    written = authority.write(tmp_path, "server", server_spec())
    reloader = Reloader(CertificateFiles(written.ca, written.cert, written.key))
    # The files have times in whole seconds.
    starts_s = math.ceil(time.time()) + 1
    starts = dt.timedelta(seconds=starts_s - time.time())
    authority.write(tmp_path, "server", replace(server_spec(), starts=starts))
    assert reloader() is None
    assert reloader() is None
    poll_until(lambda: time.time() >= starts_s or None, 10, "the certificate's first second")
    assert reloader() is not None
    assert caplog.text.count("renewed certificates are not used yet") == 1


def _authority(authority: Authority, days_until_end: int) -> bytes:
    """Return an authority's certificate as it was renewed: same name and key, another end."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.name)
        .issuer_name(authority.name)
        .public_key(authority.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=30))
        .not_valid_after(now + dt.timedelta(days=days_until_end))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    certificate = builder.sign(authority.key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("ends", [(-1, 30), (30, -1), (-2, -1, 30)], ids=str)
def test_handshake_uses_the_valid_authority_of_a_bundle(
    ends: tuple[int, ...], tmp_path: Path
) -> None:
    authority = Authority()
    written = authority.write(tmp_path, "server", server_spec())
    client = authority.write_pair(tmp_path, "client", CertificateSpec(roles=(ADMIN,)))
    written.ca.write_bytes(b"".join(_authority(authority, days) for days in ends))
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = Reloader(CertificateFiles(written.ca, written.cert, written.key)).credentials()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    ours = channel_credentials(CertificateFiles(client.ca, client.cert, client.key))
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", ours) as channel:
            grpc.channel_ready_future(channel).result(20)  # raises unless the handshake succeeds
    finally:
        server.stop(None).wait(20)


def test_bundle_without_a_valid_authority_is_refused(files: CertificateFiles) -> None:
    authority = Authority()
    files.ca.write_bytes(_authority(authority, -9) + _authority(authority, -1))
    with pytest.raises(ConfigurationError, match=r"ca\.crt expired at .*; renew it"):
        Reloader(files).credentials()


def test_authority_that_expired_since_the_start_is_dropped(files: CertificateFiles) -> None:
    authority = Authority()
    files.ca.write_bytes(_authority(authority, 1) + _authority(authority, 30))
    reloader = Reloader(files)
    assert reloader() is None
    with mock.patch("worker_service.tls.dt.datetime", Tomorrow):
        assert reloader() is not None
        assert reloader() is None


class Tomorrow(dt.datetime):
    """The clock, two days ahead."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return super().now(tz) + dt.timedelta(days=2)


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
