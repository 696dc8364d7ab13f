"""The record of a load: frozen values, written as JSON and read back. No gRPC, no clock.

Single messages' instants are too many for JSON: each process of the generator writes them to a
file of numpy's, which `GeneratorProcess.file` names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from harness.record.verdict import BrokenError
from harness.record.whole_file import write_whole
from loadtests.profiles import Profile

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
    """The server and the machine at one instant; the server's values are 0 if it is not local.

    Attributes:
        at_ns: on the load's clock.
        cpu_s: processor time of the server since its start.
        jobs_cpu_s: of its child processes, ended ones included.
        rss_bytes: its resident memory.
        memfd_bytes: memory of its memfds (logs), which no resident size includes.
        threads, fds: their number.
        machine_busy_s: non-idle processor time since the machine's start, all cores.
        machine_steal_s: processor time that the hypervisor gave to other machines.
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

    `due_ns` is its planned begin, `began_ns` the actual one; without a plan they are equal.
    `code` is a gRPC status, or LEFT if the reader left as planned.
    `wrong` describes the first byte that differs from the job's output; empty: none does.
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
    """One process of the generator; `failures` counts calls by how they failed."""

    kind: str
    file: str
    cpu_s: float
    wall_s: float
    failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Load:
    """A recorded load. Instants are nanoseconds on `clock`.

    Attributes:
        profile: the requested load.
        labels: the point of a sweep or a comparison.
        clock: MONOTONIC if server and generator share a machine, else REALTIME.
        local: whether the server's process was accessible.
        cores: of the generator's machine.
        options: gRPC's, for the clients' connections.
        joined: streamers that had their first byte before the load began.
        go_ns: when the load began.
        before: the server before any streamer joined.
        samples: the server and the machine during the load.
        processes: of the generator.
        streams: how each ended.
        exit_code: of the writing job; None if it did not exit by itself.
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
    """Write `load.json`; the file is complete or absent."""
    text = json.dumps(msgspec.to_builtins(load), indent=1)
    write_whole(directory / LOAD_FILE, text + "\n")


def load_record(directory: Path) -> Load:
    """Read `load.json`.

    Raises:
        BrokenError: it does not exist, or is not a load.
    """
    try:
        return msgspec.json.decode((directory / LOAD_FILE).read_bytes(), type=Load)
    except (OSError, ValueError) as error:
        raise BrokenError(f"no load in {directory}: {error}") from error
