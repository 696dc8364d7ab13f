"""Many concurrent readers, steady, late, slow, resuming, paused or killed: none harms another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Scale, Stage
from harness.checks.common import MIB, WriterJob, WriterStep, open_gate, start_writer
from harness.checks.streams.plans import BURSTS, PYTHON, bytes_for_readers
from harness.drive.streamers import ConcurrentReaders, Reader
from harness.host.clock import measured_window
from harness.judge.promises import answered, equal, floor
from harness.judge.streams import all_exact, by_job, identical, most_at_once
from harness.record.history import History, Observation
from harness.record.verdict import Finding, UnsupportedError

# -- one job, followed from its first byte --------------------------------------------------------

READ_TIMEOUT_S: Final = 180.0
THOUSAND_MESSAGES: Final = 32  # for each: with 4 KiB each, so many took a minute on two processors


@dataclass(frozen=True, slots=True)
class ReadersOfOneJob(Observation):
    """How many readers followed a job at once.

    Attributes:
        job_id: the job.
        readers: how many there were.
        joined: for the record, how many had their first byte before the job wrote the rest;
            `most_at_once` judges how many there were.
        total_bytes: how much the job wrote.
    """

    job_id: str
    readers: int
    joined: int
    total_bytes: int


def _follow(stage: Stage, counts: Sequence[int], steps: Sequence[WriterStep]) -> None:
    """Let each number of readers follow a gated writer of its own."""
    files = stage.target.identities.files("user")
    with stage.client() as client:
        for count in counts:
            writer = start_writer(stage, client, steps, gated=True)
            readers = [
                Reader(f"{count} readers: {number}", writer.job_id, writer.seed)
                for number in range(count)
            ]
            address = stage.server.address
            with ConcurrentReaders(
                address, files, readers, stage.recorder, dialect=stage.dialect
            ) as running:
                joined = running.wait_joined(stage.join_timeout_s)
                stage.record(ReadersOfOneJob(writer.job_id, count, joined, writer.total_bytes))
                open_gate(client, writer)
                running.require_done(READ_TIMEOUT_S)


def judge_readers_of_one_job(history: History) -> Iterator[Finding]:
    """Each reader has every byte, and all were connected at one moment."""
    for seen in history.all(ReadersOfOneJob):
        streams = [each for each in history.streams() if each.job_id == seen.job_id]
        refused = sum(stream.code == "RESOURCE_EXHAUSTED" for stream in streams)
        promise = f"each of {seen.readers} concurrent readers of one job gets every byte"
        yield all_exact(promise, streams, seen.total_bytes)
        yield identical(f"all {seen.readers} readers get the same bytes", streams)
        if not refused:
            yield floor("readers at one moment", most_at_once(streams), seen.readers)


def run_many(stage: Stage) -> None:
    """Run 1, 10 and 100 readers of a bursty job."""
    _follow(stage, stage.pick(full=(1, 10, 100), small=(1, 10, 30)), BURSTS)


MANY: Final = Check(
    "streams.many",
    "1, 10 and 100 concurrent readers of a bursty binary job each get every byte, in order.",
    run_many,
    judge_readers_of_one_job,
    needs=PYTHON,
    cites=("63", "R-STREAM-2"),
    time_limit_s=240,
    alone=True,
)


def run_thousand(stage: Stage) -> None:
    """Run 1000 readers of one job."""
    if stage.scale is Scale.SMALL:
        raise UnsupportedError("a native processor, which 1000 readers need")
    with stage.client() as client:
        size_bytes = bytes_for_readers(stage, client, MIB, THOUSAND_MESSAGES)
    _follow(stage, (1000,), (WriterStep(size_bytes // 4, pause_ms=100, repeat=4),))


THOUSAND: Final = Check(
    "streams.thousand",
    "1000 concurrent readers of one job each get every byte.",
    run_thousand,
    judge_readers_of_one_job,
    needs=PYTHON,
    cites=("63", "R-STREAM-2"),
    time_limit_s=300,
    alone=True,
)

# -- bursty jobs, with readers of every kind ------------------------------------------------------

BURSTY_TIMEOUT_S: Final = 240.0
# Rounds of bursts and silences: some 14 MB, and a second of a job's own time.
BURSTY_ROUNDS: Final = 6
JOBS: Final = 3
# Kinds of readers, and how many of each 20 readers of a job are of that kind.
KINDS: Final = {"steady": 13, "late": 3, "slow": 2, "cut": 2}
# Readers whose processes are paused with SIGSTOP or killed; beside those of KINDS, one for 20.
FATES: Final = ("paused", "killed")
SLOW_BYTES_PER_S: Final = 2 * MIB
KILLED_WINDOW_S: Final = 1.0  # for a server to notice that clients are gone
SHARE_AT_ONCE: Final = 0.6  # late, slow and resuming readers are not connected all the time


@dataclass(frozen=True, slots=True)
class BurstyReaders(Observation):
    """How many readers followed the bursty jobs.

    Attributes:
        readers: how many were to reach the end of their job.
        early: how many were to join before the first burst, with those to be paused and killed.
        joined: how many did join before it.
        total_bytes: how much each job wrote.
    """

    readers: int
    early: int
    joined: int
    total_bytes: int


def _readers(stage: Stage, writers: Sequence[WriterJob], each: int) -> list[Reader]:
    offsets = stage.target_has(Need.OFFSETS)

    def reader(kind: str, name: str, writer: WriterJob) -> Reader:
        cut = stage.random.randrange(1, writer.total_bytes)
        return Reader(
            f"{kind} {name}",
            writer.job_id,
            writer.seed,
            late_s=stage.random.uniform(0.1, 1.5) if kind == "late" else None,
            bytes_per_s=SLOW_BYTES_PER_S if kind == "slow" else None,
            cut_after_bytes=cut if kind == "cut" else None,
            offsets=offsets,
            timeout_s=BURSTY_TIMEOUT_S,
        )

    return [
        reader(kind, f"{job_number}.{number}", writer)
        for job_number, writer in enumerate(writers)
        for kind, share in KINDS.items()
        for number in range(each * share // 20)
    ]


def _doomed(fate: str, writers: Sequence[WriterJob], each: int) -> list[Reader]:
    return [
        Reader(
            f"{fate} {job_number}.{number}",
            writer.job_id,
            writer.seed,
            timeout_s=BURSTY_TIMEOUT_S,
        )
        for job_number, writer in enumerate(writers)
        for number in range(each // 20)
    ]


def run_bursty(stage: Stage) -> None:
    """Run hundreds of readers of several bursty jobs; pause some, kill some."""
    each = stage.pick(full=100, small=20)
    steps = BURSTS * stage.pick(full=BURSTY_ROUNDS, small=1)
    files, address = stage.target.identities.files("user"), stage.server.address
    with stage.client() as client:
        writers = [start_writer(stage, client, steps, gated=True) for _ in range(JOBS)]
        readers = _readers(stage, writers, each)
        to_pause, to_kill = (_doomed(fate, writers, each) for fate in FATES)
        with (
            ConcurrentReaders(
                address, files, to_pause, stage.recorder, dialect=stage.dialect
            ) as paused,
            ConcurrentReaders(
                address, files, to_kill, stage.recorder, dialect=stage.dialect
            ) as killed,
            ConcurrentReaders(
                address, files, readers, stage.recorder, dialect=stage.dialect
            ) as running,
        ):
            joined = [each.wait_joined(stage.join_timeout_s) for each in (paused, killed, running)]
            early = sum(each.late_s is None for each in (*readers, *to_pause, *to_kill))
            stage.record(BurstyReaders(len(readers), early, sum(joined), writers[0].total_bytes))
            paused.pause()
            # While all others wait for output: a client's end that harms another one shows then.
            killed.kill()
            measured_window(stage.patience(KILLED_WINDOW_S))
            for writer in writers:
                open_gate(client, writer)
            running.go()
            client.query(writers[0].job_id, label="meanwhile")
            running.require_done(BURSTY_TIMEOUT_S)


def judge_bursty(history: History) -> Iterator[Finding]:
    """Each reader that was neither paused nor killed has every byte."""
    seen = history.the(BurstyReaders)
    yield floor("readers before the first burst", seen.joined, seen.early)
    streams = [each for each in history.streams() if not each.label.startswith(FATES)]
    firsts = [each for each in streams if not each.label.endswith("resumed")]
    yield equal("every reader's stream ends", len(firsts), seen.readers)
    yield floor("readers at one moment", most_at_once(streams), seen.readers * SHARE_AT_ONCE)
    for number, (_, of_job) in enumerate(by_job(streams)):
        promise = f"each reader of job {number} gets every byte"
        # The start of a resumed stream is judged below.
        yield all_exact(promise, of_job, seen.total_bytes, None)
    starts = {each.start_offset for each in firsts}
    yield equal("early and late joiners start with the first byte", starts, {0})
    cuts = {each.label: each.received_bytes for each in firsts if each.code == "CANCELLED"}
    begins = {each.label: each.start_offset for each in streams if each not in firsts}
    yield floor("readers that were cut off and resumed", len(begins), 1)
    moved = [name for name, at in cuts.items() if begins.get(f"{name} resumed", -1) != at]
    yield equal("readers that were cut off resume where they were", moved[:3], [])
    yield answered("a query is answered meanwhile", history.call("meanwhile"))


BURSTY: Final = Check(
    "streams.bursty",
    "Hundreds of readers of bursty jobs, some late, slow, resuming, paused with SIGSTOP or killed: "
    "each reader that stays gets every byte.",
    run_bursty,
    judge_bursty,
    needs=PYTHON,
    cites=("63", "64", "66", "68", "70", "R-STREAM-2"),
    time_limit_s=300,
    alone=True,
)

CHECKS: Final = (MANY, THOUSAND, BURSTY)
