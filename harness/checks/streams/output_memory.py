"""The bound of output memory: all jobs' output together, and who gives way.

Not judged: the bound that a server has by default, since its size depends on the machine.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import (
    KIB,
    MIB,
    WriterJob,
    WriterStep,
    new_gate,
    open_gate,
    open_gate_at,
    server_memory_bytes,
    start_writer,
)
from harness.checks.streams.plans import OWN_SERVER
from harness.drive.client import Client, message_of
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import at_least, at_most, equal, floor, holds
from harness.judge.streams import if_cut_short
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import Variant
from jobworker.v1 import jobworker_pb2 as pb

BOUND_BYTES: Final = 16 * MIB
# In which pieces memory may be given back: those of two jobs at once.
PIECES_BYTES: Final = 4 * MIB
ENDED_BYTES: Final = 6 * MIB
GROWS_BYTES: Final = 8 * MIB  # of the running job, so that the jobs together have 20 MiB
SMALL_BYTES: Final = 3 * MIB
FLOOD_MIB: Final = 200  # many times the bound, and what an allocator keeps
WRITTEN_S: Final = 60.0
MEMORY_SLACK_BYTES: Final = 48 * MIB
MEMORY_WHY: Final = "allocators keep what they had; the output was many times this"
MOMENTS: Final = ("grown", "flooded", "joined")
READERS: Final = ("first", "second", "large", "small")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a server keeps of a job's output: from an offset to the end."""

    first_offset: int
    size_bytes: int

    @property
    def bytes_kept(self) -> int:
        """How much that is."""
        return self.size_bytes - self.first_offset


@dataclass(frozen=True, slots=True)
class OutputOfAll(Observation):
    """What a server keeps of each job, as its queries report it, while no job writes.

    Attributes:
        moment: "grown", "flooded" or "joined": after the second, third or fourth job wrote.
        jobs: of each job, by the order in which they started.
        memory_bytes: of the server.
    """

    moment: str
    jobs: Mapping[str, Kept]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class OutputMemory(Observation):
    """How much a server's memory was before its jobs wrote, in bytes."""

    before_bytes: int


def _wait_written(client: Client, writer: WriterJob, size_bytes: int) -> None:
    """Wait until a job's output is in the server's log; the judge sees whether it was."""
    seconds_until(
        lambda: client.must_query(writer.job_id).log_size_bytes >= size_bytes,
        WRITTEN_S * client.patience,
    )


def run_output_memory(stage: Stage) -> None:
    """Let two jobs end, a third write more than fits, and a fourth join it."""
    flood = WriterStep(MIB, write_bytes=64 * KIB, repeat=FLOOD_MIB)
    with (
        stage.fresh_server(Variant(output_memory_bytes=BOUND_BYTES)) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        stage.record(OutputMemory(server_memory_bytes(stage, server)))
        jobs: dict[str, WriterJob] = {}

        def look(moment: str) -> None:
            answers = {name: client.must_query(job.job_id) for name, job in jobs.items()}
            kept = {
                name: Kept(answer.log_first_offset, answer.log_size_bytes)
                for name, answer in answers.items()
            }
            stage.record(OutputOfAll(moment, kept, server_memory_bytes(stage, server)))

        for name in ("first", "second"):
            jobs[name] = start_writer(stage, client, [WriterStep(ENDED_BYTES)])
            client.stream(jobs[name].job_id, label=f"end of {name}")
        gates = (new_gate(), new_gate())
        steps = [
            WriterStep(GROWS_BYTES, write_bytes=64 * KIB), WriterStep(gate=gates[0]),
            flood, WriterStep(gate=gates[1]),
        ]  # fmt: skip
        large = jobs["large"] = start_writer(stage, client, steps, gated=True)
        plan = StreamPlan(pattern=large.pattern, bytes_per_s=16 * MIB, timeout_s=200)
        follower = client.receiver(large.job_id, plan, label="slow follower")
        following = pool.submit(follower.run)
        follower.first_byte.wait(stage.join_timeout_s)
        open_gate(client, large)
        _wait_written(client, large, large.total_bytes - flood.size_bytes * flood.repeat)
        look("grown")
        open_gate_at(client, gates[0])
        _wait_written(client, large, large.total_bytes)
        look("flooded")
        small = [WriterStep(SMALL_BYTES), WriterStep(gate=gates[0])]
        jobs["small"] = start_writer(stage, client, small)
        _wait_written(client, jobs["small"], SMALL_BYTES)
        look("joined")
        client.list_jobs(label="list")
        open_gate_at(client, gates[0])
        open_gate_at(client, gates[1])
        following.result()
        for name, job in jobs.items():
            client.stream(job.job_id, StreamPlan(pattern=job.pattern), label=f"reader of {name}")


def judge_output_memory(history: History) -> Iterator[Finding]:
    """The bound holds at each moment, the right jobs give way, readers know what they missed."""
    totals = [writer.total_bytes for writer in history.all(WriterJob)]
    moments = {each.moment: each for each in history.all(OutputOfAll)}
    yield floor("moments looked at", len(moments), len(MOMENTS))
    if set(moments) != set(MOMENTS):
        return
    for moment, seen in moments.items():
        total = sum(kept.bytes_kept for kept in seen.jobs.values())
        yield at_most(f"bytes of output kept by all jobs, {moment}", total, BOUND_BYTES)
        least, why = BOUND_BYTES - PIECES_BYTES, "memory is given back in pieces"
        yield at_least(f"bytes of output kept by all jobs, {moment}", total, least, why)
    yield from _judge_order(moments)
    yield from _judge_list(history, moments["joined"])
    yield from _judge_memory(history, moments["flooded"])
    streams = [history.stream(f"reader of {name}") for name in READERS]
    for stream, total in zip(
        (*streams, history.stream("slow follower")), (*totals, totals[2]), strict=True
    ):
        sum_bytes = stream.missed_bytes + stream.received_bytes
        promise = f"missed and received bytes of the {stream.label} add up"
        yield if_cut_short(equal(promise, sum_bytes, total), [stream])
        yield equal(f"the {stream.label}'s bytes are right at their offsets", stream.wrong_at, None)
        yield equal(f"the {stream.label}'s offsets have only reported gaps", stream.gap, "")
        promise = f"the stream of the {stream.label} ends"
        yield if_cut_short(equal(promise, stream.code, "OK"), [stream])


def _judge_order(moments: Mapping[str, OutputOfAll]) -> Iterator[Finding]:
    grown, flooded, joined = (moments[name].jobs for name in ("grown", "flooded", "joined"))
    yield at_least(
        "bytes dropped of the job that ended first", grown["first"].first_offset,
        ENDED_BYTES + ENDED_BYTES + GROWS_BYTES - BOUND_BYTES,
    )  # fmt: skip
    kept = {name: grown[name].first_offset for name in ("second", "large")}
    promise = "bytes dropped of the other jobs, while the one that ended first has some"
    yield equal(promise, kept, {"second": 0, "large": 0})
    left = {name: flooded[name].bytes_kept for name in ("first", "second")}
    promise = "bytes kept of ended jobs, while a running one lacks some"
    yield equal(promise, left, {"first": 0, "second": 0})
    yield equal("bytes dropped of the smaller of two running jobs", joined["small"].first_offset, 0)
    yield holds(
        "the largest of two running jobs gives way",
        kept=joined["large"].first_offset > flooded["large"].first_offset,
        got=joined["large"].first_offset, want=f"> {flooded['large'].first_offset}",
    )  # fmt: skip


def _judge_list(history: History, joined: OutputOfAll) -> Iterator[Finding]:
    listed = message_of(history.call("list"), pb.ListJobsResponse).jobs
    ids = {
        writer.job_id: name for writer, name in zip(history.all(WriterJob), READERS, strict=True)
    }
    kept = {
        ids[job.job_id]: Kept(job.log_first_offset, job.log_size_bytes)
        for job in listed
        if job.job_id in ids
    }
    yield equal("the list shows what is kept, as queries do", kept, dict(joined.jobs))


def _judge_memory(history: History, flooded: OutputOfAll) -> Iterator[Finding]:
    grown_bytes = flooded.memory_bytes - history.the(OutputMemory).before_bytes
    bound = BOUND_BYTES + MEMORY_SLACK_BYTES
    yield at_most("bytes of memory for all output", grown_bytes, bound, MEMORY_WHY)


OUTPUT_MEMORY: Final = Check(
    "streams.output-memory",
    "All jobs' output together is bounded: ended jobs give way first, then the largest; every "
    "reader learns exactly what it missed.",
    run_output_memory,
    judge_output_memory,
    needs=OWN_SERVER
    | {Need.OUTPUT_MEMORY, Need.OFFSETS, Need.LOG_SIZES, Need.LISTING, Need.NATIVE},
    cites=("95",),
    time_limit_s=240,
    alone=True,
)

CHECKS: Final = (OUTPUT_MEMORY,)
