"""Every byte of a job's output, in order, to every reader."""

from typing import Final

from harness.checks.streams import concurrent_readers, delivery, networks, slots, soak

CHECKS: Final = (
    *delivery.CHECKS,
    *concurrent_readers.CHECKS,
    *slots.CHECKS,
    *soak.CHECKS,
    *networks.CHECKS,
)
