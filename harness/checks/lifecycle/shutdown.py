"""The end of a server that gets SIGTERM: its jobs, its streams, its exit code."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WAITS, mark_of_jobs
from harness.checks.lifecycle.stopping import IGNORES_TERM
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, at_most_s, equal, holds, one_of
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import Variant

EXIT_BOUND_S: Final = 45.0  # two grace periods of 2 s, on a busy or emulated machine
REFUSED_S: Final = 10.0
LATE: Final = "start while it ends"
STREAM_ENDS: Final = ("OK", "UNAVAILABLE", "CANCELLED", "ABORTED")


@dataclass(frozen=True, slots=True)
class ServerShutdown(Observation):
    """The end of a server that got SIGTERM while two jobs ran.

    Attributes:
        exit_code: None: it still ran after the time bound.
        seconds: from the signal to the exit.
        job_pids: of the jobs' main processes, as the server reported them.
        jobs_left: how many of these processes its machine still has.
    """

    exit_code: int | None
    seconds: float
    job_pids: tuple[int, ...]
    jobs_left: int


def run_shutdown(stage: Stage) -> None:
    """Send SIGTERM to a server with jobs that obey and resist, and streams of both; start more."""
    variant = Variant(stop_grace_s=2) if "stop_grace_s" in stage.target.flags else Variant()
    with (
        mark_of_jobs(stage) as mark,
        stage.fresh_server(variant) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        pids, streams, receivers = [], [], []
        for label, script in {"obeys": f"echo ready; {WAITS}", "resists": IGNORES_TERM}.items():
            job_id = client.must_start("sh", ["-c", script, mark])
            pids.append(client.must_query(job_id).pid)
            receiver = client.receiver(job_id, StreamPlan(timeout_s=120), label=label)
            receivers.append(receiver)
            streams.append(pool.submit(receiver.run))
            receiver.first_byte.wait(stage.join_timeout_s)
        signaled_s = stage.recorder.now_s()
        server.signal(signal.SIGTERM)
        seconds_until(lambda: not client.start("true", label=LATE).ok, REFUSED_S)
        exit_code = server.wait_exit(EXIT_BOUND_S)
        took_s = stage.recorder.now_s() - signaled_s
        for receiver in receivers:
            if not receiver.ended.wait(5):
                receiver.cancel()
        for each in streams:
            each.result()
        alive = " ".join(f"/proc/{pid}/exe" for pid in pids)
        left = int(stage.host.run(f"ls {alive} 2>/dev/null | wc -l").stdout)
        stage.record(ServerShutdown(exit_code, took_s, tuple(pids), left))


def judge_shutdown(history: History) -> Iterator[Finding]:
    """Promise ended jobs, streams that end with a status, and exit code 0 in bounded time."""
    server = history.the(ServerShutdown)
    yield equal("a server that gets SIGTERM exits with 0", server.exit_code, 0)
    yield at_most_s("seconds until it has", server.seconds, EXIT_BOUND_S)
    reported = all(pid > 0 for pid in server.job_pids)
    promise = "the server reports its jobs' pids"
    yield holds(promise, kept=reported, got=server.job_pids, want="numbers")
    yield equal("its jobs have ended", server.jobs_left, 0)
    starts = history.calls(LATE)
    yield answered("a start while the server ends is refused", starts[-1], "UNAVAILABLE")
    # The first may overtake the signal; the end of a job shows that the server has got it.
    stopped_s = history.stream("obeys").ended_s
    late = sum(each.code == "OK" and each.started_s > stopped_s for each in starts)
    yield equal("starts that succeed while the server stops its jobs", late, 0)
    for label in ("obeys", "resists"):
        stream = history.stream(label)
        promise = f"the stream of the job that {label} ends with a status"
        yield one_of(promise, stream.code, STREAM_ENDS)
        yield at_most_s("seconds until that stream ends", stream.ended_s - stream.started_s, 100)


SHUTDOWN: Final = Check(
    "lifecycle.shutdown",
    "A server that gets SIGTERM ends its jobs and streams and exits with 0 in bounded time.",
    run_shutdown,
    judge_shutdown,
    needs=frozenset({Need.LAUNCH, Need.HOST}),
    cites=("44",),
    ours=True,
)

CHECKS: Final = (SHUTDOWN,)
