"""What a stream delivers: every byte, in order, as soon as it is written, until the job's end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, MIB, WriterJob, WriterStep, start_writer, total_bytes
from harness.checks.lifecycle.job_end import JobEnd, end_of, ends_as, is_end
from harness.checks.streams.plans import BURSTS, PYTHON
from harness.drive.receiver import StreamPlan
from harness.judge.promises import (
    answered,
    at_most_s,
    equal,
    floor,
    holds,
    one_of,
    repeating,
    timed,
)
from harness.judge.streams import all_exact, fault_of
from harness.record.foundations import COMPLETE, EXACT, WHOLE
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding

WRITE_PLANS: Final[dict[str, tuple[WriterStep, ...]]] = {
    "single bytes": (WriterStep(3000, write_bytes=1),),
    "10 MB without a newline": (WriterStep(10_000_000, write_bytes=64 * KIB),),
    "writes of 1 MiB": (WriterStep(MIB, repeat=6),),
    "bursts after silence": (WriterStep(100_000, pause_ms=300, repeat=4),),
    "nothing at all": (),
}


def run_writes(stage: Stage) -> None:
    """Stream jobs that write in each of these ways."""
    with stage.client() as client, ThreadPoolExecutor(len(WRITE_PLANS)) as pool:

        def stream(name: str) -> None:
            writer = start_writer(stage, client, WRITE_PLANS[name])
            client.stream(writer.job_id, StreamPlan(pattern=writer.pattern), label=name)

        list(pool.map(stream, WRITE_PLANS))


def judge_writes(history: History) -> Iterator[Finding]:
    """Nothing is lost or changed, however it was written."""
    wrong = {each.label: each.wrong_at for each in history.streams() if each.wrong_at is not None}
    yield equal(EXACT, wrong, {})
    sizes = {name: total_bytes(steps) for name, steps in WRITE_PLANS.items()}
    short = {
        each.label: each.received_bytes
        for each in history.streams()
        if each.code == "OK"
        and each.wrong_at is None
        and each.received_bytes < sizes[each.label]
        and not each.unended  # the rest may still come
    }
    yield equal(COMPLETE, short, {})
    for name, steps in WRITE_PLANS.items():
        promise = f"output as {name} arrives exactly"
        yield all_exact(promise, [history.stream(name)], total_bytes(steps))


WRITES: Final = Check(
    "streams.writes",
    "Single bytes, megabytes without a newline and bursts after silence all arrive exactly.",
    run_writes,
    judge_writes,
    needs=PYTHON,
    cites=("73", "R-JOB-5"),
)

CONCURRENT_JOBS: Final = 4


def run_two_jobs(stage: Stage) -> None:
    """Stream four jobs at once, each with its own bytes and two readers."""
    with stage.client() as client, ThreadPoolExecutor(2 * CONCURRENT_JOBS) as pool:
        writers = [start_writer(stage, client, BURSTS) for _ in range(CONCURRENT_JOBS)]

        def stream(writer: WriterJob) -> None:
            client.stream(writer.job_id, StreamPlan(pattern=writer.pattern))

        list(pool.map(stream, writers * 2))


def judge_two_jobs(history: History) -> Iterator[Finding]:
    """No byte of one job is in the output of another."""
    writers = history.all(WriterJob)
    yield floor("concurrent jobs", len(writers), CONCURRENT_JOBS)
    for number, writer in enumerate(writers):
        streams = [each for each in history.streams() if each.job_id == writer.job_id]
        promise = f"the output of job {number} is never mixed with that of another job"
        yield all_exact(promise, streams, writer.total_bytes)


TWO_JOBS: Final = Check(
    "streams.two-jobs",
    "The outputs of jobs that run at the same time never mix.",
    run_two_jobs,
    judge_two_jobs,
    needs=PYTHON,
    cites=("75",),
)

ORDER_LINES: Final = 400


def run_order(stage: Stage) -> None:
    """Write to standard output and standard error in turn."""
    script = f"i=0; while [ $i -lt {ORDER_LINES} ]; do i=$((i+1)); echo o$i; echo e$i >&2; done"
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        client.output(job_id, label="turns")


def judge_order(history: History) -> Iterator[Finding]:
    """The lines are in the order of writing."""
    wanted = "".join(f"o{number}\ne{number}\n" for number in range(1, ORDER_LINES + 1))
    promise = "standard output and standard error keep the order of writing"
    yield equal(promise, history.stream("turns").text, wanted)


ORDER: Final = Check(
    "streams.order",
    "Standard output and standard error of a job keep the order in which they were written.",
    run_order,
    judge_order,
    needs=frozenset({Need.ONE_OUTPUT}),
    cites=("76", "R-JOB-5"),
)

LIVE_LINES: Final = 4
LIVE_LINE_BYTES: Final = 100
LIVE_PAUSE_S: Final = 1.5


def run_live(stage: Stage) -> None:
    """Stream a job that writes a line, is silent, writes a line, and so on."""
    step = WriterStep(LIVE_LINE_BYTES, pause_ms=round(LIVE_PAUSE_S * 1000), repeat=LIVE_LINES)
    with stage.client() as client:
        writer = start_writer(stage, client, [step])
        client.stream(writer.job_id, StreamPlan(pattern=writer.pattern), label="live")


def judge_live(history: History) -> Iterator[Finding]:
    """Each line arrives during the silence after it, before the next line and the end."""
    stream = history.stream("live")
    yield all_exact("every line arrives", [stream], LIVE_LINE_BYTES * LIVE_LINES)
    lags = [
        at_s - stream.timeline[0][0] - LIVE_PAUSE_S * ((received_bytes - 1) // LIVE_LINE_BYTES)
        for at_s, received_bytes in stream.timeline[:-1]
    ]
    # Of lines that arrive together, all but the last are late by the silences between them.
    late_s = max([*lags, LIVE_PAUSE_S * (LIVE_LINES - len(lags))])
    finding = holds(
        "a line reaches a waiting reader while the job is silent again (seconds behind the first)",
        kept=len(lags) == LIVE_LINES and late_s < LIVE_PAUSE_S,
        got=[round(lag, 2) for lag in lags],
        want=f"{LIVE_LINES} lines, each less than {LIVE_PAUSE_S} s behind",
        tolerance="one silence: less would time the machine, not the server",
    )
    yield timed(finding, late_s, LIVE_PAUSE_S)


LIVE: Final = Check(
    "streams.live",
    "Output reaches a waiting reader while the job is silent again: it is not held for more.",
    run_live,
    judge_live,
    needs=PYTHON,
    cites=("R-STREAM-1", "R-STREAM-6"),
    alone=True,
)


def run_end(stage: Stage) -> None:
    """Stream short jobs, and query each the moment its stream has ended."""
    count = stage.pick(full=100, small=15)
    with stage.client() as client, ThreadPoolExecutor(4) as pool:

        def follow(number: int) -> None:
            job_id = client.must_start("sh", ["-c", f"echo {number}; exit 3"])
            client.stream(job_id, label=f"job {number}")
            client.query(job_id, label=f"after {number}")

        list(pool.map(follow, range(count)))


def judge_end(history: History) -> Iterator[Finding]:
    """A stream ends no earlier than its job."""
    count = len(history.streams("job "))
    yield floor("short jobs", count, 10)
    faults, early = [], []
    for number in range(count):
        faults.append(fault_of(history.stream(f"job {number}"), len(f"{number}\n")))
        call = history.call(f"after {number}")
        end = end_of(call)
        if not is_end(end, JobEnd("exited", 3), terms_of(history)):
            early.append(f"{call.label}: {end.status}")
    yield equal(WHOLE, [fault for fault in faults if fault][:3], [])
    yield equal("the status is final when the stream has ended", early[:3], [])


END: Final = Check(
    "streams.end",
    "A stream ends when its job has ended, and the job's status is final by then.",
    run_end,
    judge_end,
    cites=("72", "R-STREAM-1"),
)

# The substitution ends once the child has written its first line and closed the pipe.
SURVIVOR_SCRIPT: Final = (
    "echo before; exec 3>&1; : $({} sh -c 'echo child >&3; exec >&3; {}' & ); exit 4"
)


SOON_S: Final = 1
# Within which a server on a quiet machine has killed a child: it takes milliseconds.
KILLED_S: Final = 0.1


def _survivors(stage: Stage) -> dict[str, str]:
    """Return the script of each job: a child that writes again long after the main process's end.

    "late" is later than the 2 s for which our server, without cgroups, reads from a child that left
    the process group.
    """
    soon_s = stage.pick(full=SOON_S, small=5)  # longer than a slow machine takes to kill a child
    return {
        "child": SURVIVOR_SCRIPT.format("", f"sleep {soon_s}; echo after"),
        "escaped child": SURVIVOR_SCRIPT.format(
            "setsid", f"sleep {soon_s}; echo soon; sleep 4; echo late"
        ),
    }


@dataclass(frozen=True, slots=True)
class SurvivorConditions(Observation):
    """What decides how long an escaped child's output may be delivered.

    Attributes:
        has_cgroups: whether each job has a cgroup, so that every child is killed.
        has_added_fields: whether the server has the fields that we added to the API.
    """

    has_cgroups: bool
    has_added_fields: bool


def run_survivor(stage: Stage) -> None:
    """Start jobs whose children outlive the main process, in its group and in their own session."""
    stage.record(SurvivorConditions(stage.target_has(Need.CGROUPS), stage.target_has(Need.OFFSETS)))
    with stage.client() as client:
        for label, script in _survivors(stage).items():
            job_id = client.must_start("sh", ["-c", script])
            client.stream(job_id, StreamPlan(keep_bytes=100), label=label)
            client.query(job_id, label=label)


def judge_survivor(history: History) -> Iterator[Finding]:
    """All that was written by the job's end is delivered; a killed child writes no more.

    The rule is DESIGN's, "The rule for survivors". The original API has no rule for a child that
    left its process group, so other servers are held to the first half only.
    """
    kept = "before\nchild\n"
    conditions, terms = history.the(SurvivorConditions), terms_of(history)
    # That a job ends with its main process, and its children with it.
    killed = (kept,) if terms.has_promised("lifecycle.background") else (kept, kept + "after\n")
    alive = () if conditions.has_cgroups else (kept + "soon\n",)
    if not conditions.has_added_fields:
        alive = (*alive, kept + "soon\nlate\n")
    for label, allowed in (("child", killed), ("escaped child", (kept, *alive))):
        stream = history.stream(label)
        yield equal(f"a stream ends although a {label} of the job is running", stream.code, "OK")
        promise = f"what job and {label} wrote before the job's end is delivered, and nothing else"
        finding = one_of(promise, stream.text, allowed)
        # It wrote on: it was killed, or its reader gave up, later than it slept.
        wrote_on = stream.text.startswith(kept)
        finding = timed(finding, SOON_S, KILLED_S) if wrote_on else finding
        yield repeating(finding, WHOLE)
        call = history.call(label)
        yield answered("the job can be queried", call)
        promise = f"the end of a job with a {label} is that of its main process"
        yield ends_as(promise, end_of(call), JobEnd("exited", 4), terms)


SURVIVOR: Final = Check(
    "streams.survivor",
    "A job ends with its main process: output written by then is delivered, surviving children "
    "are cut off.",
    run_survivor,
    judge_survivor,
    cites=("77", "33"),
)

DEADLINE_S: Final = 2.0
DEADLINE_MAX_S: Final = 6.0
DEADLINE_WHY: Final = "the rest of a call on a busy machine"


def run_deadline(stage: Stage) -> None:
    """Stream a silent job with a deadline."""
    with stage.client() as client:
        job_id = client.must_start("sleep", ["100"])
        plan = StreamPlan(timeout_s=DEADLINE_S, may_time_out=True)
        client.stream(job_id, plan, label="deadline")
        client.query(job_id, label="after")
        client.stop(job_id)


def judge_deadline(history: History) -> Iterator[Finding]:
    """The stream ends at its deadline."""
    stream = history.stream("deadline")
    yield equal("a stream ends at its deadline", stream.code, "DEADLINE_EXCEEDED")
    promise = f"seconds to a deadline of {DEADLINE_S:g} s"
    yield at_most_s(promise, stream.ended_s - stream.started_s, DEADLINE_MAX_S, DEADLINE_WHY)
    yield answered("the server answers after it", history.call("after"))


DEADLINE: Final = Check(
    "streams.deadline",
    "A client's deadline ends its stream of a silent job in time.",
    run_deadline,
    judge_deadline,
    cites=("74", "R-STREAM-11"),
)

CHECKS: Final = (WRITES, TWO_JOBS, ORDER, LIVE, END, SURVIVOR, DEADLINE)
