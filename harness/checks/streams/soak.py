"""A server under lasting work: memory, descriptors and threads must not grow with each round.

Each round starts jobs, streams, stops and cancels over its own connection; the server is measured
once that connection is gone. What is judged is the slope, not the level. By design a finished job
stays in the server's memory, with its record and its output: these jobs write little, and what they
may leave is allowed per job. Not covered: leaks that take more than a minute to show.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, MIB, WriterJob, WriterStep, start_writer
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import at_most, equal, floor
from harness.judge.streams import all_exact
from harness.record.history import History, Observation, UsageCurve
from harness.record.verdict import Finding
from harness.targets.target import RunningServer, Variant

# The first rounds fill pools and allocators; they are not judged.
WARM_UP_ROUNDS: Final = 10
ROUNDS: Final = 40
AT_ONCE: Final = 8
REST_TIMEOUT_S: Final = 10.0
STREAM_TIMEOUT_S: Final = 60.0

# How many of each in a round. Jobs stay in the server's memory, streams must leave nothing.
SHORT_JOBS: Final = 6
STOPPED_JOBS: Final = 3
LEFT_JOBS: Final = 3
WHOLE_STREAMS: Final = 4
HALF_STREAMS: Final = 4
JOBS: Final = SHORT_JOBS + STOPPED_JOBS + LEFT_JOBS

# The log of a job that all rounds read, and what is retained of one that writes all the time.
LOG_BYTES: Final = 2 * MIB
FLOW: Final = WriterStep(MIB, pause_ms=250, repeat=10_000)
FLOW_STREAM_BYTES: Final = LOG_BYTES + MIB
ROUND_BYTES: Final = WHOLE_STREAMS * LOG_BYTES + HALF_STREAMS * LOG_BYTES // 2 + FLOW_STREAM_BYTES


@dataclass(frozen=True, slots=True)
class ServerResources:
    """What a server has.

    Attributes:
        at_s: when, on the run's own clock.
        memory_bytes: anonymous memory, which is the server's alone.
        kept_output_bytes: in its memfds.
        descriptors, threads: of its process.
        children: of all its threads, zombies included.
        sockets: how many of the descriptors are sockets.
    """

    at_s: float
    memory_bytes: int
    kept_output_bytes: int
    descriptors: int
    threads: int
    children: int
    sockets: int


@dataclass(frozen=True, slots=True)
class SoakRounds(Observation):
    """The server after each round.

    Attributes:
        after: what it had, once the round's connection was gone.
        sockets_left: sockets still open REST_TIMEOUT_S after the last round; if there are any, the
            soak ended with that round.
    """

    after: tuple[ServerResources, ...]
    sockets_left: int


@dataclass(frozen=True, slots=True)
class Bound:
    """How much of something may remain of each round, and why."""

    what: str
    of: Callable[[ServerResources], int]
    most: float
    why: str


JOB_RECORD_BYTES: Final = 8 * KIB
HEAP_NOISE_BYTES: Final = 64 * KIB
MEMORY_WHY: Final = (
    f"{JOB_RECORD_BYTES // KIB} KiB for each of {JOBS} jobs, which the server remembers, and "
    f"{HEAP_NOISE_BYTES // KIB} KiB for the noise of a heap"
)
KEPT_BYTES: Final = 128 * KIB
KEPT_WHY: Final = "one log is kept, and one is truncated in steps of 1 MiB"
COUNT_SLOPE: Final = 0.25
COUNT_WHY: Final = "one left in four rounds: a pool may still grow once"
BOUNDS: Final = (
    Bound(
        "bytes of memory",
        lambda server: server.memory_bytes,
        JOBS * JOB_RECORD_BYTES + HEAP_NOISE_BYTES,
        MEMORY_WHY,
    ),
    Bound("bytes of kept output", lambda server: server.kept_output_bytes, KEPT_BYTES, KEPT_WHY),
    Bound("descriptors", lambda server: server.descriptors, COUNT_SLOPE, COUNT_WHY),
    Bound("threads", lambda server: server.threads, COUNT_SLOPE, COUNT_WHY),
    Bound("children", lambda server: server.children, COUNT_SLOPE, COUNT_WHY),
)


def run_soak(stage: Stage) -> None:
    """Work in rounds, and measure the server after each."""
    after: list[ServerResources] = []
    sockets_left = 0
    with (
        stage.fresh_server(Variant(retention_bytes=LOG_BYTES)) as server,
        stage.client(server=server) as client,
    ):
        whole = start_writer(stage, client, [WriterStep(LOG_BYTES)])
        client.stream(whole.job_id, StreamPlan(timeout_s=STREAM_TIMEOUT_S), label="first")
        flow = start_writer(stage, client, [FLOW])
        at_first = _measure(stage, server).sockets

        def sockets_added() -> int:
            return _measure(stage, server).sockets - at_first

        for _ in range(WARM_UP_ROUNDS + ROUNDS):
            _work(stage, server, whole, flow)
            timeout_s = stage.patience(REST_TIMEOUT_S)
            if seconds_until(lambda: sockets_added() <= 0, timeout_s) is None:
                sockets_left = max(1, sockets_added())  # one may close just now
                break
            after.append(_measure(stage, server))
        stage.record(SoakRounds(tuple(after), sockets_left))
        client.must_stop(flow.job_id, label="stop the flow")
    samples = tuple((each.at_s, each.memory_bytes) for each in after)
    title = "Memory of a server after each round of work"
    stage.record(UsageCurve(title, "bytes", None, samples))


def _measure(stage: Stage, server: RunningServer) -> ServerResources:
    process = f"/proc/{server.pid}"
    script = (
        f"awk '/^RssAnon/ {{print $2 * 1024}}' {process}/status; "
        f"find {process}/fd -lname '/memfd:*' -exec stat -L -c %b {{}} + | awk '{{s += $1}} "
        "END {print s * 512}'; "
        f"ls -l {process}/fd | grep -c -e '->'; ls {process}/task | wc -l; "
        f"cat {process}/task/*/children | wc -w; ls -l {process}/fd | grep -c socket:"
    )
    numbers = [int(float(word)) for word in stage.host.run(script).stdout.split()]
    return ServerResources(stage.recorder.now_s(), *numbers)


def _work(stage: Stage, server: RunningServer, whole: WriterJob, flow: WriterJob) -> None:
    """Do a round's work over its own connection, AT_ONCE pieces at a time."""
    with stage.client(server=server) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        work: list[Callable[[], object]] = [
            *[partial(_run_short, client)] * SHORT_JOBS,
            *[partial(_stop_streamed, stage, client)] * STOPPED_JOBS,
            *[partial(_leave_stream, client)] * LEFT_JOBS,
            *[partial(_read, client, whole, None, "whole")] * WHOLE_STREAMS,
            *[partial(_read, client, whole, LOG_BYTES // 2, "half")] * HALF_STREAMS,
            partial(_read, client, flow, FLOW_STREAM_BYTES, "flow"),
        ]
        for each in [pool.submit(one) for one in work]:
            each.result()


def _run_short(client: Client) -> None:
    """Run a job to its end."""
    client.output(client.must_start("echo", ["short"]), label="short")


def _stop_streamed(stage: Stage, client: Client) -> None:
    """Stop a job that a reader follows."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 1000"])
    receiver = client.receiver(job_id, label="stopped")
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(receiver.run)
        receiver.first_byte.wait(stage.join_timeout_s)
        client.must_stop(job_id)
        streaming.result()


def _leave_stream(client: Client) -> None:
    """Cancel a stream while its job is running, then stop the job."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 1000"])
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="left")
    client.must_stop(job_id)


def _read(client: Client, writer: WriterJob, stop_after: int | None, label: str) -> None:
    """Read a writer's output, to its end or until so many bytes were received."""
    plan = StreamPlan(
        pattern=writer.pattern, stop_after_bytes=stop_after, timeout_s=STREAM_TIMEOUT_S
    )
    client.stream(writer.job_id, plan, label=label)


def slope(values: Sequence[float]) -> float:
    """Return by how much a series grows in a step: the median over all pairs (Theil and Sen).

    A few outliers do not change it.
    """
    points = list(enumerate(values))
    return statistics.median(
        (after - before) / (later - earlier)
        for (earlier, before), (later, after) in itertools.combinations(points, 2)
    )


def growth(values: Sequence[float]) -> float:
    """Return by how much a series grows in a step in both halves: one jump is in one half only."""
    middle = len(values) // 2
    return min(slope(values[:middle]), slope(values[middle:]))


def judge_soak(history: History) -> Iterator[Finding]:
    """The server does not grow, and all streams were right."""
    seen = history.the(SoakRounds)
    promise = f"sockets still open {REST_TIMEOUT_S:g} s after a round's clients have left"
    yield equal(promise, seen.sockets_left, 0)
    yield all_exact("whole streams are whole", history.streams("whole"), LOG_BYTES)
    for label in ("half", "flow", "left", "stopped"):
        wrong = [each for each in history.streams(label) if each.wrong_at is not None or each.gap]
        yield equal(f"no byte of the streams {label!r} is wrong", len(wrong), 0)
    if seen.sockets_left:
        return
    judged = seen.after[WARM_UP_ROUNDS:]
    yield floor("rounds after the first ones", len(judged), ROUNDS)
    streamed = sum(each.received_bytes for each in history.streams())
    yield floor("bytes streamed", streamed, 0.9 * ROUNDS * ROUND_BYTES)
    if len(judged) < ROUNDS:
        return
    for bound in BOUNDS:
        series = [bound.of(server) for server in judged]
        yield at_most(f"{bound.what} that each round adds", growth(series), bound.most, bound.why)


SOAK: Final = Check(
    "streams.soak",
    "Round after round of jobs, streams, stops and cancels: memory, descriptors and threads "
    "do not grow.",
    run_soak,
    judge_soak,
    needs=frozenset(
        {Need.LAUNCH, Need.HOST, Need.PYTHON, Need.RETENTION, Need.OFFSETS, Need.NATIVE}
    ),
    cites=("83",),
    time_limit_s=300,
    alone=True,
)

CHECKS: Final = (SOAK,)
