"""Every check there is, in one table an area. A new check is one entry in its area's `CHECKS`."""

from typing import Final

from harness.checks import (
    crowds,
    identity,
    lifecycle,
    limits,
    networks,
    slots,
    stopping,
    streams,
    surroundings,
)
from harness.checks.check import Check

ALL: Final[tuple[Check, ...]] = (
    *identity.CHECKS,
    *lifecycle.CHECKS,
    *surroundings.CHECKS,
    *stopping.CHECKS,
    *streams.CHECKS,
    *crowds.CHECKS,
    *slots.CHECKS,
    *networks.CHECKS,
    *limits.CHECKS,
)
