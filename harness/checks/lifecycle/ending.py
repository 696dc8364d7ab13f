"""How jobs end by themselves: exit codes, signals, children left behind, many short jobs."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Need, Stage
from harness.checks.common import ServerCounts, new_path, server_counts
from harness.checks.lifecycle.job_end import JobEnd, end_of, is_end
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.judge.promises import assumed, at_most, at_most_s, equal, floor, holds, unseen
from harness.judge.streams import identical
from harness.record.foundations import EXIT_CODE
from harness.record.history import History, Observation
from harness.record.terms import Terms, terms_of
from harness.record.verdict import Finding

PARALLEL: Final = 4


@dataclass(frozen=True, slots=True)
class ReportedEnd(Observation):
    """How a job ended, and how a query reported it."""

    actual: JobEnd
    reported: JobEnd
    may_dump_core: bool = False


def _record_ends(
    stage: Stage, scripts: Mapping[JobEnd, str], *, may_dump_core: bool = False
) -> None:
    """Run a shell script for each end, wait for it, and query it."""
    with stage.client() as client, ThreadPoolExecutor(PARALLEL) as pool:

        def run(actual: JobEnd) -> None:
            job_id = client.must_start("sh", ["-c", scripts[actual]])
            client.wait_ended(job_id)
            reported = end_of(client.query(job_id).call)
            stage.record(ReportedEnd(actual, reported, may_dump_core))

        list(pool.map(run, scripts))


def _wrong(ends: Sequence[ReportedEnd], terms: Terms) -> list[ReportedEnd]:
    return [end for end in ends if not is_end(end.reported, end.actual, terms)]


def run_exit_codes(stage: Stage) -> None:
    """Run a job for each exit code that exists."""
    some = (0, 1, 2, 126, 127, 128, 137, 143, 254, 255)
    codes = stage.pick(full=tuple(range(256)), small=some)
    _record_ends(stage, {JobEnd("exited", code): f"exit {code}" for code in codes})


def judge_exit_codes(history: History) -> Iterator[Finding]:
    """Promise that each is reported exactly."""
    ends = history.all(ReportedEnd)
    yield assumed("every exit code was tried", true=len(ends) >= 10, got=len(ends))  # noqa: PLR2004
    yield equal(EXIT_CODE, _wrong(ends, terms_of(history))[:5], [])


EXIT_CODES: Final = Check(
    "lifecycle.exit-codes",
    "Every exit code, 0 to 255, is reported exactly.",
    run_exit_codes,
    judge_exit_codes,
    needs=frozenset({Need.EXIT_CODES}),
    cites=("31", "R-JOB-4"),
    time_limit_s=90,
)


# Signals that do not end a process by default.
_GENTLE: Final = {
    "SIGCHLD",
    "SIGCONT",
    "SIGURG",
    "SIGWINCH",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
}
# Some real-time signals (34 to 64) represent them all.
DEADLY: Final = sorted(
    {int(each) for each in signal.Signals if each.name not in _GENTLE} | {34, 40, 64}
)
DEADLY_LEAST: Final = 7
# Signals that dump core by default and that any shell can send: SIGQUIT, ILL, ABRT, FPE, SEGV. The
# kernel reports such an end by another code, CLD_DUMPED instead of CLD_KILLED; see waitid(2).
DUMPING: Final = (3, 4, 6, 8, 11)


@dataclass(frozen=True, slots=True)
class SignalRun(Observation):
    """The planned signals without a core dump; core_pattern, and how many core files there were.

    Without a number of core files, the answer of the job that counted them has none.
    """

    planned: int
    core_pattern: str
    core_files: int | None


def run_signals(stage: Stage) -> None:
    """Send each signal that ends a process, without a core dump; then some with one."""
    numbers = stage.pick(full=DEADLY, small=[1, 3, 6, 9, 11, 15, 34])
    scripts = {_signaled(number): f"ulimit -c 0; kill -{number} $$" for number in numbers}
    _record_ends(stage, scripts)
    with stage.client() as client:
        scratch = new_path("cores")
        client.wait_ended(client.must_start("mkdir", ["-m", "700", scratch]))
        # A directory for each, since the cores may have one name. The hard limit and no higher: a
        # shell whose ulimit fails would end by that.
        dump = "mkdir {0}/{1} && cd {0}/{1} && ulimit -c $(ulimit -H -c); kill -{1} $$"
        try:
            scripts = {_signaled(number): dump.format(scratch, number) for number in DUMPING}
            _record_ends(stage, scripts, may_dump_core=True)
            look = f"cat /proc/sys/kernel/core_pattern; ls {scratch}/*/* 2>/dev/null | wc -l"
            pattern, _, count = client.output(client.must_start("sh", ["-c", look])).partition("\n")
            cores = int(count) if count.strip().isdecimal() else None
            stage.record(SignalRun(len(numbers), pattern, cores))
        finally:
            client.wait_ended(client.must_start("rm", ["-rf", scratch]))


def _signaled(number: int) -> JobEnd:
    return JobEnd("signaled", signal=number)


def judge_signals(history: History) -> Iterator[Finding]:
    """Promise that each is reported exactly."""
    run, ends = history.the(SignalRun), history.all(ReportedEnd)
    plain = [end for end in ends if not end.may_dump_core]
    dumping = [end for end in ends if end.may_dump_core]
    yield floor("signals that were tried", len(plain), max(DEADLY_LEAST, run.planned))
    yield floor("signals that were tried with a core dump", len(dumping), len(DUMPING))
    terms = terms_of(history)
    if terms.own:  # others may drop the ends of lines
        counted = run.core_files is not None
        yield assumed("the core files are counted", true=counted, got=run.core_pattern)
    promise = "the signal that ended a job is reported exactly, as status signaled"
    yield equal(promise, _wrong(plain, terms)[:5], [])
    promise = "so is a signal that made the job dump core"
    # A pattern that is a pipe hands the cores to a program, which may write them anywhere.
    dumped = run.core_pattern.startswith("|") or run.core_files == len(DUMPING)
    wrong = _wrong(dumping, terms)
    yield equal(promise, wrong, []) if dumped or wrong else unseen(promise, "no core was written")


SIGNALS: Final = Check(
    "lifecycle.signals",
    "Every signal that ends a job is reported exactly, core-dumping ones too.",
    run_signals,
    judge_signals,
    needs=frozenset({Need.SIGNALS}),
    cites=("31", "R-JOB-4"),
)


# From a job's end to that of its stream: less than any wait of a server for the job's children,
# since the quickest of several counts. An emulated processor is slower.
AT_ONCE_S: Final = 1.5
AT_ONCE_EMULATED_S: Final = 10.0
QUICK_TRIES: Final = 3
GONE_LOOKS: Final = 20  # ten a second


@dataclass(frozen=True, slots=True)
class BackgroundChild(Observation):
    """The state of an ended job's child, proc_pid_stat(5), or "gone"; and the time bound, in s."""

    state: str
    stream_end_max_s: float


def run_background(stage: Stage) -> None:
    """Run jobs whose child in the background holds the output open; time the end of some."""
    with stage.client() as client:
        for number in range(QUICK_TRIES):
            job_id = client.must_start("sh", ["-c", "sleep 1000 & exit 3"])
            client.stream(job_id, label=f"quick {number}")
        script = "sleep 1000 & echo $!; exit 3"
        job_id = client.must_start("sh", ["-c", script])
        stream = client.stream(job_id, StreamPlan(keep_bytes=100), label="stream")
        client.query(job_id, label="after")
        pid = int(stream.text) if stream.text.strip().isdigit() else 0
        # A zombie counts as gone: its parent may never reap it. A process that dies closes its
        # output some time before it is gone.
        look = (
            f"for turn in $(seq {GONE_LOOKS}); do "
            f"state=$(cut -d ' ' -f 3 /proc/{pid}/stat 2>/dev/null || echo gone); "
            'case $state in Z|gone) break; esac; sleep 0.1; done; echo "$state"'
        )
        state = client.output(client.must_start("sh", ["-c", look])).strip()
        bound_s = AT_ONCE_S if stage.target_has(Need.NATIVE) else AT_ONCE_EMULATED_S
        stage.record(BackgroundChild("gone" if state == "Z" else state, bound_s))


def judge_background(history: History) -> Iterator[Finding]:
    """Promise that the end is noticed at once, and that the child is gone."""
    stream, child = history.stream("stream"), history.the(BackgroundChild)
    yield equal("the stream ends although a child holds the output open", stream.code, "OK")
    quick_s = [each.ended_s - each.started_s for each in history.streams("quick ")]
    yield floor("jobs whose end was timed", len(quick_s), QUICK_TRIES)
    yield at_most_s(
        "seconds from such a job's end to its stream's", min(quick_s, default=0.0),
        child.stream_end_max_s, f"the quickest of {QUICK_TRIES}, on a machine that may be busy",
    )  # fmt: skip
    end = end_of(history.call("after"))
    yield equal("the end is the main process's", (end.status, end.exit_code), ("exited", 3))
    arrived = stream.text.strip().isdigit()
    yield holds("the child's number arrived", kept=arrived, got=stream.text, want="a number")
    yield equal("the child of an ended job is gone", child.state, "gone")


BACKGROUND: Final = Check(
    "lifecycle.background",
    "A job ends with its main process: a child that holds the output open is killed.",
    run_background,
    judge_background,
    cites=("33", "R-JOB-3"),
    ours=True,
)


QUERIED_STEP: Final = 10  # every tenth of the silent jobs is queried
LOUD_BYTES: Final = 65_000  # more than half a pipe: lost when a job is reaped before it is drained
# The server's own pool may still grow a little, and one or two jobs may be ending.
COUNT_SLACK: Final = 24
# Of other runtimes, which keep the threads that a crowd of calls needed; a leak would be thousands.
OTHERS_SLACK: Final = 200


@dataclass(frozen=True, slots=True)
class ShortJobs(Observation):
    """The silent jobs that were queried, how many had ended, and the server's counts.

    The counts are taken before and after the silent jobs; None: its process cannot be observed.
    """

    queried: int
    ended: int
    before: ServerCounts | None
    after: ServerCounts | None


def run_short_jobs(stage: Stage) -> None:
    """Run many short jobs, some with output, and count what the server keeps of them."""
    program = f"head -c {LOUD_BYTES} /dev/zero | tr '\\0' x"
    loud, silent = stage.pick(full=(200, 10_000), small=(20, 150))
    with stage.client() as client, ThreadPoolExecutor(PARALLEL) as pool:

        def run(number: int) -> None:
            job_id = client.must_start("sh", ["-c", program])
            client.stream(job_id, label=f"loud {number}")

        list(pool.map(run, range(loud)))
        before = _counts(stage, client)
        jobs = list(pool.map(lambda _: client.must_start("true", label="silent"), range(silent)))
        after = _counts(stage, client)
        queried = jobs[::QUERIED_STEP]
        terms = stage.dialect.terms
        statuses = [client.must_query(job_id).status for job_id in queried]
        ended = sum(terms.is_status(status, "exited") for status in statuses)
        stage.record(ShortJobs(len(queried), ended, before, after))


def _counts(stage: Stage, client: Client) -> ServerCounts | None:
    """Count what the server holds, once the jobs so far have ended."""
    if stage.server.pid is None or not stage.target_has(Need.HOST):
        return None
    client.output(client.must_start("true"))  # jobs end in about the order of their starts
    return server_counts(stage, stage.server)


def judge_short_jobs(history: History) -> Iterator[Finding]:
    """Promise that no byte is lost and nothing is kept."""
    streams = history.streams("loud ")
    short = [
        f"{stream.label}: {stream.received_bytes}"
        for stream in streams
        if (stream.code, stream.received_bytes) != ("OK", LOUD_BYTES)
    ]
    yield holds(
        f"each of {len(streams)} short jobs' {LOUD_BYTES} bytes arrive",
        kept=bool(streams) and not short, got=short[:5] or len(streams), want="none is short",
    )  # fmt: skip
    yield identical("they are all the same", streams)
    jobs = history.the(ShortJobs)
    yield equal("every short job has ended", jobs.ended, jobs.queried)
    before, after = jobs.before, jobs.after
    if before is None or after is None:
        promise = "the server's threads, descriptors and children after thousands of jobs"
        yield unseen(promise, PROCESS_UNSEEN)
        return
    slack = COUNT_SLACK if terms_of(history).own else OTHERS_SLACK
    for what, count, count_before in (
        ("threads", after.threads, before.threads),
        ("descriptors", after.descriptors, before.descriptors),
        ("children", after.children, before.children),
    ):
        promise = f"{what} of the server after thousands of jobs"
        yield at_most(promise, count, count_before + slack, "flat but for jobs still ending")


SHORT_JOBS: Final = Check(
    "lifecycle.short-jobs",
    "Ten thousand short jobs lose no byte and leave no zombie, descriptor or thread.",
    run_short_jobs,
    judge_short_jobs,
    cites=("41", "R-JOB-5"),
    time_limit_s=300,
    alone=True,
)

CHECKS: Final = (EXIT_CODES, SIGNALS, BACKGROUND, SHORT_JOBS)
