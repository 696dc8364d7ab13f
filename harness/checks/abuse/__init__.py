"""Clients that abuse connections and calls, beside a concurrent victim that must not be harmed."""

from typing import Final

from harness.checks.abuse import crowds
from harness.checks.abuse.connections import (
    HANDSHAKES,
    IDLE_CONNECTIONS,
    NO_DESCRIPTOR,
    WINDOWS,
)
from harness.checks.abuse.half_sent_calls import HALF_SENT_CALLS
from harness.checks.abuse.http2_floods import CALL_MAXIMUM, CALL_RESETS, PINGS
from harness.checks.abuse.oversized_calls import OVERSIZED

CHECKS: Final = (
    CALL_RESETS,
    PINGS,
    OVERSIZED,
    CALL_MAXIMUM,
    HANDSHAKES,
    IDLE_CONNECTIONS,
    WINDOWS,
    NO_DESCRIPTOR,
    HALF_SENT_CALLS,
    *crowds.CHECKS,
)
