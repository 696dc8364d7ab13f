"""What most writers of these checks write, how much, and what most of these checks need."""

from typing import Final

from harness.checks.check import Need, Stage
from harness.checks.common import KIB, MIB, WriterStep, start_writer
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan

PYTHON: Final = frozenset({Need.PYTHON})
WITH_OFFSETS: Final = PYTHON | {Need.OFFSETS}
OWN_SERVER: Final = PYTHON | {Need.HOST, Need.LAUNCH}

SIZING: Final = "sizing"

# Bursts between silences, single bytes, writes of all sizes.
BURSTS: Final = (
    WriterStep(256 * KIB, write_bytes=64 * KIB, pause_ms=20, repeat=4),
    WriterStep(17, write_bytes=1, repeat=3),
    WriterStep(300_001, pause_ms=50),
    WriterStep(MIB),
)

_SIZED_BY_BYTES: Final = MIB
_LEAST_BYTES: Final = 64 * KIB


def bytes_for_readers(stage: Stage, client: Client, most_bytes: int, messages: int) -> int:
    """Return how much hundreds of readers are to receive each, for a check of what they receive.

    A message costs the harness's own readers a wake-up, whatever its size, so many readers of a
    server with small messages would be judged by the speed of the harness.

    Args:
        stage: the check's.
        client: reads a job's output once, which has the label "sizing".
        most_bytes: for a server with large messages.
        messages: how many of its messages a reader should receive, about.
    """
    writer = start_writer(stage, client, [WriterStep(_SIZED_BY_BYTES)])
    largest = client.stream(writer.job_id, StreamPlan(), label=SIZING).largest_message_bytes
    return min(most_bytes, max(_LEAST_BYTES, largest * messages))
