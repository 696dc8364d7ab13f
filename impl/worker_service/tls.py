"""Mutual TLS 1.3 credentials from files, checked before use.

gRPC would accept a key that everyone can read, and report a key that does not match its certificate
as a failed handshake of the first client. Both are detected here, at the start.
"""

import datetime as dt
import logging
import math
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from worker_service import GRPC_IMPORTED_TOO_EARLY
from worker_service.errors import ConfigurationError
from worker_service.watched_files import Contents, WatchedFiles, read_files

logger = logging.getLogger(__name__)

_ADVICE: Final = "make the certificates (make certs) or set their paths"
_SELF_CHECK_TIMEOUT_S: Final = 30.0  # long, so that a busy machine does not prevent a start


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths: the CA that both sides trust, and one's own certificate and key."""

    ca: Path
    certificate: Path
    key: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """All three, in this order."""
        return self.ca, self.certificate, self.key


@dataclass(frozen=True, slots=True)
class _Material:
    authorities: tuple[x509.Certificate, ...]
    certificate: bytes
    key: bytes
    server_expires_at_s: float

    def trusted(self) -> bytes:
        """Return the authorities that are valid now, for gRPC.

        A bundle keeps an expired authority beside its successor, often of the same subject. gRPC's
        TLS library takes the first of a subject, and fails the handshake if that has expired. If
        none is valid, it gets all and fails all handshakes; it must never trust an empty list.
        """
        valid = [each for each in self.authorities if _is_valid_now(each)] or self.authorities
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in valid)


def channel_credentials(files: CertificateFiles) -> grpc.ChannelCredentials:
    """Return a client's credentials.

    Raises:
        ConfigurationError: as `Reloader`.
    """
    _require_tls13_only()
    material = _accept(read_files(files.paths, _ADVICE))
    return grpc.ssl_channel_credentials(
        root_certificates=material.trusted(),
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


class Reloader:
    """A server's certificates, of which gRPC gets the new ones at the next handshake.

    Renewed files are reloaded automatically: open connections continue, the next handshake uses the
    new files. Invalid files are logged, and the previous ones stay in use.

    Raises:
        ConfigurationError: a file is missing, exposed, not valid now, or does not match the others.
    """

    def __init__(self, files: CertificateFiles) -> None:
        _require_tls13_only()
        self._files = files
        self._watched = WatchedFiles(
            files.paths,
            lambda contents, _: _accept(contents),
            refusal="renewed certificates are not used yet",
            advice=_ADVICE,
        )
        material = self._watched.current()
        self._used = material, material.trusted()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return new credentials, or None for no change; gRPC calls it before each handshake."""
        material = self._watched.current()
        trusted = material.trusted()
        if (material, trusted) == self._used:
            return None
        self._used = material, trusted
        logger.info("renewed certificates are in use: %s", self._files.certificate)
        return self.configuration()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that require a client certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self.configuration(),
            self,  # type: ignore[arg-type] # may return None, which the stubs do not say
            require_client_authentication=True,
        )

    def expiries_s(self) -> dict[str, float]:
        """Return when the certificates expire that the next handshake uses: `server` and `ca`.

        In seconds since the epoch; of several authorities, of the one that is valid longest.
        """
        material = self._watched.current()
        ca_s = max(each.not_valid_after_utc.timestamp() for each in material.authorities)
        return {"server": material.server_expires_at_s, "ca": ca_s}

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the files in use, for gRPC."""
        material, trusted = self._used
        return grpc.ssl_server_certificate_configuration(
            [(material.key, material.certificate)], root_certificates=trusted
        )


def _accept(contents: Sequence[Contents]) -> _Material:
    """Check the CA, the certificate and the key; the key last, since that takes longest.

    Raises:
        ConfigurationError: see `Reloader`.
    """
    ca, certificate, key = contents
    if key.mode & 0o077:
        raise ConfigurationError(
            f"key {key.path} has mode {key.mode:04o}, others can read it; make it 0600 "
            f"(chmod 600 {key.path}) and renew it if it was exposed"
        )
    for each in (ca, certificate):
        if each.everyone_can_write:  # write access to the CA is enough to become an admin
            raise ConfigurationError(
                f"certificate {each.path} has mode {each.mode:04o}, everyone can write it; make it "
                f"0644 (chmod 644 {each.path}) and check that it was not replaced"
            )
    chain, authorities = _certificates(certificate), _certificates(ca)
    _check_dates(certificate.path, chain[0])
    if not any(map(_is_valid_now, authorities)):
        _check_dates(ca.path, max(authorities, key=lambda each: each.not_valid_after_utc))
    if _public_key(certificate.path, chain[0]) != _private_key(key).public_key():
        raise ConfigurationError(
            f"key {key.path} does not belong to certificate {certificate.path}; "
            "renew the pair (make certs)"
        )
    expires_at_s = chain[0].not_valid_after_utc.timestamp()
    return _Material(tuple(authorities), certificate.data, key.data, expires_at_s)


def _is_valid_now(certificate: x509.Certificate) -> bool:
    now = dt.datetime.now(dt.UTC)
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = dt.datetime.now(dt.UTC)
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < starts:
        wait_s = math.ceil((starts - now).total_seconds())
        raise ConfigurationError(
            f"certificate {path} is not valid before {starts:%Y-%m-%d %H:%M:%SZ}, {wait_s} s from "
            "now; wait, or set this machine's clock if it is behind"
        )
    if now > ends:
        raise ConfigurationError(
            f"certificate {path} expired at {ends:%Y-%m-%d %H:%M:%SZ}; renew it (make certs)"
        )


# cryptography's errors have no common base: ValueError, TypeError, UnsupportedAlgorithm,
# InvalidVersion and more. Whatever it raises for a file, the file is what is wrong.


def _certificates(file: Contents) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.data)
    except Exception as error:
        raise ConfigurationError(f"{file.path} is not a PEM certificate: {error}") from error


def _public_key(path: Path, certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except Exception as error:
        raise ConfigurationError(f"certificate {path} has no usable key: {error}") from error


def _private_key(file: Contents) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(file.data, password=None)
    except Exception as error:  # noqa: BLE001 - see above
        # The exception's own text could quote the file; only its type is shown.
        raise ConfigurationError(
            f"key {file.path} is not an unencrypted PEM private key ({type(error).__name__})"
        ) from None
