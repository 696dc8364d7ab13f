"""Certificates for the tests: an authority with every knob, and the table of good and bad clients.

RSA keys of 2048 bits, made once a process: their making is what takes time.
"""

import datetime as dt
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

ADMIN_OID: Final = "1.3.6.1.4.1.12345.1.1"
USER_OID: Final = "1.3.6.1.4.1.12345.1.2"
ADMIN_TEXT: Final = b"\x0c\x05Admin"  # DER: UTF8String
USER_TEXT: Final = b"\x0c\x04User"
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
DAY: Final = dt.timedelta(days=1)


@functools.cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """Return a key of some size; the same one for the same arguments."""
    del number
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class CertFiles:
    """Paths of a CA's certificate, a certificate and its key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Role:
    """A role extension, as it will stand in the certificate."""

    oid: str
    der: bytes
    critical: bool = False


ADMIN: Final = Role(ADMIN_OID, ADMIN_TEXT)
USER: Final = Role(USER_OID, USER_TEXT)


@dataclass(frozen=True)
class Wanted:
    """What a certificate shall be; the defaults make a good client without a role."""

    roles: Sequence[Role] = ()
    usages: Sequence[x509.ObjectIdentifier] = (CLIENT,)
    common_name: str = "client"
    key: Callable[[], PrivateKey] = field(default=lambda: rsa_key(2048, 1))
    starts: dt.timedelta = -DAY
    ends: dt.timedelta = 30 * DAY
    names: Sequence[str] = ()
    self_signed: bool = False
    padding_bytes: int = 0


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, common_name: str = "test CA", number: int = 0) -> None:
        self.key = rsa_key(2048, 100 + number)
        self.name = _name(common_name)
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def write(self, directory: Path, name: str, wanted: Wanted) -> CertFiles:
        """Make a certificate and write it with its key, and the CA's, as `certs/out` has them."""
        key = wanted.key()
        certificate = self._sign(key, wanted)
        files = CertFiles(
            directory / "ca.crt", directory / f"{name}.crt", directory / f"{name}.key"
        )
        files.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.touch(mode=0o600)
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _sign(self, key: PrivateKey, wanted: Wanted) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = _name(wanted.common_name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if wanted.self_signed else self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + wanted.starts)
            .not_valid_after(now + wanted.ends)
        )
        if wanted.usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(wanted.usages), critical=False)
        if wanted.names:
            alternatives = [_alternative(name) for name in wanted.names]
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        for role in wanted.roles:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(role.oid), role.der)
            builder = builder.add_extension(extension, critical=role.critical)
        if wanted.padding_bytes:
            padding = x509.UnrecognizedExtension(
                x509.ObjectIdentifier("1.3.6.1.4.1.12345.9"), bytes(wanted.padding_bytes)
            )
            builder = builder.add_extension(padding, critical=False)
        if wanted.self_signed:
            algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
            return builder.sign(key, algorithm)
        return builder.sign(self.key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def server_wanted(names: Sequence[str] = ("localhost", "127.0.0.1")) -> Wanted:
    """Return what a server's certificate shall be."""
    return Wanted(usages=(SERVER,), common_name="server", names=names, key=lambda: rsa_key(2048, 2))


@dataclass(frozen=True)
class Case:
    """A client certificate and the status that a call with it must get.

    `number` is the case's in the catalogue of what a server must refuse. `authority` signs it: the
    server's own ("ours"), a stranger ("other"), or a stranger with our CA's name ("namesake").
    """

    number: int
    name: str
    expected: str
    wanted: Wanted
    authority: str = "ours"


def _client(**changes: object) -> Wanted:
    return Wanted(**({"roles": (ADMIN,)} | changes))  # type: ignore[arg-type]


CASES: Final = (
    Case(0, "admin", "OK", _client()),
    Case(0, "user", "OK", _client(roles=(USER,))),
    Case(0, "elliptic curve", "OK", _client(key=lambda: ec.generate_private_key(ec.SECP256R1()))),
    Case(2, "expired", "UNAVAILABLE", _client(starts=-2 * DAY, ends=-DAY)),
    Case(3, "not yet valid", "UNAVAILABLE", _client(starts=DAY)),
    Case(4, "another CA", "UNAVAILABLE", _client(), "other"),
    Case(5, "another CA with the same subject", "UNAVAILABLE", _client(), "namesake"),
    Case(6, "self-signed", "UNAVAILABLE", _client(self_signed=True)),
    Case(7, "a server's key usage", "UNAVAILABLE", _client(usages=(SERVER,))),
    Case(
        8,
        "any key usage",
        "UNAVAILABLE",
        _client(usages=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)),
    ),
    Case(9, "Ed25519 key", "UNAVAILABLE", _client(key=ed25519.Ed25519PrivateKey.generate)),
    Case(
        10,
        "critical role",
        "UNAVAILABLE",
        _client(roles=(Role(ADMIN_OID, ADMIN_TEXT, critical=True),)),
    ),
    Case(16, "no key usage", "UNAUTHENTICATED", _client(usages=())),
    Case(17, "RSA of 1024 bits", "UNAUTHENTICATED", _client(key=lambda: rsa_key(1024))),
    Case(18, "no role", "PERMISSION_DENIED", _client(roles=())),
    Case(19, "both roles", "PERMISSION_DENIED", _client(roles=(ADMIN, USER))),
    Case(20, "empty role", "PERMISSION_DENIED", _client(roles=(Role(ADMIN_OID, b""),))),
    Case(
        20, "empty text", "PERMISSION_DENIED", _client(roles=(Role(ADMIN_OID, b"\x0c\x00"),))
    ),
    Case(
        20, "role that is no text", "PERMISSION_DENIED",
        _client(roles=(Role(ADMIN_OID, b"\x02\x01\x01"),)),
    ),
    Case(
        20, "role cut short", "PERMISSION_DENIED",
        _client(roles=(Role(ADMIN_OID, b"\x0c\x09Admin"),)),
    ),
    Case(21, "extension of 100 KB", "OK", _client(padding_bytes=100_000)),
    Case(
        22, "admin in the name, no role", "PERMISSION_DENIED",
        _client(roles=(), common_name="admin\0Admin"),
    ),
)  # fmt: skip
