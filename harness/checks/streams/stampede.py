"""Readers that all connect while the job floods: none waits long for its first byte."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Stage
from harness.checks.common import MIB, WriterStep, open_gate, start_writer
from harness.checks.streams.plans import PYTHON, bytes_for_readers
from harness.drive.streamers import READERS_PER_PROCESS, ConcurrentReaders, Reader
from harness.judge.promises import at_most_s, equal, floor, in_time
from harness.judge.streams import all_exact
from harness.record.history import History, Observation, Stream
from harness.record.verdict import Finding

READ_TIMEOUT_S: Final = 150.0
MESSAGES: Final = 256  # for each, if the server's messages are small
FLOOD_WRITES: Final = 8
FIRST_BYTE_S: Final = 5.0
FIRST_BYTE_WHY: Final = "a handshake and a call, beside as many others"
# Streams that take turns message by message end almost together; so does half of them, while the
# first ones may have had the server for themselves.
SHARE: Final = 2.0
SHARE_WHY: Final = "the readers' own processes compete for the processors, too"
EARLY: Final = "early"
READER: Final = "reader"


@dataclass(frozen=True, slots=True)
class Stampede(Observation):
    """Readers that connected during a flood.

    Attributes:
        began_s: when they began to connect; the job's gate had just been opened.
        readers: how many there were, beside one of each process that followed the job before.
        early: how many those were.
        joined: how many of those had their first byte before.
        total_bytes: how much the job wrote.
    """

    began_s: float
    readers: int
    early: int
    joined: int
    total_bytes: int


def run_stampede(stage: Stage) -> None:
    """Let readers connect at the moment at which the job begins to write without a pause."""
    count = stage.pick(full=500, small=30)
    # One reader of each process joins before: then all processes are ready.
    early = -(-count // (READERS_PER_PROCESS - 1))
    files, address = stage.target.identities.files("user"), stage.server.address
    with stage.client() as client:
        most_bytes = stage.pick(full=8, small=1) * MIB
        size_bytes = bytes_for_readers(stage, client, most_bytes, MESSAGES)
        flood = [WriterStep(size_bytes // FLOOD_WRITES, repeat=FLOOD_WRITES)]
        writer = start_writer(stage, client, flood, gated=True)
        names = [f"{EARLY} {number}" for number in range(early)]
        names += [f"{READER} {number}" for number in range(count)]
        readers = [
            Reader(
                name,
                writer.job_id,
                writer.seed,
                late_s=None if name.startswith(EARLY) else 0.0,
                timeout_s=READ_TIMEOUT_S,
            )
            for name in names
        ]
        with ConcurrentReaders(
            address, files, readers, stage.recorder, dialect=stage.dialect
        ) as running:
            joined = running.wait_joined(stage.join_timeout_s)
            open_gate(client, writer)
            began_s = stage.recorder.now_s()
            running.go()
            stage.record(Stampede(began_s, count, early, joined, writer.total_bytes))
            running.require_done(READ_TIMEOUT_S)


def judge_stampede(history: History) -> Iterator[Finding]:
    """The last first byte is in time, every byte is right, and the last end is near the others."""
    seen = history.the(Stampede)
    yield floor("processes of readers that are ready before the flood", seen.joined, seen.early)
    streams = [each for each in history.streams() if each.label.startswith(READER)]
    yield equal("every reader's stream ends", len(streams), seen.readers)
    yield in_time(
        "each reader that connects during a flood has its first byte",
        _last_first_byte_s(streams, seen.began_s),
        FIRST_BYTE_S,
        FIRST_BYTE_WHY,
    )
    yield all_exact("each of them gets every byte", streams, seen.total_bytes)
    took_s = [each.ended_s - seen.began_s for each in streams] or [0.0]
    yield at_most_s(
        f"seconds until the slowest has everything: {SHARE:g} times as many as half of them need",
        max(took_s),
        SHARE * statistics.median(took_s),
        SHARE_WHY,
    )


def _last_first_byte_s(streams: list[Stream], began_s: float) -> float | None:
    """Return when the last stream had its first byte; None if one never had."""
    first_s = [each.first_byte_s for each in streams if each.first_byte_s is not None]
    return max(first_s) - began_s if first_s and len(first_s) == len(streams) else None


CHECKS: Final = (
    Check(
        "streams.stampede",
        "500 readers that all connect while the job floods each have their first byte within 5 s, "
        "get every byte, and share the server fairly.",
        run_stampede,
        judge_stampede,
        needs=PYTHON,
        cites=("136", "R-STREAM-12"),
        time_limit_s=240,
        alone=True,
    ),
)
