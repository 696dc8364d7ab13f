"""Signals that a server inherits as ignored, and those that a terminal and its shell send."""

import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WAITS, mark_of_jobs
from harness.checks.lifecycle.job_end import JobEnd, end_of
from harness.checks.lifecycle.shutdown import EXIT_BOUND_S, STREAM_ENDS
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.judge.promises import assumed, equal, holds, one_of
from harness.record.history import History, Observation
from harness.record.verdict import Finding


def _env_option(option: str, numbers: tuple[signal.Signals, ...]) -> str:
    """Return an option of env(1) for signals: its names have no SIG."""
    return f"--{option}-signal=" + ",".join(each.name.removeprefix("SIG") for each in numbers)


# Servers write to connections that clients close: SIGPIPE.
IGNORED: Final = (signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE)
IGNORES: Final = ("env", _env_option("ignore", IGNORED))
ENDED_BY_ITSELF: Final = JobEnd("exited", exit_code=3)


@dataclass(frozen=True, slots=True)
class InheritedSignals(Observation):
    """What a server inherited, and what it did.

    Attributes:
        ignored_mask: the signals that a program launched as the server is ignores: bit N-1 is
            signal N (proc(5), SigIgn).
        ends: of a job before the server gets SIGHUP, and of one after that.
        exit_code: after SIGTERM; None: it still ran after the time bound.
    """

    ignored_mask: int
    ends: tuple[JobEnd, ...]
    exit_code: int | None


def _run_job(client: Client, label: str) -> JobEnd:
    job_id = client.must_start("sh", ["-c", f"echo {label}; exit {ENDED_BY_ITSELF.exit_code}"])
    client.output(job_id, label=label)
    return end_of(client.query(job_id).call)


def run_inherited_signals(stage: Stage) -> None:
    """Run a job, send SIGHUP, run another job, send SIGTERM."""
    look = shlex.join([*IGNORES, "sed", "-n", r"s/SigIgn:\s*//p", "/proc/self/status"])
    mask = int(stage.host.run(look).require("the signals of a program"), 16)
    with stage.fresh_server(wrapper=IGNORES) as server, stage.client(server=server) as client:
        before = _run_job(client, "before")
        server.signal(signal.SIGHUP)
        after = _run_job(client, "after")
        server.signal(signal.SIGTERM)
        exit_code = server.wait_exit(EXIT_BOUND_S)
        stage.record(InheritedSignals(mask, (before, after), exit_code))


def judge_inherited_signals(history: History) -> Iterator[Finding]:
    """Promise jobs that end with their exit codes, a SIGHUP without effect, and exit code 0."""
    server = history.the(InheritedSignals)
    ignored = all(server.ignored_mask >> number - 1 & 1 for number in IGNORED)
    what = "the server inherits SIGCHLD, SIGHUP and SIGPIPE as ignored"
    yield assumed(what, true=ignored, got=f"{server.ignored_mask:x}")
    for label, end in zip(("before", "after"), server.ends, strict=True):
        promise = f"a job ends with its output and its exit code, {label} SIGHUP"
        got = (history.stream(label).text.strip(), end)
        yield equal(promise, got, (label, ENDED_BY_ITSELF))
    yield equal("the server exits with 0 when it gets SIGTERM", server.exit_code, 0)


INHERITED_SIGNALS: Final = Check(
    "lifecycle.inherited-signals",
    "A server that inherits SIGCHLD, SIGHUP and SIGPIPE as ignored works and stops as any other; "
    "SIGHUP stays ignored.",
    run_inherited_signals,
    judge_inherited_signals,
    needs=frozenset({Need.LAUNCH, Need.HOST}),
    cites=("99",),
    ours=True,
)


TERMINAL: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
# The harness may itself run in the background of a shell, which ignores SIGINT and SIGQUIT.
DEFAULTS: Final = ("env", _env_option("default", TERMINAL))
JOB: Final = f"echo on; {WAITS}"


@dataclass(frozen=True, slots=True)
class ServerEnd(Observation):
    """The end of a server that got a signal while a job ran.

    Attributes:
        signal_name: the signal.
        exit_code: None: it still ran after the time bound; negative: the signal that killed it.
        job_pid: of the job's main process, as the server reported it.
        jobs_left: whether its machine still has the process: 1, otherwise 0.
    """

    signal_name: str
    exit_code: int | None
    job_pid: int
    jobs_left: int


def run_terminal_signals(stage: Stage) -> None:
    """Send each signal to a server of its own, with a job and a stream of it."""
    for number in TERMINAL:
        with (
            mark_of_jobs(stage) as mark,
            stage.fresh_server(wrapper=DEFAULTS) as server,
            stage.client(server=server) as client,
        ):
            job_id = client.must_start("sh", ["-c", JOB, mark])
            pid = client.must_query(job_id).pid
            plan = StreamPlan(timeout_s=EXIT_BOUND_S)
            receiver = client.receiver(job_id, plan, label=number.name)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(receiver.run)
                receiver.first_byte.wait(stage.join_timeout_s)
                server.signal(number)
                exit_code = server.wait_exit(EXIT_BOUND_S)
            left = int(stage.host.run(f"ls /proc/{pid}/exe 2>/dev/null | wc -l").stdout)
            stage.record(ServerEnd(number.name, exit_code, pid, left))


def judge_terminal_signals(history: History) -> Iterator[Finding]:
    """Promise exit code 0, no job left, and a stream that ends with a status, for each signal."""
    servers = {server.signal_name: server for server in history.all(ServerEnd)}
    for number in TERMINAL:
        name = number.name
        tried = f"a server gets {name}"
        yield assumed(tried, true=name in servers, got=list(servers))
        if (server := servers.get(name)) is None:
            continue
        yield equal(f"a server that gets {name} exits with 0", server.exit_code, 0)
        promise = "the server reports its job's pid"
        yield holds(promise, kept=server.job_pid > 0, got=server.job_pid, want="a number")
        yield equal(f"the job of a server that gets {name} has ended", server.jobs_left, 0)
        promise = f"the stream of a server that gets {name} ends with a status"
        yield one_of(promise, history.stream(name).code, STREAM_ENDS)


TERMINAL_SIGNALS: Final = Check(
    "lifecycle.terminal-signals",
    "A server that gets SIGHUP, SIGINT or SIGQUIT ends its jobs and streams and exits with 0, as "
    "with SIGTERM.",
    run_terminal_signals,
    judge_terminal_signals,
    needs=frozenset({Need.LAUNCH, Need.HOST}),
    cites=("99", "44"),
    ours=True,
)

CHECKS: Final = (INHERITED_SIGNALS, TERMINAL_SIGNALS)
