"""Checks of streams: every reader gets every byte of a job's output, in order, and in time."""

from typing import Final

from harness.checks.streams import (
    concurrent_readers,
    delivery,
    held_output,
    message_sizes,
    networks,
    output_memory,
    pauses,
    replay,
    retention,
    slots,
    soak,
    stampede,
    tail_scans,
)

CHECKS: Final = (
    *concurrent_readers.CHECKS,
    *stampede.CHECKS,
    *replay.CHECKS,
    *delivery.CHECKS,
    *pauses.CHECKS,
    *retention.CHECKS,
    *held_output.CHECKS,
    *tail_scans.CHECKS,
    *output_memory.CHECKS,
    *slots.CHECKS,
    *soak.CHECKS,
    *message_sizes.CHECKS,
    *networks.CHECKS,
)
