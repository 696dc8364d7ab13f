"""Roles in certificates, and the rpcs that they permit."""

import datetime as dt
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from harness.drive.certificates import USER_OID, Authority, CertificateSpec, rsa_key
from harness.drive.certificates import Role as RoleExtension
from worker_service.errors import NotAuthenticatedError, NotPermittedError
from worker_service.identity import Identity, Role, authorize, identify


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.mark.parametrize(
    ("der", "valid"),
    [
        (b"\x0c\x05Admin", True), (b"\x13\x04User", True), (b"\x16\x01x", True),
        (b"", False), (b"\x0c", False), (b"\x0c\x00", False), (b"\x0c\x01 ", False),
        (b"\x0c\x06Admin", False), (b"\x0c\x04Admin", False), (b"\x02\x01\x01", False),
        (b"\x0c\x01\xff", False), (b"\x0c\x81\x05Admin", False), (b"Admin", False),
    ],
)  # fmt: skip
def test_role_counts_only_if_its_text_is_one_nonblank_der_string(
    der: bytes, valid: bool, authority: Authority, tmp_path: Path
) -> None:
    spec = CertificateSpec(roles=(RoleExtension(USER_OID, der),))
    pem = authority.write(tmp_path, "client", spec).cert.read_bytes()
    identity = identify({"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [pem]})
    assert identity.role is (Role.USER if valid else None)
    assert identity.role_problem == (
        "" if valid else "the role in the client certificate is empty or malformed"
    )


def _sign(authority: Authority, san: bytes | None = None) -> bytes:
    """Return a client's certificate in DER, with these bytes as its subject alternative name."""
    key = rsa_key(2048, 1)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.name)
        .issuer_name(authority.name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(1))
        .not_valid_after(now + dt.timedelta(1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    if san is not None:
        names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, san)
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _unknown_name(authority: Authority) -> bytes:
    return _pem(_sign(authority, san=b"\x30\x02\xa3\x00"))  # x400Address, without a content


def _short_address(authority: Authority) -> bytes:
    return _pem(_sign(authority, san=b"\x30\x04\x87\x02\x7f\x00"))  # iPAddress of two bytes


def _no_name_list(authority: Authority) -> bytes:
    return _pem(_sign(authority, san=b"\x0c\x01x"))


def _version_9(authority: Authority) -> bytes:
    return _pem(_sign(authority).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x08", 1))


def _unknown_key(authority: Authority) -> bytes:
    rsa_encryption = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"
    return _pem(_sign(authority).replace(rsa_encryption, rsa_encryption[:-1] + b"\x7f", 1))


def _malformed_key(authority: Authority) -> bytes:
    exponent = b"\x02\x03\x01\x00\x01"
    return _pem(_sign(authority).replace(exponent, b"\x0c\x03\x01\x00\x01", 1))


def _no_certificate(_: Authority) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_unknown_name, id="name of an unknown kind"),
        pytest.param(_short_address, id="address of two bytes"),
        pytest.param(_no_name_list, id="names that are no list"),
        pytest.param(_version_9, id="version 9"),
        pytest.param(_unknown_key, id="key of an unknown kind"),
        pytest.param(_malformed_key, id="malformed key"),
        pytest.param(_no_certificate, id="no certificate"),
    ],
)
def test_unreadable_certificate_is_not_authenticated(
    make: Callable[[Authority], bytes], authority: Authority
) -> None:
    with pytest.raises(NotAuthenticatedError, match="the client certificate cannot be read: "):
        identify({"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [make(authority)]})


@pytest.mark.parametrize("version", [[b"TLSv1.2"], [b""], []])
def test_connection_without_tls_1_3_is_not_authenticated(
    version: list[bytes], authority: Authority, tmp_path: Path
) -> None:
    """gRPC refuses it first; this holds if gRPC does not."""
    pem = authority.write(tmp_path, "client", CertificateSpec()).cert.read_bytes()
    with pytest.raises(NotAuthenticatedError, match=r"TLS 1\.3 is required"):
        identify({"ssl_tls_version": version, "x509_pem_cert": [pem]})


def test_method_without_permissions_is_refused_to_an_admin() -> None:
    now = dt.datetime.now(dt.UTC)
    admin = Identity(1, now, now, Role.ADMIN)
    assert authorize(admin, "/jobworker.v1.JobWorker/StartJob") is Role.ADMIN
    with pytest.raises(NotPermittedError):
        authorize(admin, "/jobworker.v1.JobWorker/AddedTomorrow")


@pytest.mark.parametrize(
    ("starts_s", "ends_s", "text"),
    [
        (-60, -1, "expired at"),
        (60, 120, r"is not valid before .*Z, (59|60) s from now by the server"),
    ],
    ids=["expired", "not yet valid"],
)
def test_valid_for_s_rejects_a_certificate_outside_its_validity(
    starts_s: float, ends_s: float, text: str
) -> None:
    now = dt.datetime.now(dt.UTC)
    begin, end = (now + dt.timedelta(seconds=seconds) for seconds in (starts_s, ends_s))
    with pytest.raises(NotAuthenticatedError, match=text):
        Identity(1, begin, end, Role.USER).valid_for_s()


def test_valid_for_s_returns_the_seconds_until_the_expiry() -> None:
    now = dt.datetime.now(dt.UTC)
    identity = Identity(1, now, now + dt.timedelta(seconds=60), Role.USER)
    assert 0 < identity.valid_for_s() <= 60
