"""For how long a caller's identity holds before it is checked again."""

import datetime as dt

import pytest

from worker_service.errors import NotAuthenticatedError
from worker_service.gate import CLOCK_LOOK_S, Doorkeeper
from worker_service.identity import Identity, Role


def lease_s(ends_in_s: float) -> float:
    """Return the lease of a certificate that ends after a time."""
    now = dt.datetime.now(dt.UTC)
    begin, end = now - dt.timedelta(days=1), now + dt.timedelta(seconds=ends_in_s)
    return Doorkeeper().lease_s(Identity(1, begin, end, Role.USER))


def test_lease_ends_with_the_certificate() -> None:
    assert 20 < lease_s(30) <= 30


def test_lease_is_short_enough_to_notice_that_the_clock_was_set() -> None:
    assert lease_s(365 * 86400.0) == CLOCK_LOOK_S


def test_expired_certificate_has_no_lease() -> None:
    with pytest.raises(NotAuthenticatedError, match="expired"):
        lease_s(-1)
