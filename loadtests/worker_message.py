"""What a process of the generator reports to it: a line of JSON for each message."""

import sys
from dataclasses import dataclass, field

import msgspec

from loadtests.record import StreamEnd


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a process of the generator hands back; `cpu_s` and `wall_s` count from `go`.

    Attributes:
        file: of the instants.
        streams: how each ended; of readers.
        failures: calls by how they failed; of a storm.
    """

    file: str
    cpu_s: float
    wall_s: float
    streams: tuple[StreamEnd, ...] = ()
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMessage:
    """A line that a process of the generator writes: one of these.

    Attributes:
        ready: it is connected, or about to read.
        joined: the number of a stream that has its first byte.
        lost: the number of a stream that ended without one.
        report: at its end.
    """

    ready: bool = False
    joined: int | None = None
    lost: int | None = None
    report: WorkerReport | None = None


def say(message: WorkerMessage) -> None:
    """Send a message to the generator, from one of its processes."""
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()
