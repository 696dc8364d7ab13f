"""Every check there is, in one table an area. A new check is one entry in its area's `CHECKS`."""

from typing import Final

from harness.checks import (
    abuse,
    abuse_connections,
    abuse_half_sent,
    crowds,
    identity,
    identity_openssl,
    identity_scanner,
    identity_stalled,
    identity_start,
    identity_time,
    lifecycle,
    limits,
    networks,
    slots,
    soak,
    stopping,
    streams,
    surroundings,
)
from harness.checks.check import Check

ALL: Final[tuple[Check, ...]] = (
    *identity.CHECKS,
    *identity_time.CHECKS,
    *identity_stalled.CHECKS,
    *identity_start.CHECKS,
    *identity_openssl.CHECKS,
    *identity_scanner.CHECKS,
    *lifecycle.CHECKS,
    *surroundings.CHECKS,
    *stopping.CHECKS,
    *streams.CHECKS,
    *crowds.CHECKS,
    *slots.CHECKS,
    *soak.CHECKS,
    *networks.CHECKS,
    *abuse.CHECKS,
    *abuse_connections.CHECKS,
    *abuse_half_sent.CHECKS,
    *limits.CHECKS,
)
