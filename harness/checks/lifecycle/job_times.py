"""When jobs started and ended: the reported times, compared with what the jobs' own clocks print.

Jobs run one after the other, and each prints the time. So each of a job's reported times is between
two printed ones, all of them of the server's machine: no other clock is compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import newest_jobs
from harness.drive.client import Client
from harness.judge.promises import equal, floor
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

JOBS: Final = 5
# How they end after that, in turn.
ENDINGS: Final = ("exit 0", "exit 3", "kill -9 $$")
PAUSE_S: Final = 1  # of one job, so that not all run within the same second
# A server may read its clock for the start of a process that already runs; a busy machine.
NOTED_LATE_NS: Final = 500_000_000
SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TimedJob(Observation):
    """One of several consecutive jobs. All times are nanoseconds since the epoch.

    Attributes:
        printed_ns: the time that it printed.
        started_ns: when it started, as a query reports it; None: absent.
        ended_ns: the same of its end.
        listed_ns: both, as a list reports them; None: it was not listed.
    """

    printed_ns: int
    started_ns: int | None
    ended_ns: int | None
    listed_ns: tuple[int | None, int | None] | None


@dataclass(frozen=True, slots=True)
class TimesOfRunningJob(Observation):
    """Which times are reported of a job that is running.

    Attributes:
        queried: whether a query has its start, and whether it has its end.
        listed: the same of a list; None: it is not listed.
    """

    queried: tuple[bool, bool]
    listed: tuple[bool, bool] | None


def run_times(stage: Stage) -> None:
    """Run jobs that print the time, one after the other; query each, and one that is running."""
    printed: dict[str, int] = {}
    with stage.client() as client:
        for number in range(JOBS):
            pause_s = PAUSE_S if number == JOBS // 2 else 0
            ending = ENDINGS[number % len(ENDINGS)]
            script = f"sleep {pause_s}; date +%s%N; {ending}"
            job_id = client.must_start("sh", ["-c", script])
            text = client.output(job_id).strip()
            printed[job_id] = int(text) if text.isdecimal() else 0
        listed = newest_jobs(client) if stage.target_has(Need.LISTING) else {}
        for job_id, printed_ns in printed.items():
            times, job = _times(client.must_query(job_id)), listed.get(job_id)
            stage.record(TimedJob(printed_ns, *times, None if job is None else _times(job)))
        stage.record(_look_at_running(stage, client))


def _look_at_running(stage: Stage, client: Client) -> TimesOfRunningJob:
    job_id = client.must_start("sleep", ["100"])
    queried = _present(client.must_query(job_id))
    listed = newest_jobs(client).get(job_id) if stage.target_has(Need.LISTING) else None
    client.must_stop(job_id)
    return TimesOfRunningJob(queried, None if listed is None else _present(listed))


def _present(job: pb.QueryJobResponse | pb.JobSummary) -> tuple[bool, bool]:
    return job.HasField("started_at"), job.HasField("ended_at")


def _times(job: pb.QueryJobResponse | pb.JobSummary) -> tuple[int | None, int | None]:
    return (
        job.started_at.ToNanoseconds() if job.HasField("started_at") else None,
        job.ended_at.ToNanoseconds() if job.HasField("ended_at") else None,
    )


def judge_times(history: History) -> Iterator[Finding]:
    """Each time is reported, and is between the printed times before and after it."""
    jobs = history.all(TimedJob)
    yield floor("jobs that printed the time", sum(job.printed_ns > 0 for job in jobs), JOBS)
    early, late = [], []
    printed_before_ns = 0
    for number, job in enumerate(jobs):
        if job.started_ns is None or not (
            printed_before_ns <= job.started_ns <= job.printed_ns + NOTED_LATE_NS
        ):
            early.append(_misplaced(number, job.started_ns, job.printed_ns))
        following = jobs[number + 1 : number + 2]
        if (
            job.ended_ns is None
            or job.ended_ns < job.printed_ns
            or any(job.ended_ns > each.printed_ns for each in following)
        ):
            late.append(_misplaced(number, job.ended_ns, job.printed_ns))
        printed_before_ns = job.printed_ns
    promise = (
        "a job's start is reported: after the job before it, and not after it printed the time"
    )
    yield equal(promise, early, [])
    promise = "a job's end is reported: after it printed the time, and before the next job did"
    yield equal(promise, late, [])
    listed = [job.listed_ns for job in jobs if job.listed_ns is not None]
    # Of another kind of server, a list may report no times.
    times_are_listed = terms_of(history).own or any(map(any, listed))
    if listed and times_are_listed:
        queried = [(job.started_ns, job.ended_ns) for job in jobs]
        yield equal("a list reports the times that a query does", listed, queried)
    running = history.the(TimesOfRunningJob)
    yield equal("a running job has a start and no end", running.queried, (True, False))
    if running.listed is not None and times_are_listed:
        yield equal("and so it has in a list", running.listed, (True, False))


def _misplaced(number: int, reported_ns: int | None, printed_ns: int) -> str:
    if reported_ns is None:
        return f"job {number}: absent"
    return f"job {number}: {(reported_ns - printed_ns) / SECOND_NS:+.3f} s from what it printed"


TIMES: Final = Check(
    "lifecycle.times",
    "The reported start and end of a job are true, and a running job has no end.",
    run_times,
    judge_times,
    needs=frozenset({Need.OFFSETS, Need.TIMES}),
    cites=("116",),
)

CHECKS: Final = (TIMES,)
