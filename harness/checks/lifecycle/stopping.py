"""Stops of jobs: jobs that resist, concurrent stops, and stops that race with a job's end."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WAITS, count_marked, mark_of_jobs
from harness.checks.lifecycle.job_end import JobEnd, end_of, ends_as, is_end, is_stopped
from harness.checks.lifecycle.left_over import none_is_left, stop_and_count
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import measured_window
from harness.judge.promises import (
    answered,
    assumed,
    at_least,
    at_most_s,
    equal,
    floor,
    holds,
)
from harness.record.foundations import ANSWERS, STOPS
from harness.record.history import History, Observation
from harness.record.terms import Terms, terms_of
from harness.record.verdict import Finding

IGNORES_TERM: Final = f"trap '' TERM; echo ready; {WAITS}"
# The same with WAITS and a mark as arguments: the word `MARK-ready` shows that it ignores SIGTERM.
SHOWS_READY: Final = 'trap \'\' TERM; echo ready; exec sh -c "$1" "$0-ready"'
RESISTING: Final = "resisting"
GRACE_S: Final = 1.5  # not whole seconds: the request's unit is milliseconds
KILL_SLACK_S: Final = 10.0  # to kill, notice the end and answer, on a busy machine


def _wait_first_byte(client: Client, job_id: str) -> None:
    """Wait until a job has written something: its traps are set then."""
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")


def requested_grace_s(stage: Stage) -> float | None:
    """Return the grace period to request; None: the target's StopJob has no such field."""
    return GRACE_S if stage.target_has(Need.GRACE) else None


@dataclass(frozen=True, slots=True)
class RequestedGrace(Observation):
    """The grace period of the stop; None: the server's own."""

    seconds: float | None


def run_escalates(stage: Stage) -> None:
    """Stop a job that ignores SIGTERM."""
    grace_s = requested_grace_s(stage)
    with mark_of_jobs(stage) as mark, stage.client() as client:
        job_id = client.must_start("sh", ["-c", SHOWS_READY, mark, WAITS])
        if stage.target_has(Need.HOST):
            count_marked(stage, f"{mark}-ready", "-ge 1", stage.join_timeout_s)
        else:
            _wait_first_byte(client, job_id)
        stop_and_count(stage, client, job_id, mark, label=RESISTING, grace_s=grace_s)
        if grace_s is not None:
            willing = client.must_start("sleep", ["100"])
            client.stop(willing, label="stop at once", grace_s=0)
            client.query(willing, label="after the stop at once")
        stage.record(RequestedGrace(grace_s))


def judge_escalates(history: History) -> Iterator[Finding]:
    """Promise that it is killed after the grace period and not before."""
    call = history.call(f"stop {RESISTING}")
    yield answered("a job that ignores SIGTERM is stopped", call)
    yield from none_is_left(history, RESISTING)
    terms, killed = terms_of(history), JobEnd("signaled", signal=9)
    end = end_of(history.call(f"after {RESISTING}"))
    kept = is_end(end, killed, terms) or (not terms.own and is_stopped(end, terms))
    yield holds("by SIGKILL", kept=kept, got=end, want=killed)
    took_s = call.ended_s - call.started_s
    grace_s = history.the(RequestedGrace).seconds
    if grace_s is not None:
        yield at_least("seconds until then", took_s, grace_s, "the requested grace period")
        end = end_of(history.call("after the stop at once"))
        yield ends_as("a grace period of 0 kills at once", end, killed, terms)
    else:
        grace_s = terms.stop_grace_s
    yield at_most_s("seconds until then", took_s, grace_s + KILL_SLACK_S)


ESCALATES: Final = Check(
    "lifecycle.escalates",
    "A job that ignores SIGTERM is killed after the grace period.",
    run_escalates,
    judge_escalates,
    cites=("35", "R-JOB-3"),
)


LAST_WORDS_NAME: Final = "lifecycle.last-words"
# The job is slow: a quick one might write it before a kill without any grace period.
LAST_WORDS_SCRIPT: Final = f"trap 'sleep 0.3; echo last words; exit 7' TERM; echo ready; {WAITS}"


def run_last_words(stage: Stage) -> None:
    """Stop a job that writes something when it gets SIGTERM."""
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", LAST_WORDS_SCRIPT])
        _wait_first_byte(client, job_id)
        client.stop(job_id, label="stop")
        client.stream(job_id, StreamPlan(keep_bytes=100), label="whole")
        client.query(job_id, label="after")


def judge_last_words(history: History) -> Iterator[Finding]:
    """Promise that the text arrives, and that the exit code is the job's own."""
    yield answered("the stop succeeds", history.call("stop"))
    text = history.stream("whole").text
    # Between them some shells write that their sleep was terminated.
    yield holds(
        "what a job writes after SIGTERM is kept",
        kept=text.startswith("ready\n") and text.endswith("last words\n"), got=text,
        want="ready ... last words",
    )  # fmt: skip
    end = end_of(history.call("after"))
    yield ends_as("its end is its own", end, JobEnd("exited", exit_code=7), terms_of(history))


LAST_WORDS: Final = Check(
    LAST_WORDS_NAME,
    "What a job writes after SIGTERM is kept, and its exit code is its own.",
    run_last_words,
    judge_last_words,
    cites=("36", "R-JOB-3"),
    ours=True,
)


def run_concurrent_stops(stage: Stage) -> None:
    """Stop one job a hundred times at once; the job counts the signals that it gets."""
    count = stage.pick(full=100, small=20)
    script = f"n=0; trap 'n=$((n+1)); echo term $n' TERM; echo ready; {WAITS}"
    grace_s = requested_grace_s(stage)
    with stage.client() as client, ThreadPoolExecutor(count) as pool:
        job_id = client.must_start("sh", ["-c", script])
        _wait_first_byte(client, job_id)
        list(
            pool.map(
                lambda i: client.stop(job_id, label=f"stop {i}", grace_s=grace_s), range(count)
            )
        )
        client.stream(job_id, StreamPlan(keep_bytes=4096), label="whole")
        client.query(job_id, label="after")


def judge_concurrent_stops(history: History) -> Iterator[Finding]:
    """Promise that all succeed, and that the job gets one SIGTERM."""
    codes = Counter(call.code for call in history.calls("stop "))
    yield equal("every one of many concurrent stops succeeds", list(codes), ["OK"])
    received = history.stream("whole").text.count("term")
    yield equal("the job gets one SIGTERM", received, 1)
    status = end_of(history.call("after")).status
    kept = terms_of(history).is_status(status, "signaled")
    yield holds("and is killed after the grace period", kept=kept, got=status, want="signaled")


CONCURRENT_STOPS: Final = Check(
    "lifecycle.concurrent-stops",
    "A hundred concurrent stops of one job all succeed; the job gets one SIGTERM.",
    run_concurrent_stops,
    judge_concurrent_stops,
    cites=("37",),
    time_limit_s=90,
    ours=True,
)


# The indices of a job that is stopped well before its own end, and of one well after it.
EARLY_STOP: Final = 9
LATE_STOP: Final = 1
LATE_STOP_S: Final = 0.5
PROGRAM_START_S: Final = 20.0  # longer than the program of a call takes to stop a job


def run_stop_race(stage: Stage) -> None:
    """Stop jobs at about the time of their own end."""
    count = stage.pick(full=60, small=12)
    # Before the jobs' own ends, at them, and after them.
    delays_s = [stage.random.uniform(0, 0.1) for _ in range(count)]
    delays_s[EARLY_STOP] = 0.0
    delays_s[LATE_STOP] = stage.patience(LATE_STOP_S)
    sleeps_s = [number % 10 / 100 for number in range(count)]
    if not stage.target_has(Need.GRPC):
        sleeps_s[EARLY_STOP] = PROGRAM_START_S
    with stage.client() as client, ThreadPoolExecutor(4) as pool:

        def run(number: int) -> None:
            job_id = client.must_start("sh", ["-c", f"sleep {sleeps_s[number]:g}; exit 5"])
            measured_window(delays_s[number])
            client.stop(job_id, label=f"stop {number}")
            client.query(job_id, label=f"first {number}")
            client.stream(job_id, label=f"stream {number}")
            client.query(job_id, label=f"second {number}")

        list(pool.map(run, range(count)))


def judge_stop_race(history: History) -> Iterator[Finding]:
    """Promise one truthful final status for each job."""
    firsts, seconds = ([end_of(c) for c in history.calls(f"{w} ")] for w in ("first", "second"))
    own = JobEnd("exited", exit_code=5)
    terms = terms_of(history)
    by_itself = sum(is_end(end, own, terms) for end in firsts)
    odd = [end for end in firsts if not (is_end(end, own, terms) or is_stopped(end, terms))]
    yield equal("a stop that races with the job's end leaves one truthful status", odd[:3], [])
    yield equal("and it never changes", Counter(firsts), Counter(seconds))
    codes = {call.code for call in history.calls("stop ")} - {"OK", "FAILED_PRECONDITION"}
    if not terms.own:  # which status a refusal has, is for `lifecycle.stop-twice`
        codes &= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    yield equal("the stop succeeds, or is refused since the job has ended", codes, set())
    streams = {stream.code for stream in history.streams("stream ")}
    yield equal("its streams end", streams, {"OK"})
    yield floor("jobs that ended by themselves", by_itself, 1)
    yield floor("jobs that were stopped", len(firsts) - by_itself, 1)


STOP_RACE: Final = Check(
    "lifecycle.stop-race",
    "A stop that races with the job's own end leaves one truthful final status.",
    run_stop_race,
    judge_stop_race,
    cites=("38",),
    time_limit_s=90,
)


# The jobs that are stopped twice, and how each ends.
STOPPED_TWICE: Final = {
    "running": JobEnd("signaled", signal=15),
    "ended": JobEnd("exited", exit_code=6),
}


def run_stop_twice(stage: Stage) -> None:
    """Stop a running job and an ended one, each twice."""
    with stage.client() as client:
        running = client.must_start("sleep", ["100"])
        ended = client.must_start("sh", ["-c", "exit 6"])
        client.wait_ended(ended)
        for label, job_id in (("running", running), ("ended", ended)):
            client.query(job_id, label=f"{label} before")
            client.stop(job_id, label=f"stop 1 of {label}")
            client.query(job_id, label=f"{label} between")
            client.stop(job_id, label=f"stop 2 of {label}")
            client.query(job_id, label=f"{label} after")


def judge_stop_twice(history: History) -> Iterator[Finding]:
    """Promise that no stop is an error, and that none changes an end."""
    before, after = (
        end_of(history.call(f"running {when}")).status for when in ("before", "between")
    )
    terms = terms_of(history)
    yield equal(ANSWERS, before, "running")
    code = history.call("stop 1 of running").code
    kept = code == "OK" and after != "running"
    yield holds(STOPS, kept=kept, got=f"{code}, then {after}", want="OK, then not running")
    for label in STOPPED_TWICE:
        for turn in ("stop 1", "stop 2"):
            promise = f"{turn} of the {label} job succeeds, or is refused since it has ended"
            call = history.call(f"{turn} of {label}")
            yield answered(promise, call, "OK", "FAILED_PRECONDITION")
    for label, end in STOPPED_TWICE.items():
        for when in ("between", "after"):
            promise = f"the status of the {label} job after a stop"
            yield from _same_end(promise, end_of(history.call(f"{label} {when}")), end, terms)


def _same_end(promise: str, got: JobEnd, end: JobEnd, terms: Terms) -> Iterator[Finding]:
    """Promise how a stopped job ended; without a promised SIGTERM, it may have been killed."""
    kept = is_end(got, end, terms)
    if end.status == "signaled" and not terms.has_promised(LAST_WORDS_NAME):
        kept = is_stopped(got, terms)
    yield holds(promise, kept=kept, got=got, want=end)


STOP_TWICE: Final = Check(
    "lifecycle.stop-twice",
    "Stopping an ended job, or a job twice, changes nothing.",
    run_stop_twice,
    judge_stop_twice,
    cites=("39",),
)


# A child that prints its parent's state, proc_pid_stat(5), once that is paused, or after 5 s: for a
# harness without access to the server's machine. It is of the same job, since another job may be in
# a PID namespace of its own.
STATE: Final = (
    'n=0; until s=$(cut -d " " -f 3 /proc/$PPID/stat) && [ "$s" = T ] || [ $n -ge 100 ]; '
    "do n=$((n+1)); sleep 0.05; done; echo $s"
)
# Jobs that pause themselves, one of them with a child that pauses itself, too. The argument of the
# main process is `MARK-main`, and that of this child `MARK-child`: what a stop leaves of a tree is
# for `lifecycle.stop-tree`.
PAUSED: Final = {
    "paused": f"sh -c '{STATE}' & kill -STOP $$",
    "paused tree": f"sh -c '{STATE}; kill -STOP $$' \"${{0%main}}child\" & kill -STOP $$",
}
PAUSED_PROCESSES: Final = {"paused": 1, "paused tree": 2}


@dataclass(frozen=True, slots=True)
class PausedJob(Observation):
    """Whether a job was paused, and what showed it."""

    label: str
    paused: bool
    seen: str


def run_stopped_job(stage: Stage) -> None:
    """Stop jobs that have paused themselves with SIGSTOP."""
    with stage.client() as client:
        for label, script in PAUSED.items():
            with mark_of_jobs(stage) as mark:
                job_id = client.must_start("sh", ["-c", script, f"{mark}-main"])
                stage.record(_paused(stage, client, job_id, mark, label))
                stop_and_count(stage, client, job_id, f"{mark}-main", label=label)


def _paused(stage: Stage, client: Client, job_id: str, mark: str, label: str) -> PausedJob:
    """Wait until a job is paused: as the server's machine shows it, or as the job prints it."""
    count = 0
    if stage.target_has(Need.HOST):
        wanted = f"-ge {PAUSED_PROCESSES[label]}"
        count = count_marked(stage, mark, wanted, stage.join_timeout_s, state="T")
    if count:
        return PausedJob(label, count >= PAUSED_PROCESSES[label], f"{count} paused processes")
    plan = StreamPlan(stop_after_bytes=1, keep_bytes=20)
    state = client.stream(job_id, plan, label=f"state of {label}").text.strip()
    return PausedJob(label, state == "T", state)


def judge_stopped_job(history: History) -> Iterator[Finding]:
    """Promise that they end within the default grace period, by SIGTERM where that is promised."""
    terms = terms_of(history)
    jobs = {each.label: each for each in history.all(PausedJob)}
    for label in PAUSED:
        job = jobs[label]
        yield assumed(f"a {label} job is paused", true=job.paused, got=job.seen)
        call = history.call(f"stop {label}")
        yield answered(f"a {label} job stops", call)
        took_s = call.ended_s - call.started_s
        promise = f"seconds until a {label} job has stopped"
        yield at_most_s(promise, took_s, terms.stop_grace_s + KILL_SLACK_S)
        yield from none_is_left(history, label)
        end, terminated = end_of(history.call(f"after {label}")), JobEnd("signaled", signal=15)
        promise = f"a {label} job is continued, so that it can act on SIGTERM"
        yield from _same_end(promise, end, terminated, terms)


STOPPED_JOB: Final = Check(
    "lifecycle.stopped-job",
    "A job paused with SIGSTOP can be stopped.",
    run_stopped_job,
    judge_stopped_job,
    cites=("42",),
    time_limit_s=180,  # two stops, each with a grace period of perhaps a minute
)


CHECKS: Final = (
    ESCALATES,
    LAST_WORDS,
    CONCURRENT_STOPS,
    STOP_RACE,
    STOP_TWICE,
    STOPPED_JOB,
)
