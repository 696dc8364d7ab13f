"""Roles in certificates, and the rpcs that they permit."""

import datetime as dt
from pathlib import Path

import pytest

from harness.drive.identities import USER_OID, Authority, CertificateSpec
from harness.drive.identities import Role as RoleExtension
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


def test_method_without_permissions_is_refused_to_an_admin() -> None:
    now = dt.datetime.now(dt.UTC)
    admin = Identity(1, now, now, Role.ADMIN)
    assert authorize(admin, "/jobworker.v1.JobWorker/StartJob") is Role.ADMIN
    with pytest.raises(NotPermittedError):
        authorize(admin, "/jobworker.v1.JobWorker/AddedTomorrow")


@pytest.mark.parametrize(
    ("starts_s", "ends_s", "text"),
    [(-60, -1, "expired at"), (60, 120, "is not valid before")],
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
