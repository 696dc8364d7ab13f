"""Mutual TLS 1.3 credentials from files, checked before use.

gRPC would accept a key that everyone can read, and report a key that does not match its certificate
as a failed handshake of the first client. Both are detected here, at the start.
"""

import datetime as dt
import logging
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from worker_service import GRPC_IMPORTED_TOO_EARLY
from worker_service.errors import ConfigurationError

logger = logging.getLogger(__name__)

_SELF_CHECK_TIMEOUT_S = 30.0  # long, so that a busy machine does not prevent a start


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths: the CA that both sides trust, and one's own certificate and key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class _Material:
    ca: bytes
    certificate: bytes
    key: bytes


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Return credentials that require a client certificate.

    Renewed files are reloaded automatically: open connections continue, the next handshake uses the
    new files. Invalid files are logged, and the previous ones stay in use.

    Raises:
        ConfigurationError: a file is missing, exposed, expired, or does not match the others.
    """
    _require_tls13_only()
    return grpc.dynamic_ssl_server_credentials(
        _configuration(_load(files)),
        _Reloader(files),  # type: ignore[arg-type] # may return None, which the stubs do not say
        require_client_authentication=True,
    )


def channel_credentials(files: CertificateFiles) -> grpc.ChannelCredentials:
    """Return a client's credentials.

    Raises:
        ConfigurationError: as `server_credentials`.
    """
    _require_tls13_only()
    material = _load(files)
    return grpc.ssl_channel_credentials(
        root_certificates=material.ca,
        private_key=material.key,
        certificate_chain=material.certificate,
    )


def check_refuses_tls12(address: str) -> None:
    """Check that our own server refuses TLS 1.2: gRPC has no setting to rely on.

    Raises:
        ConfigurationError: it accepts TLS 1.2, or does not answer.
    """
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only the version is tested, nothing is sent
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        raw = socket.create_connection((host.strip("[]"), int(port)), _SELF_CHECK_TIMEOUT_S)
    except OSError as error:
        raise ConfigurationError(f"the server at {address} does not answer: {error}") from error
    with raw:
        try:
            context.wrap_socket(raw).close()
        except TimeoutError as error:
            raise ConfigurationError(f"the server at {address} does not answer: {error}") from error
        except (ssl.SSLError, ConnectionError):
            return  # refused by an alert, or by a close with our hello unread, which is a reset
    raise ConfigurationError(
        f"the server at {address} accepted TLS 1.2; this version of grpcio does not honour "
        "GRPC_SSL_CIPHER_SUITES as expected and must not be used"
    )


def _require_tls13_only() -> None:
    if GRPC_IMPORTED_TOO_EARLY:
        raise ConfigurationError(
            "grpc was imported before worker_service, so TLS 1.2 could not be disabled; "
            "import worker_service first"
        )


class _Reloader:
    """Called by gRPC before each handshake: new credentials, or None for no change."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._seen = self._refused = self._stamp()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        stamp = self._stamp()
        if stamp in (self._seen, self._refused):
            return None
        try:
            configuration = _configuration(_load(self._files))
        except ConfigurationError as error:
            # Once for these files: anyone can start handshakes, which must not fill the log.
            self._refused = stamp
            logger.warning("renewed certificates are not used yet: %s", error)
            return None
        self._seen = stamp
        logger.info("renewed certificates are in use: %s", self._files.certificate)
        return configuration

    def _stamp(self) -> tuple[tuple[int, int], ...] | None:
        paths = (self._files.ca, self._files.certificate, self._files.key)
        try:
            return tuple((status.st_ino, status.st_mtime_ns) for status in map(os.stat, paths))
        except OSError:
            return None  # between two renames: loading reports what is missing


def _configuration(material: _Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.ca
    )


def _load(files: CertificateFiles) -> _Material:
    mode = stat.S_IMODE(_stat(files.key).st_mode)
    if mode & 0o077:
        raise ConfigurationError(
            f"key {files.key} has mode {mode:04o}, others can read it; make it 0600 "
            f"(chmod 600 {files.key}) and renew it if it was exposed"
        )
    for path in (files.ca, files.certificate):
        mode = stat.S_IMODE(_stat(path).st_mode)
        if mode & stat.S_IWOTH:  # write access to the CA is enough to become an admin
            raise ConfigurationError(
                f"certificate {path} has mode {mode:04o}, everyone can write it; make it 0644 "
                f"(chmod 644 {path}) and check that it was not replaced"
            )
    material = _Material(*(_read(path) for path in (files.ca, files.certificate, files.key)))
    _check_fits(files, material)
    return material


def _check_fits(files: CertificateFiles, material: _Material) -> None:
    try:
        key = serialization.load_pem_private_key(material.key, password=None)
    except (ValueError, TypeError) as error:
        # The exception's own text could quote the file; only its type is shown.
        raise ConfigurationError(
            f"key {files.key} is not an unencrypted PEM private key ({type(error).__name__})"
        ) from None
    certificate = _certificate(files.certificate, material.certificate)
    if certificate.public_key() != key.public_key():
        raise ConfigurationError(
            f"key {files.key} does not belong to certificate {files.certificate}; "
            "renew the pair (make certs)"
        )
    authority = _certificate(files.ca, material.ca)
    now = dt.datetime.now(dt.UTC)
    for path, each in ((files.certificate, certificate), (files.ca, authority)):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise ConfigurationError(
                f"certificate {path} is valid from {each.not_valid_before_utc:%Y-%m-%d} to "
                f"{each.not_valid_after_utc:%Y-%m-%d}, not now; renew it (make certs)"
            )


def _certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a PEM certificate: {error}") from error


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _missing(path, error) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path}: {error.strerror}; make the certificates (make certs) or set their paths"
    )
