"""Jobs that the server forgets: deleted by an admin, or after their time to live."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import (
    KIB,
    MIB,
    WriterJob,
    WriterStep,
    server_memory_bytes,
    start_writer,
)
from harness.drive.client import Client, message_of
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import (
    answered,
    assumed,
    at_least,
    at_most,
    equal,
    floor,
    holds,
    in_time,
    one_of,
    unseen,
)
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.terms import NOT_SENT, terms_of
from harness.record.verdict import Finding
from harness.targets.target import Variant
from jobworker.v1 import jobworker_pb2 as pb

OUTPUT_MIB: Final = 64
# Allocators keep some of what they had, and the reader that is behind has some in flight.
KEPT_MEMORY_BYTES: Final = 24 * MIB
CALLS: Final = ("query", "stop", "delete")


@dataclass(frozen=True, slots=True)
class DeletedOutput(Observation):
    """A server's memory, before a job wrote its output and after it was deleted, in bytes.

    Attributes:
        before_bytes, after_bytes: None: the server's process cannot be observed.
    """

    before_bytes: int | None
    after_bytes: int | None


def run_delete(stage: Stage) -> None:
    """Delete a running job, then an ended one with a reader that is behind, and call both."""
    with ExitStack() as stack:
        server, seen = stage.server, False
        if stage.target_has(Need.LAUNCH):
            server = stack.enter_context(stage.fresh_server())
            seen = stage.target_has(Need.HOST)
        client = stack.enter_context(stage.client(server=server))
        user = stack.enter_context(stage.client("user", server))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        running = client.must_start("sleep", ["300"])
        client.delete(running, label="delete running")
        client.query(running, label="query running")
        before = server_memory_bytes(stage, server) if seen else None
        # In steps: the job's memory is limited where it has a cgroup.
        steps = [WriterStep(MIB, write_bytes=64 * KIB, repeat=OUTPUT_MIB)]
        writer = start_writer(stage, client, steps)
        client.stream(writer.job_id, label="end")
        plan = StreamPlan(pattern=writer.pattern, bytes_per_s=8 * MIB)
        reader = client.receiver(writer.job_id, plan, label="reader behind")
        reading = pool.submit(reader.run)
        reader.first_byte.wait(stage.join_timeout_s)
        if not stage.target.identities.scheme.may("user", "DeleteJob"):
            user.delete(writer.job_id, label="delete by a user")
        client.delete(writer.job_id, label="delete ended")
        _call_all(client, writer.job_id, "deleted")
        client.stream(writer.job_id, label="stream deleted")
        client.list_jobs(label="list")
        _call_all(client, stage.dialect.terms.unknown_id, "unknown")
        client.delete("no id", label="delete malformed")
        reading.result()
        after = server_memory_bytes(stage, server) if seen else None
        stage.record(DeletedOutput(before, after))
        client.stop(running, label="stop running")


def _call_all(client: Client, job_id: str, which: str) -> None:
    client.query(job_id, label=f"query {which}")
    client.stop(job_id, label=f"stop {which}")
    client.delete(job_id, label=f"delete {which}")


def judge_delete(history: History) -> Iterator[Finding]:
    """Only admins, only ended jobs; the job is unknown then; its reader knows what it missed."""
    writer, reader = history.the(WriterJob), history.stream("reader behind")
    terms = terms_of(history)
    refused = history.call("delete running")
    yield answered("a running job is not deleted", refused, "FAILED_PRECONDITION")
    running = message_of(history.call("query running"), pb.QueryJobResponse).status
    yield equal("it goes on", running, "running")
    for by_user in history.calls("delete by a user"):
        yield answered("a user deletes nothing", by_user, "PERMISSION_DENIED")
    yield answered("an admin deletes an ended job", history.call("delete ended"))
    for which in ("deleted", "unknown"):
        for call in CALLS:
            label = f"{call} {which}"
            yield answered(f"a job is not found ({label})", history.call(label), *terms.unknown_job)
    if terms.own:
        named = terms.unknown_id in history.call("delete unknown").detail
        yield equal("the refusal of an unknown id names it", named, want=True)
    promise = "the output of a deleted job is not found"
    yield one_of(promise, history.stream("stream deleted").code, terms.unknown_job)
    malformed = history.call("delete malformed")
    if not malformed.detail.startswith(NOT_SENT):
        yield answered("a malformed id is refused", malformed, *terms.bad_id)
    listed = message_of(history.call("list"), pb.ListJobsResponse).jobs
    names = [job.job_id for job in listed]
    yield equal("a deleted job is in no list", names.count(writer.job_id), 0)
    total = reader.received_bytes + reader.missed_bytes
    promise = "missed and received bytes of a reader that was behind add up"
    yield equal(promise, total, writer.total_bytes)
    yield equal("its bytes are right", (reader.wrong_at, reader.gap), (None, ""))
    yield equal("its stream ends", reader.code, "OK")
    memory = history.the(DeletedOutput)
    promise = "bytes of memory kept for a deleted job"
    if memory.before_bytes is None or memory.after_bytes is None:
        yield unseen(promise, PROCESS_UNSEEN)
    else:
        kept_bytes = memory.after_bytes - memory.before_bytes
        yield at_most(promise, kept_bytes, KEPT_MEMORY_BYTES, "allocators keep what they had")
    # Last: a server that keeps the output for its reader, in memory, fails by that.
    yield floor("bytes that the reader still lacked", reader.missed_bytes, 1)


DELETE: Final = Check(
    "lifecycle.delete",
    "An admin deletes an ended job: its record and output are gone, and its readers get the number "
    "of missed bytes.",
    run_delete,
    judge_delete,
    needs=frozenset({Need.DELETION, Need.LISTING, Need.OFFSETS, Need.PYTHON, Need.NATIVE}),
    cites=("123",),
    ours=True,
    alone=True,
)


TTL_S: Final = 2.0
TTL_LATE_S: Final = 5.0  # for the timers of a busy server, and ours
# How long the jobs run: one timer for all must know that the second ends later.
RUNS_S: Final = {"first": 0.0, "second": 1.0}


@dataclass(frozen=True, slots=True)
class ForgottenJob(Observation):
    """A job that ended on a server whose ended jobs live for TTL_S.

    Attributes:
        name: "first" or "second", in the order of their ends.
        after_start_s: from before its start until a query did not find it; None: not in time.
        after_end_s: the same, from the end of its stream.
    """

    name: str
    after_start_s: float | None
    after_end_s: float | None


def run_job_ttl(stage: Stage) -> None:
    """Let two jobs end one after the other while a third runs, until both are forgotten."""
    now_s = stage.recorder.now_s
    with (
        stage.fresh_server(Variant(job_ttl_s=TTL_S)) as server,
        stage.client(server=server) as client,
    ):
        running = client.must_start("sleep", ["300"])
        jobs: dict[str, tuple[str, float, float]] = {}
        for name, runs_s in RUNS_S.items():
            started_s = now_s()
            job_id = client.must_start(
                "sh", ["-c", f"sleep {runs_s}; exit 4"], label=f"start {name}"
            )
            client.stream(job_id, label=f"end of {name}")
            jobs[name] = (job_id, started_s, now_s())
            client.query(job_id, label=f"query {name}")
        for name, (job_id, started_s, ended_s) in jobs.items():
            codes = stage.dialect.terms.unknown_job
            forgotten = _forgotten(client, job_id, stage.patience(TTL_S + TTL_LATE_S), codes)
            took_s = (now_s() - started_s, now_s() - ended_s) if forgotten else (None, None)
            stage.record(ForgottenJob(name, *took_s))
        client.query(running, label="query running")
        client.list_jobs(label="list")
        client.stop(running)


def _forgotten(client: Client, job_id: str, timeout_s: float, codes: Collection[str]) -> bool:
    def is_unknown() -> bool:
        return client.query(job_id, label="look").call.code in codes

    return seconds_until(is_unknown, timeout_s) is not None


def judge_job_ttl(history: History) -> Iterator[Finding]:
    """Each ended job is forgotten when its time has come; a running one never."""
    seen = history.all(ForgottenJob)
    yield floor("jobs that ended", len(seen), len(RUNS_S))
    running = message_of(history.call("query running"), pb.QueryJobResponse).status
    yield equal("a running job is not forgotten", running, "running")
    listed = message_of(history.call("list"), pb.ListJobsResponse).jobs
    yield equal("a list has the running job alone", len(listed), 1)
    yield from separately(_judge_forgotten(job, history) for job in seen)


def _judge_forgotten(job: ForgottenJob, history: History) -> Iterator[Finding]:
    terms = terms_of(history)
    promise = f"the {job.name} job is forgotten after its time"
    yield in_time(promise, job.after_end_s, TTL_S + TTL_LATE_S, "a busy machine")
    if job.after_start_s is not None:
        least_s = TTL_S + RUNS_S[job.name]
        yield at_least(f"{promise}, not before (seconds)", job.after_start_s, least_s)
    query, start = (history.call(f"{what} {job.name}") for what in ("query", "start"))
    asked_s = query.ended_s - start.started_s
    late = query.code in terms.unknown_job and asked_s >= TTL_S + RUNS_S[job.name]
    yield assumed(f"the {job.name} job is queried in time", true=not late, got=asked_s)
    if not late:
        status = message_of(query, pb.QueryJobResponse).status
        kept = terms.is_status(status, "exited")
        promise = f"the {job.name} job is known when it has ended"
        yield holds(promise, kept=kept, got=status, want="exited")


JOB_TTL: Final = Check(
    "lifecycle.job-ttl",
    "With a time to live for jobs, an ended job is forgotten after it, and not before.",
    run_job_ttl,
    judge_job_ttl,
    needs=frozenset({Need.LAUNCH, Need.JOB_TTL, Need.LISTING, Need.NATIVE}),
    cites=("124",),
)

CHECKS: Final = (DELETE, JOB_TTL)
