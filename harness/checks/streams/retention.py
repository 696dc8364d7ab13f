"""Log retention: memory is bounded, and every reader learns exactly which bytes it missed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import (
    KIB,
    MIB,
    WriterJob,
    WriterStep,
    open_gate,
    server_memory_bytes,
    start_writer,
)
from harness.checks.streams.plans import OWN_SERVER
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.judge.promises import at_least, at_most, equal, floor
from harness.judge.streams import if_cut_short
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import Variant
from jobworker.v1 import jobworker_pb2 as pb

RETENTION_BYTES: Final = MIB
# The server's allocators keep memory that they once had.
MEMORY_SLACK_BYTES: Final = 48 * MIB
MEMORY_WHY: Final = "allocators keep what they had; the output was many times this"


@dataclass(frozen=True, slots=True)
class ReportedExtent(Observation):
    """Which output of the writer is still kept, as a query or a list reports it.

    Attributes:
        by: "query" or "list".
        first_offset: of the first byte that is kept.
        end_offset: of the end of its output.
        other_first_offset: the largest first offset of the other jobs, which lost nothing.
    """

    by: str
    first_offset: int
    end_offset: int
    other_first_offset: int


@dataclass(frozen=True, slots=True)
class MemoryWithRetention(Observation):
    """By how much a server's memory grew while a job wrote far more than is retained."""

    grown_bytes: int


def run_retention(stage: Stage) -> None:
    """Retain 1 MiB of a job that writes far more, with a slow follower and a late reader."""
    size_mib = stage.pick(full=256, small=16)
    steps = [WriterStep(MIB, write_bytes=64 * KIB, repeat=size_mib)]
    with (
        stage.fresh_server(Variant(retention_bytes=RETENTION_BYTES)) as server,
        stage.client(server=server) as client,
    ):
        writer = start_writer(stage, client, steps, gated=True)
        slow = StreamPlan(pattern=writer.pattern, bytes_per_s=4 * MIB)
        follower = client.receiver(writer.job_id, slow, label="slow follower")
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(follower.run)
            follower.first_byte.wait(stage.join_timeout_s)
            before_bytes = server_memory_bytes(stage, server)
            open_gate(client, writer)
            following.result()
        client.stream(writer.job_id, StreamPlan(pattern=writer.pattern), label="late reader")
        stage.record(MemoryWithRetention(server_memory_bytes(stage, server) - before_bytes))
        other = client.must_start("true")
        for by, jobs in _reports(stage, client, (writer.job_id, other)).items():
            mine = jobs.pop(writer.job_id, pb.JobSummary())
            others = max((job.log_first_offset for job in jobs.values()), default=0)
            extent = mine.log_first_offset, mine.log_size_bytes
            stage.record(ReportedExtent(by, *extent, others))


def _reports(
    stage: Stage, client: Client, job_ids: tuple[str, ...]
) -> dict[str, dict[str, pb.QueryJobResponse | pb.JobSummary]]:
    """Return what queries and the list report of jobs, by id."""
    found: dict[str, dict[str, pb.QueryJobResponse | pb.JobSummary]] = {
        "query": {job_id: client.must_query(job_id) for job_id in job_ids}
    }
    if stage.target_has(Need.LISTING):
        page = client.require(client.list_jobs(), "an admin can list jobs")
        found["list"] = {job.job_id: job for job in page.jobs}
    return found


def judge_retention(history: History) -> Iterator[Finding]:
    """Missed and received bytes add up for both readers, and memory is bounded."""
    total = history.the(WriterJob).total_bytes
    late, follower = history.stream("late reader"), history.stream("slow follower")
    for stream in (late, follower):
        sum_bytes = stream.missed_bytes + stream.received_bytes
        sum_finding = equal(
            f"missed and received bytes of the {stream.label} add up", sum_bytes, total
        )
        yield if_cut_short(sum_finding, [stream])
        yield equal(f"the {stream.label}'s bytes are right at their offsets", stream.wrong_at, None)
        yield equal(f"the {stream.label}'s offsets have only reported gaps", stream.gap, "")
        end_finding = equal(f"the {stream.label} ends with the job", stream.code, "OK")
        yield if_cut_short(end_finding, [stream])
    promise = "a late reader starts where the retained log starts"
    yield equal(promise, late.start_offset, late.missed_bytes)
    for kept in history.all(ReportedExtent):
        promise = f"a {kept.by} reports which output is kept"
        offsets = (kept.first_offset, kept.end_offset)
        yield equal(promise, offsets, (late.start_offset, total))
        promise = f"a {kept.by} reports that other jobs' output is kept"
        yield equal(promise, kept.other_first_offset, 0)
    yield at_least("bytes retained for a late reader", late.received_bytes, RETENTION_BYTES)
    yield floor("bytes that the slow follower missed", follower.missed_bytes, 1)
    if total > 2 * MEMORY_SLACK_BYTES:  # less could be kept entirely within the slack
        grown_bytes = history.the(MemoryWithRetention).grown_bytes
        promise = "bytes of memory for a log of 1 MiB"
        yield at_most(promise, grown_bytes, MEMORY_SLACK_BYTES, MEMORY_WHY)


RETENTION: Final = Check(
    "streams.retention",
    "With log retention, memory is bounded and every reader learns exactly what it missed.",
    run_retention,
    judge_retention,
    needs=OWN_SERVER | {Need.RETENTION, Need.OFFSETS, Need.LOG_SIZES},
    cites=("67", "R-STREAM-7"),
    time_limit_s=240,
    alone=True,
)

CHECKS: Final = (RETENTION,)
