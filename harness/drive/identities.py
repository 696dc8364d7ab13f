"""The harness's own certificates: a configurable authority, a table of valid and invalid clients.

`make_identities` writes a directory with all of them: a server is started with its `ca.crt`,
`server.crt` and `server.key`; the harness calls it with the others. A new client certificate is one
row of `CASES`.

RSA keys of 2048 bits are generated once a process, since generating them is slow.
"""

import datetime as dt
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness.host.cert_files import CertFiles
from harness.record.verdict import BrokenError, UnsupportedError

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

ADMIN_OID: Final = "1.3.6.1.4.1.12345.1.1"
USER_OID: Final = "1.3.6.1.4.1.12345.1.2"
ADMIN_TEXT: Final = b"\x0c\x05Admin"  # DER: UTF8String
USER_TEXT: Final = b"\x0c\x04User"
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
DAY: Final = dt.timedelta(days=1)
FOREVER: Final = dt.datetime(9999, 12, 31, tzinfo=dt.UTC) - dt.datetime.now(dt.UTC)

CA_CERT: Final = "ca.crt"
CA_KEY: Final = "ca.key"
# The server's files, and those of an admin and a user; the cases are beside them.
ROOT_FILES: Final = (
    CA_CERT, CA_KEY, "server.crt", "server.key", "admin.crt", "admin.key", "user.crt", "user.key"
)  # fmt: skip


@functools.cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """Return an RSA key; the same one for the same arguments."""
    del number
    return rsa.generate_private_key(65537, bits)


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
    """The contents of a certificate; the defaults make a valid client without a role."""

    roles: Sequence[Role] = ()
    usages: Sequence[x509.ObjectIdentifier] = (CLIENT,)
    common_name: str = "client"
    key: Callable[[], PrivateKey] = field(default=lambda: rsa_key(2048, 1))
    starts: dt.timedelta = -DAY
    ends: dt.timedelta = 30 * DAY
    names: Sequence[str] = ()
    self_signed: bool = False
    padding_bytes: int = 0


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

    def __init__(self, common_name: str = "test CA", number: int = 0) -> None:
        self.key = rsa_key(2048, 100 + number)
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
        if not isinstance(key, rsa.RSAPrivateKey):
            raise UnsupportedError(f"an RSA key of the authority in {directory}")
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
        subject = _name(spec.common_name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if spec.self_signed else self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + spec.starts)
            .not_valid_after(now + spec.ends)
        )
        if spec.usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(spec.usages), critical=False)
        if spec.names:
            alternatives = [_alternative(name) for name in spec.names]
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


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def server_spec(names: Sequence[str] = ("localhost", "127.0.0.1")) -> CertificateSpec:
    """Return the contents of a server's certificate."""
    return CertificateSpec(
        usages=(SERVER,), common_name="server", names=names, key=lambda: rsa_key(2048, 2)
    )


@dataclass(frozen=True)
class Case:
    """A client certificate, and the status that a call with it must get.

    `number` is that of the case in the catalogue. `authority` is who signs: the server's CA
    ("ours"), another CA ("other"), or another CA of the same subject ("namesake").
    """

    number: int
    name: str
    expected: str
    spec: CertificateSpec
    authority: str = "ours"

    @property
    def file_name(self) -> str:
        """Its files' name without the extension."""
        return f"case-{self.number}-{re.sub('[^a-z0-9]+', '-', self.name.lower())}"


def _client(**changes: object) -> CertificateSpec:
    return CertificateSpec(**({"roles": (ADMIN,)} | changes))  # type: ignore[arg-type]


CASES: Final = (
    Case(0, "admin", "OK", _client()),
    Case(0, "user", "OK", _client(roles=(USER,))),
    Case(0, "elliptic curve", "OK", _client(key=lambda: ec.generate_private_key(ec.SECP256R1()))),
    # RFC 5280, 4.1.2.5: a certificate without an expiry date is valid until the year 9999.
    Case(0, "no expiry date", "OK", _client(ends=FOREVER)),
    Case(2, "expired", "UNAVAILABLE", _client(starts=-2 * DAY, ends=-DAY)),
    Case(3, "not yet valid", "UNAVAILABLE", _client(starts=DAY)),
    Case(4, "another CA", "UNAVAILABLE", _client(), "other"),
    Case(5, "another CA with the same subject", "UNAVAILABLE", _client(), "namesake"),
    Case(6, "self-signed", "UNAVAILABLE", _client(self_signed=True)),
    Case(7, "server key usage", "UNAVAILABLE", _client(usages=(SERVER,))),
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
        20, "empty role text", "PERMISSION_DENIED", _client(roles=(Role(ADMIN_OID, b"\x0c\x00"),))
    ),
    Case(
        20, "role of the wrong type", "PERMISSION_DENIED",
        _client(roles=(Role(ADMIN_OID, b"\x02\x01\x01"),)),
    ),
    Case(
        20, "truncated role", "PERMISSION_DENIED",
        _client(roles=(Role(ADMIN_OID, b"\x0c\x09Admin"),)),
    ),
    Case(21, "extension of 100 KB", "OK", _client(padding_bytes=100_000)),
    Case(
        22, "admin in the common name, no role", "PERMISSION_DENIED",
        _client(roles=(), common_name="admin\0Admin"),
    ),
)  # fmt: skip


class IdentityStore:
    """A directory of certificates by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def files(self, name: str) -> CertFiles:
        """Return the files of `server`, `admin`, `user`, or a case's `file_name`.

        Raises:
            UnsupportedError: a file is missing.
        """
        files = CertFiles(
            self.directory / CA_CERT, self.directory / f"{name}.crt", self.directory / f"{name}.key"
        )
        for path in (files.ca, files.cert, files.key):
            if not path.is_file():
                raise UnsupportedError(f"the certificate {path} (harness identities DIR makes it)")
        return files

    def sign(self, name: str, spec: CertificateSpec) -> CertFiles:
        """Make another certificate of the same authority.

        Raises:
            UnsupportedError: the authority's key is missing.
        """
        return Authority.load(self.directory).write_pair(self.directory, name, spec)

    def has_authority(self) -> bool:
        """Return whether more certificates can be made."""
        return (self.directory / CA_KEY).is_file()


def make_identities(directory: Path, server_names: Sequence[str] = ()) -> IdentityStore:
    """Write an authority, and certificates and keys of a server, an admin, a user and every case.

    Args:
        directory: created if missing; other files in it stay.
        server_names: names and addresses of the server, besides localhost and the loopback's.

    Raises:
        BrokenError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours = Authority()
        names = ("localhost", "127.0.0.1", "::1", *server_names)
        ours.write(directory, "server", server_spec(names))
        write_key(directory / CA_KEY, ours.key)
        ours.write_pair(directory, "admin", CertificateSpec(roles=(ADMIN,), common_name="admin"))
        ours.write_pair(directory, "user", CertificateSpec(roles=(USER,), common_name="user"))
        authorities = {
            "ours": ours, "other": Authority("other CA", 1), "namesake": Authority("test CA", 2)
        }  # fmt: skip
        for case in CASES:
            authorities[case.authority].write_pair(directory, case.file_name, case.spec)
    except OSError as error:
        raise BrokenError(f"{directory}: {error.strerror}; name a directory to write to") from error
    return IdentityStore(directory)
