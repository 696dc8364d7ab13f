"""Certificates, their keys and their authority.

RSA keys are generated once a process, since generating them is slow.
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

from harness.dialects.identity_scheme import KeyKind
from harness.host.cert_files import CertFiles
from harness.record.verdict import UnsupportedError

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PrivateKey = SigningKey | ed25519.Ed25519PrivateKey

ADMIN_OID: Final = "1.3.6.1.4.1.12345.1.1"
USER_OID: Final = "1.3.6.1.4.1.12345.1.2"
ADMIN_TEXT: Final = b"\x0c\x05Admin"  # DER: UTF8String
USER_TEXT: Final = b"\x0c\x04User"
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
DAY: Final = dt.timedelta(days=1)

CA_CERT: Final = "ca.crt"
CA_KEY: Final = "ca.key"


@functools.cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """Return an RSA key; the same one for the same arguments."""
    del number
    return rsa.generate_private_key(65537, bits)


@functools.cache
def _curve_key(kind: KeyKind, number: int) -> ec.EllipticCurvePrivateKey:
    del number
    return ec.generate_private_key(ec.SECP384R1() if kind == "ECDSA P-384" else ec.SECP256R1())


def new_key(kind: KeyKind, number: int = 0) -> SigningKey:
    """Return a key of a kind; the same one for the same arguments."""
    if kind.startswith("RSA "):
        return rsa_key(int(kind.removeprefix("RSA ")), number)
    return _curve_key(kind, number)


def serial_number(certificate: CertFiles | str) -> str:
    """Return a certificate's serial number in hexadecimal, from its file or its PEM text."""
    text = certificate if isinstance(certificate, str) else certificate.cert.read_text()
    return f"{x509.load_pem_x509_certificate(text.encode()).serial_number:x}"


@dataclass(frozen=True)
class Role:
    """A role extension of a certificate."""

    oid: str
    der: bytes
    critical: bool = False


ADMIN: Final = Role(ADMIN_OID, ADMIN_TEXT)
USER: Final = Role(USER_OID, USER_TEXT)


@dataclass(frozen=True)
class CertificateSpec:
    """The contents of a certificate; the defaults make a valid client without a role.

    Attributes:
        subject: further attributes of the subject: their OIDs and texts.
        names: the host names and addresses among the alternative names.
        alternatives: further alternative names.
        serial: the serial number; None: a random one.
    """

    roles: Sequence[Role] = ()
    usages: Sequence[x509.ObjectIdentifier] = (CLIENT,)
    common_name: str = "client"
    key: Callable[[], PrivateKey] = field(default=lambda: rsa_key(2048, 1))
    starts: dt.timedelta = -DAY
    ends: dt.timedelta = 30 * DAY
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = ()
    names: Sequence[str] = ()
    alternatives: Sequence[x509.GeneralName] = ()
    self_signed: bool = False
    padding_bytes: int = 0
    serial: int | None = None


def write_key(path: Path, key: PrivateKey) -> None:
    """Write a key that no other user can read, not even for a moment."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


class Authority:
    """A new certificate authority."""

    def __init__(
        self, common_name: str = "test CA", number: int = 0, kind: KeyKind = "RSA 2048"
    ) -> None:
        self.key = new_key(kind, 100 + number)
        self.name = _name(common_name)
        now = dt.datetime.now(dt.UTC)
        self.certificate: x509.Certificate = (
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

    @classmethod
    def load(cls, directory: Path) -> "Authority":
        """Load the authority that `make_identities` wrote to a directory.

        Raises:
            UnsupportedError: its key is missing.
        """
        try:
            key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((directory / CA_CERT).read_bytes())
        except (OSError, ValueError) as error:
            raise UnsupportedError(f"the authority's key in {directory} ({error})") from error
        if not isinstance(key, SigningKey):
            raise UnsupportedError(f"an RSA or ECDSA key of the authority in {directory}")
        authority = cls.__new__(cls)
        authority.key, authority.certificate = key, certificate
        authority.name = certificate.subject
        return authority

    def write(self, directory: Path, name: str, spec: CertificateSpec) -> CertFiles:
        """Make a certificate; write it, its key and the CA's certificate, as in `certs/out`."""
        (directory / CA_CERT).write_bytes(self._pem(self.certificate))
        return self.write_pair(directory, name, spec)

    def write_pair(self, directory: Path, name: str, spec: CertificateSpec) -> CertFiles:
        """Make a certificate; write it and its key. The CA's certificate is not written."""
        key = spec.key()
        files = CertFiles(directory / CA_CERT, directory / f"{name}.crt", directory / f"{name}.key")
        files.cert.write_bytes(self._pem(self._sign(key, spec)))
        write_key(files.key, key)
        return files

    @staticmethod
    def _pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(self, key: PrivateKey, spec: CertificateSpec) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = _name(spec.common_name, spec.subject)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if spec.self_signed else self.name)
            .public_key(key.public_key())
            .serial_number(spec.serial or x509.random_serial_number())
            .not_valid_before(now + spec.starts)
            .not_valid_after(now + spec.ends)
        )
        if spec.usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(spec.usages), critical=False)
        alternatives = [*map(_alternative, spec.names), *spec.alternatives]
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        for role in spec.roles:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(role.oid), role.der)
            builder = builder.add_extension(extension, critical=role.critical)
        if spec.padding_bytes:
            padding = x509.UnrecognizedExtension(
                x509.ObjectIdentifier("1.3.6.1.4.1.12345.9"), bytes(spec.padding_bytes)
            )
            builder = builder.add_extension(padding, critical=False)
        if spec.self_signed:
            algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
            return builder.sign(key, algorithm)
        return builder.sign(self.key, hashes.SHA256())


def _name(common_name: str, more: Sequence[tuple[x509.ObjectIdentifier, str]] = ()) -> x509.Name:
    pairs = (*more, (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in pairs])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def server_spec(
    names: Sequence[str] = ("localhost", "127.0.0.1"), kind: KeyKind = "RSA 2048"
) -> CertificateSpec:
    """Return the contents of a server's certificate."""
    return CertificateSpec(
        usages=(SERVER,), common_name="server", names=names, key=lambda: new_key(kind, 2)
    )
