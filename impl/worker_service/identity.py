"""Authentication and authorization: certificate -> role -> rpcs; deny by default.

The role is an extension of the client's certificate, identified by its object identifier; the text
in it is informative, and no name in the certificate has any effect. Everything is checked on every
call and again during long streams, because a resumed TLS session outlives its certificate.
"""

import datetime as dt
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from worker_service.errors import NotAuthenticatedError, NotPermittedError

AuthContext = Mapping[str, Sequence[bytes]]  # as `ServicerContext.auth_context` returns it

RSA_MIN_BITS: Final = 2048
EC_MIN_BITS: Final = 256
_CACHED_CERTIFICATES: Final = 512

# DER tags of the string types that a role's text may have: UTF8String, PrintableString, IA5String.
_STRING_TAGS: Final = frozenset({0x0C, 0x13, 0x16})
_SHORT_FORM_MAX: Final = 127


class Role(StrEnum):
    """The role that a certificate gives its holder."""

    ADMIN = "admin"
    USER = "user"


ROLE_OIDS: Final = {
    x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.1"): Role.ADMIN,
    x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.2"): Role.USER,
}

_ADMINS: Final = frozenset({Role.ADMIN})
_EVERYBODY: Final = frozenset({Role.ADMIN, Role.USER})

# The one table of permissions. A method that is not listed is refused to every role.
PERMISSIONS: Final[Mapping[str, frozenset[Role]]] = {
    "/jobworker.v1.JobWorker/StartJob": _ADMINS,
    "/jobworker.v1.JobWorker/StopJob": _ADMINS,
    "/jobworker.v1.JobWorker/QueryJob": _EVERYBODY,
    "/jobworker.v1.JobWorker/StreamLogs": _EVERYBODY,
    "/jobworker.v1.JobWorker/ListJobs": _ADMINS,
    "/jobworker.v1.JobWorker/DeleteJob": _ADMINS,
    "/grpc.health.v1.Health/Check": _EVERYBODY,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _ADMINS,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ADMINS,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller, authenticated by a client certificate.

    `role` is None if the certificate gives no valid one; `role_problem` is the reason.
    """

    serial_number: int
    not_before: dt.datetime
    not_after: dt.datetime
    role: Role | None
    role_problem: str = ""

    def valid_for_s(self) -> float:
        """Return the seconds left until the certificate expires.

        Raises:
            NotAuthenticatedError: it has expired, or is not valid yet.
        """
        now = dt.datetime.now(dt.UTC)
        if now < self.not_before:
            wait_s = math.ceil((self.not_before - now).total_seconds())
            raise NotAuthenticatedError(
                "the client certificate is not valid before "
                f"{self.not_before:%Y-%m-%d %H:%M:%SZ}, {wait_s} s from now by the server's clock; "
                "wait, or set that clock if it is behind"
            )
        if now > self.not_after:
            raise NotAuthenticatedError(
                f"the client certificate expired at {self.not_after:%Y-%m-%d %H:%M:%SZ}; renew it"
            )
        return (self.not_after - now).total_seconds()


def identify(auth_context: AuthContext) -> Identity:
    """Return the authenticated caller.

    Raises:
        NotAuthenticatedError: the connection does not use mutual TLS 1.3, or the certificate is
            expired, weak, or not for clients.
    """
    version = b"".join(auth_context.get("ssl_tls_version", ()))
    if version != b"TLSv1.3":
        raise NotAuthenticatedError(
            f"the connection uses {version.decode('ascii', 'replace') or 'no TLS'}; "
            "TLS 1.3 is required"
        )
    certificates = auth_context.get("x509_pem_cert", ())
    if len(certificates) != 1:
        raise NotAuthenticatedError("no client certificate was presented; one is required")
    identity = _parse(certificates[0])
    identity.valid_for_s()
    return identity


def authorize(identity: Identity, method: str) -> Role:
    """Return the caller's role if it is allowed to call a method.

    Raises:
        NotPermittedError: it is not, or `PERMISSIONS` does not list the method.
    """
    if identity.role is None:
        raise NotPermittedError(
            f"{identity.role_problem}; a client certificate needs exactly one role, admin or user"
        )
    if identity.role not in PERMISSIONS.get(method, frozenset()):
        raise NotPermittedError(
            f"role {identity.role} is not allowed to call {method.rpartition('/')[2]}; "
            "use a certificate with another role"
        )
    return identity.role


@functools.lru_cache(maxsize=_CACHED_CERTIFICATES)
def _parse(pem: bytes) -> Identity:
    """Read the constant parts of a certificate; its validity is checked on every call."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions, key = certificate.extensions, certificate.public_key()
        serial_number = certificate.serial_number
        validity = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as error:
        # cryptography's errors have no common base: ValueError, DuplicateExtension, InvalidVersion,
        # UnsupportedGeneralNameType (a name in the SAN), UnsupportedAlgorithm (the key) and more.
        # A certificate that cannot be read authenticates no caller; the fault is its own.
        raise NotAuthenticatedError(f"the client certificate cannot be read: {error}") from error
    _check_key(key)
    _check_purpose(extensions)
    role, problem = _role(extensions)
    return Identity(serial_number, *validity, role, problem)


def _check_key(key: CertificatePublicKeyTypes) -> None:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_MIN_BITS:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= EC_MIN_BITS:
        return
    size = getattr(key, "key_size", "unknown")
    raise NotAuthenticatedError(
        f"the client certificate's key is {type(key).__name__} of {size} bits; use RSA of at least "
        f"{RSA_MIN_BITS} bits or an elliptic curve of at least {EC_MIN_BITS}"
    )


def _check_purpose(extensions: x509.Extensions) -> None:
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise NotAuthenticatedError(
            "the certificate is not for clients; its extended key usage must include clientAuth"
        )


def _role(extensions: x509.Extensions) -> tuple[Role | None, str]:
    found = [extension for extension in extensions if extension.oid in ROLE_OIDS]
    if not found:
        return None, "the client certificate has no role"
    if len(found) > 1:
        return None, "the client certificate has more than one role"
    value = found[0].value
    if not isinstance(value, x509.UnrecognizedExtension) or not _is_text(value.value):
        return None, "the role in the client certificate is empty or malformed"
    return ROLE_OIDS[found[0].oid], ""


def _is_text(der: bytes) -> bool:
    """Return whether this is exactly one DER string that is not blank."""
    header_bytes = 2
    if len(der) <= header_bytes or der[0] not in _STRING_TAGS:
        return False
    if der[1] > _SHORT_FORM_MAX or der[1] != len(der) - header_bytes:
        return False
    try:
        return bool(der[header_bytes:].decode("utf-8").strip())
    except UnicodeDecodeError:
        return False
