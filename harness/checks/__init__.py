"""Every check, one folder an area. A new check is one entry in its area's `CHECKS`."""

from typing import Final

from harness.checks import abuse, identity, lifecycle, limits, streams
from harness.checks.check import Check

ALL: Final[tuple[Check, ...]] = (
    *identity.CHECKS,
    *lifecycle.CHECKS,
    *streams.CHECKS,
    *abuse.CHECKS,
    *limits.CHECKS,
)
