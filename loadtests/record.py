"""What a load leaves behind: frozen records, written as JSON and read back. No gRPC, no clock.

The instants of single messages are too many for JSON: each process of the generator writes them to
a file of numpy's, which `GeneratorProcess.file` names.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtests.pacer import Pace
from loadtests.profiles import Floor, Profile, Storm

LOAD_FILE: Final = "load.json"

EARLY: Final = "early"
LATE: Final = "late"
SLOW: Final = "slow"
LEFT: Final = "LEFT"

# Columns of the instants of a message, and of a start and stop.
MESSAGE_COLUMNS: Final = ("number", "planned_ns", "begun_ns", "ready_ns", "received_ns")
CALL_COLUMNS: Final = ("planned_ns", "begun_ns", "started_ns", "stopped_ns")


@dataclass(frozen=True, slots=True)
class Sample:
    """The server and the machine at a moment; of the server 0 where it cannot be looked into.

    Attributes:
        at_ns: on the load's clock.
        cpu_s: what the server has used since its start.
        jobs_cpu_s: what its child processes have, those that ended included.
        rss_bytes: its resident memory.
        memfd_bytes: memory of its memfds, which no resident size shows: logs.
        threads, fds: how many it has.
        machine_busy_s: processor time that was not idle since the machine's start, all cores.
        machine_steal_s: processor time that the hypervisor gave to others.
    """

    at_ns: int
    cpu_s: float
    jobs_cpu_s: float
    rss_bytes: int
    memfd_bytes: int
    threads: int
    fds: int
    machine_busy_s: float
    machine_steal_s: float


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended. Instants are nanoseconds on the load's clock; 0: never.

    `due_ns` is when it was to begin, `began_ns` when it did; of one without a plan they are one.
    `code` is a gRPC status, or LEFT when the reader left as it was told to.
    """

    number: int
    kind: str
    code: str
    detail: str
    wrong: str
    checked_bytes: int
    missed_bytes: int
    connections: int
    began_ns: int
    first_ns: int
    last_ns: int
    due_ns: int = 0


@dataclass(frozen=True, slots=True)
class GeneratorProcess:
    """What one process of the generator did."""

    kind: str
    file: str
    cpu_s: float
    wall_s: float
    failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Load:
    """A recorded load. Instants are nanoseconds on `clock`.

    Attributes:
        profile: what was asked.
        labels: what else was set: of a sweep or a comparison.
        clock: MONOTONIC when server and generator share a machine, else REALTIME.
        local: whether the server's process could be looked into.
        cores: of the machine of the generator.
        options: gRPC's, for the clients' connections.
        joined: streamers that had their first byte before the load began.
        go_ns: when the load began.
        before: the server before any streamer came.
        samples: the server and the machine meanwhile.
        processes: of the generator.
        streams: how each ended.
        exit_code: of the writing job; None when it did not end by itself.
    """

    profile: Profile
    labels: dict[str, str]
    clock: str
    local: bool
    cores: int
    options: tuple[tuple[str, int | str], ...]
    joined: int
    go_ns: int
    before: Sample
    samples: tuple[Sample, ...]
    processes: tuple[GeneratorProcess, ...]
    streams: tuple[StreamEnd, ...]
    exit_code: int | None


def save_load(load: Load, directory: Path) -> None:
    """Write `load.json`; it is complete or not there."""
    half = directory / f"{LOAD_FILE}.half"
    half.write_text(json.dumps(dataclasses.asdict(load), indent=1) + "\n")
    half.rename(directory / LOAD_FILE)


def read_json(text: str) -> Load:
    """Return the load of a `load.json`.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    values: dict[str, Any] = json.loads(text)
    profile = dict(values["profile"])
    profile["pace"] = Pace(**profile["pace"]) if profile["pace"] else None
    profile["floor"] = Floor(**profile["floor"])
    profile["storm"] = Storm(**profile["storm"]) if profile["storm"] else None
    return Load(**{
        **values,
        "profile": Profile(**profile),
        "options": tuple((name, value) for name, value in values["options"]),
        "before": Sample(**values["before"]),
        "samples": tuple(Sample(**each) for each in values["samples"]),
        "processes": tuple(GeneratorProcess(**each) for each in values["processes"]),
        "streams": tuple(StreamEnd(**each) for each in values["streams"]),
    })  # fmt: skip
