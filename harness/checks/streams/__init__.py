"""Checks of streams: every reader gets every byte of a job's output, in order, and in time."""

from typing import Final

from harness.checks.streams import (
    concurrent_readers,
    delivery,
    networks,
    pauses,
    replay,
    retention,
    slots,
    soak,
)

CHECKS: Final = (
    *concurrent_readers.CHECKS,
    *replay.CHECKS,
    *delivery.CHECKS,
    *pauses.CHECKS,
    *retention.CHECKS,
    *slots.CHECKS,
    *soak.CHECKS,
    *networks.CHECKS,
)
