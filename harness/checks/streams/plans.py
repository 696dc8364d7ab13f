"""What most writers of these checks write, and what most of these checks need."""

from typing import Final

from harness.checks.check import Need
from harness.checks.common import KIB, MIB, WriterStep

PYTHON: Final = frozenset({Need.PYTHON})
WITH_OFFSETS: Final = PYTHON | {Need.OFFSETS}
OWN_SERVER: Final = PYTHON | {Need.HOST, Need.LAUNCH}

# Bursts between silences, single bytes, writes of all sizes.
BURSTS: Final = (
    WriterStep(256 * KIB, write_bytes=64 * KIB, pause_ms=20, repeat=4),
    WriterStep(17, write_bytes=1, repeat=3),
    WriterStep(300_001, pause_ms=50),
    WriterStep(MIB),
)
