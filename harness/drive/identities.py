"""The harness's own identities: valid and faulty client certificates in the form of a scheme.

`make_identities` writes a directory with all of them: a server is started with its `ca.crt`,
`server.crt` and `server.key`; the harness calls it with the others. A new client certificate is one
row of `_cases`.
"""

import datetime as dt
import functools
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness.dialects.identity_scheme import (
    ANY_KEY_USAGE,
    BOTH_ROLES,
    ED25519,
    LARGE_EXTENSION,
    NAME_BYTES_MAX,
    NO_KEY_USAGE,
    OPTIONAL,
    OURS,
    RSA_1024,
    Scheme,
)
from harness.drive.certificates import (
    CA_CERT,
    CA_KEY,
    DAY,
    SERVER,
    Authority,
    CertificateSpec,
    Role,
    new_key,
    rsa_key,
    server_spec,
    write_key,
)
from harness.host.cert_files import CertFiles
from harness.host.repository import program
from harness.record.verdict import BrokenError, UnsupportedError

_DER_LONG: Final = 0x80  # a length of so many bytes has several bytes itself
SCHEME_FILE: Final = "scheme.json"
FOREVER: Final = dt.datetime(9999, 12, 31, tzinfo=dt.UTC) - dt.datetime.now(dt.UTC)
_SUBJECT: Final = {
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "CN": NameOID.COMMON_NAME,
}
_ALTERNATIVES: Final = {
    "DNS": x509.DNSName,
    "URI": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
}


# Two certificates of one authority have it, against RFC 5280: a role belongs to one of them.
SHARED_SERIAL: Final = 0x5EED5EED


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

    @property
    def is_optional(self) -> bool:
        """Whether mutual TLS leaves it to the server, so that its scheme decides."""
        return self.name in OPTIONAL


def role_extension(scheme: Scheme, role: str) -> Role:
    """Return the extension that holds `admin` or `user`."""
    form = scheme.form(role)
    text = form.text.encode()
    return Role(form.oid, text if scheme.encoding == "raw" else _utf8_string(text))


def _utf8_string(text: bytes) -> bytes:
    """Return a text in DER."""
    size = len(text)
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return (
        bytes((0x0C, size) if size < _DER_LONG else (0x0C, _DER_LONG | len(length), *length)) + text
    )


def client_spec(scheme: Scheme, *roles: str, **changes: object) -> CertificateSpec:
    """Return the contents of a client's certificate with `admin`, `user`, both or neither.

    Args:
        scheme: how a certificate has its roles.
        roles: which.
        changes: fields of the result.
    """
    texts = [scheme.form(role).text for role in roles]
    name = scheme.form(roles[0]).common_name if roles else ""
    spec = CertificateSpec(common_name=name or "client", key=lambda: new_key(scheme.key, 1))
    if scheme.roles == "CN":
        spec = replace(spec, common_name=texts[0] if texts else spec.common_name)
        changes.pop("common_name", None)
    elif scheme.roles == "extension":
        spec = replace(spec, roles=tuple(role_extension(scheme, role) for role in roles))
    elif scheme.roles in _SUBJECT:
        spec = replace(spec, subject=tuple((_SUBJECT[scheme.roles], text) for text in texts))
    elif scheme.roles in _ALTERNATIVES:
        spec = replace(spec, alternatives=tuple(map(_ALTERNATIVES[scheme.roles], texts)))
    return replace(spec, **changes)  # type: ignore[arg-type]


def cases_of(scheme: Scheme) -> tuple[Case, ...]:
    """Return the client certificates that a server of a scheme is judged by."""
    return tuple(_decided(case, scheme) for case in _cases(scheme) if _is_judged(case, scheme))


def _is_judged(case: Case, scheme: Scheme) -> bool:
    return not case.is_optional or case.name in {*scheme.refuses, *scheme.accepts}


def _decided(case: Case, scheme: Scheme) -> Case:
    if case.name in scheme.accepts:
        return replace(case, expected="OK")
    if case.name in scheme.refuses and case.expected == "OK":
        return replace(case, expected="UNAVAILABLE")
    return case


def _cases(scheme: Scheme) -> Iterator[Case]:
    """Yield every certificate that means something in a scheme."""
    admin = functools.partial(client_spec, scheme, "admin")
    yield Case(0, "admin", "OK", admin())
    if scheme.user is not None:
        yield Case(0, "user", "OK", client_spec(scheme, "user"))
    curve = admin(key=lambda: ec.generate_private_key(ec.SECP256R1()))
    yield Case(0, "elliptic curve", "OK", curve)
    larger = admin(key=lambda: ec.generate_private_key(ec.SECP384R1()))
    yield Case(0, "elliptic curve P-384", "OK", larger)
    long_key = admin(key=lambda: rsa_key(3072), serial=SHARED_SERIAL)
    yield Case(0, "RSA of 3072 bits", "OK", long_key)
    # RFC 5280, 4.1.2.5: a certificate without an expiry date is valid until the year 9999.
    yield Case(0, "no expiry date", "OK", admin(ends=FOREVER))
    yield Case(2, "expired", "UNAVAILABLE", admin(starts=-2 * DAY, ends=-DAY))
    yield Case(3, "not yet valid", "UNAVAILABLE", admin(starts=DAY))
    yield Case(4, "another CA", "UNAVAILABLE", admin(), "other")
    yield Case(5, "another CA with the same subject", "UNAVAILABLE", admin(), "namesake")
    yield Case(6, "self-signed", "UNAVAILABLE", admin(self_signed=True))
    yield Case(7, "server key usage", "UNAVAILABLE", admin(usages=(SERVER,)))
    any_usage = admin(usages=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,))
    yield Case(8, ANY_KEY_USAGE, "UNAVAILABLE", any_usage)
    yield Case(9, ED25519, "UNAVAILABLE", admin(key=ed25519.Ed25519PrivateKey.generate))
    if scheme.roles == "extension":
        critical = replace(role_extension(scheme, "admin"), critical=True)
        yield Case(10, "critical role", "UNAVAILABLE", admin(roles=(critical,)))
    yield Case(16, NO_KEY_USAGE, "UNAUTHENTICATED", admin(usages=()))
    yield Case(17, RSA_1024, "UNAUTHENTICATED", admin(key=lambda: rsa_key(1024)))
    if scheme.has_roles:
        yield Case(18, "no role", "PERMISSION_DENIED", client_spec(scheme))
        twin = client_spec(scheme, serial=SHARED_SERIAL)
        yield Case(18, "no role, and an admin's serial number", "PERMISSION_DENIED", twin)
    if scheme.has_two_roles:
        yield Case(19, BOTH_ROLES, "PERMISSION_DENIED", client_spec(scheme, "admin", "user"))
    yield from _malformed_roles(scheme)
    yield Case(21, LARGE_EXTENSION, "OK", admin(padding_bytes=100_000))
    yield from _misplaced_roles(scheme)


def _malformed_roles(scheme: Scheme) -> Iterator[Case]:
    """Yield roles that have no text: a DER parser rejects them, a comparison never matches them."""
    if scheme.roles != "extension" or scheme.encoding != "UTF8String":
        return
    text = scheme.admin.text.encode()
    for name, der in (
        ("empty role", b""),
        ("empty role text", b"\x0c\x00"),
        ("role of the wrong type", b"\x02\x01\x01"),
        ("truncated role", _utf8_string(text + b"????")[:-4]),
        ("role with a byte after its text", _utf8_string(text) + b"!"),
    ):
        spec = client_spec(scheme, roles=(Role(scheme.admin.oid, der),))
        yield Case(20, name, "PERMISSION_DENIED", spec)


def _misplaced_roles(scheme: Scheme) -> Iterator[Case]:
    """Yield certificates that name the admin's role where the scheme has no roles."""
    if scheme.has_roles and scheme.roles != "CN":
        text = scheme.admin.text
        name = f"admin\0{text}" if scheme.roles == "extension" else text
        if len(name.encode()) <= NAME_BYTES_MAX:  # no common name can have a longer one
            spec = client_spec(scheme, common_name=name)
            yield Case(22, "admin in the common name, no role", "PERMISSION_DENIED", spec)
    if scheme.roles == "CN":
        unit = (NameOID.ORGANIZATIONAL_UNIT_NAME, scheme.admin.text)
        spec = client_spec(scheme, subject=(unit,))
        yield Case(22, "admin in the organizational unit, no role", "PERMISSION_DENIED", spec)


# Of this project's own API.
CASES: Final = cases_of(OURS)


def _command() -> str:
    return shlex.join([*program(), "identities"])


class IdentityStore:
    """A directory of certificates by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @functools.cached_property
    def scheme(self) -> Scheme:
        """The scheme that they were made for.

        Raises:
            BrokenError: its file is invalid.
        """
        path = self.directory / SCHEME_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Scheme)
        except FileNotFoundError:
            return OURS
        except (OSError, msgspec.MsgspecError) as error:
            raise BrokenError(
                f"{path}: {error}; generate the certificates anew: {_command()} DIR"
            ) from error

    def require_scheme(self, scheme: Scheme, source: str = "DIALECT") -> None:
        """Reject certificates that were made for another kind of server.

        Args:
            scheme: of that server's dialect.
            source: the dialect's file or name.

        Raises:
            BrokenError: they were; says how to make others.
        """
        if _without_copies(self.scheme) != _without_copies(scheme):
            raise BrokenError(
                f"the certificates in {self.directory} are of another scheme than the dialect's: "
                f"roles in {self.scheme.roles}, required {scheme.roles} (or another name, key or "
                f"rule); generate them anew: {_command()} DIR --scheme {shlex.quote(source)}"
            )

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
                raise UnsupportedError(f"the certificate {path} ({_command()} DIR makes it)")
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


def _without_copies(scheme: Scheme) -> Scheme:
    """Return a scheme without its further copies, which no check depends on."""
    return msgspec.structs.replace(scheme, files={})


def make_identities(
    directory: Path, server_names: Sequence[str] = (), scheme: Scheme = OURS
) -> IdentityStore:
    """Write an authority, and certificates and keys of a server, an admin, a user and every case.

    Args:
        directory: created if missing; other files in it stay.
        server_names: names and addresses of the server, besides localhost and the loopback's.
        scheme: their form.

    Raises:
        BrokenError: the directory cannot be written, or no certificate has such a name.
    """
    names = ("localhost", "127.0.0.1", "::1", *server_names)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours = Authority(kind=scheme.key)
        ours.write(directory, "server", server_spec(names, scheme.key))
        write_key(directory / CA_KEY, ours.key)
        for role in ("admin", "user"):
            name = scheme.form(role).common_name or role
            ours.write_pair(directory, role, client_spec(scheme, role, common_name=name))
        authorities = {
            "ours": ours,
            "other": Authority("other CA", 1, scheme.key),
            "namesake": Authority("test CA", 2, scheme.key),
        }
        for case in cases_of(scheme):
            authorities[case.authority].write_pair(directory, case.file_name, case.spec)
        _write_copies(directory, scheme)
        (directory / SCHEME_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(scheme)))
    except OSError as error:
        raise BrokenError(f"{directory}: {error.strerror}; name a directory to write to") from error
    except ValueError as error:
        raise BrokenError(
            f"no certificate of {', '.join(names)} in this scheme can be made: {error}"
        ) from error
    return IdentityStore(directory)


def _write_copies(directory: Path, scheme: Scheme) -> None:
    for path, name in scheme.files.items():
        copy = directory / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        copy.touch(mode=0o600)
        shutil.copyfile(directory / name, copy)
