"""A server that works on and on: memory, descriptors and threads stay, judged by slope, not level.

Each round starts jobs, streams, stops and cancels over a connection of its own, and the server is
looked at when that connection has gone. A finished job stays in the server's memory by design, with
its record and what it said: jobs here say little, and what they may leave is allowed for, by the
job. Leaves out leaks that take more than a minute to show.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, MIB, WriterJob, start_writer
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import at_most, equal, floor
from harness.judge.streams import all_exact
from harness.record.history import History, Json
from harness.record.verdict import Finding
from harness.targets.target import RunningServer, Variant

# Pools and allocators fill in the first ones, which are not judged.
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

# The log of a job that all rounds read, and what is kept of one that writes all the while.
LOG_BYTES: Final = 2 * MIB
FLOW_PAUSE_MS: Final = 250
FLOW_STREAM_BYTES: Final = LOG_BYTES + MIB
ROUND_BYTES: Final = WHOLE_STREAMS * LOG_BYTES + HALF_STREAMS * LOG_BYTES // 2 + FLOW_STREAM_BYTES

# What may be left, a round.
JOB_RECORD_BYTES: Final = 8 * KIB
HEAP_NOISE_BYTES: Final = 64 * KIB
MEMORY_WHY: Final = (
    f"{JOB_RECORD_BYTES // KIB} KiB for each of {JOBS} jobs, which the server remembers, and "
    f"{HEAP_NOISE_BYTES // KIB} KiB of a heap's unrest"
)
KEPT_BYTES: Final = 128 * KIB
KEPT_WHY: Final = "one log is kept, and one that is cut in steps of 1 MiB"
COUNT_SLOPE: Final = 0.25
COUNT_WHY: Final = "one left behind in four rounds: a pool may still grow once"
# What is looked at: its name, the most that it may grow in a round, and why.
BOUNDS: Final = (
    ("bytes of memory", JOBS * JOB_RECORD_BYTES + HEAP_NOISE_BYTES, MEMORY_WHY),
    ("bytes of kept output", KEPT_BYTES, KEPT_WHY),
    ("descriptors", COUNT_SLOPE, COUNT_WHY),
    ("threads", COUNT_SLOPE, COUNT_WHY),
    ("children", COUNT_SLOPE, COUNT_WHY),
)


def run_soak(stage: Stage) -> None:
    """Work in rounds, and look at the server after each."""
    with (
        stage.fresh_server(Variant(retention_bytes=LOG_BYTES)) as server,
        stage.client(server=server) as client,
    ):
        whole = start_writer(stage, client, [{"bytes": LOG_BYTES}])
        client.stream(whole.job_id, StreamPlan(timeout_s=STREAM_TIMEOUT_S), label="first")
        flow = start_writer(
            stage, client, [{"bytes": MIB, "pause_ms": FLOW_PAUSE_MS, "repeat": 10_000}]
        )
        at_first = _look(stage, server)["sockets"]
        looks: list[Json] = []
        for _ in range(WARM_UP_ROUNDS + ROUNDS):
            _work(stage, server, whole, flow)
            rested = came_true(
                lambda: _look(stage, server)["sockets"] <= at_first, stage.patience(REST_TIMEOUT_S)
            )
            if rested is None:
                stage.fact("never came to rest", _look(stage, server)["sockets"] - at_first)
                break
            looks.append(_look(stage, server))
        stage.fact("looks", looks)
        client.must_stop(flow.job_id, label="stop the flow")
    _picture(stage, looks)


def _look(stage: Stage, server: RunningServer) -> dict[str, int]:
    """Count what a server has: memory that is its own alone, and what its memfds hold."""
    at = f"/proc/{server.pid}"
    script = (
        f"awk '/^RssAnon/ {{print $2 * 1024}}' {at}/status; "
        f"find {at}/fd -lname '/memfd:*' -exec stat -L -c %b {{}} + | awk '{{s += $1}} "
        "END {print s * 512}'; "
        f"ls -l {at}/fd | grep -c -e '->'; ls {at}/task | wc -l; "
        f"cat {at}/task/*/children | wc -w; ls -l {at}/fd | grep -c socket:"
    )
    told = stage.host.run(script).stdout.split()
    names = [*(name for name, _, _ in BOUNDS), "sockets"]
    return {name: int(float(word)) for name, word in zip(names, told, strict=True)}


def _work(stage: Stage, server: RunningServer, whole: WriterJob, flow: WriterJob) -> None:
    """Do a round's work over a connection of its own, some of it at a time."""
    with stage.client(server=server) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        work: list[Callable[[], object]] = [
            *[partial(_short, client)] * SHORT_JOBS,
            *[partial(_stopped, stage, client)] * STOPPED_JOBS,
            *[partial(_left, client)] * LEFT_JOBS,
            *[partial(_read, client, whole, None, "whole")] * WHOLE_STREAMS,
            *[partial(_read, client, whole, LOG_BYTES // 2, "half")] * HALF_STREAMS,
            partial(_read, client, flow, FLOW_STREAM_BYTES, "flow"),
        ]
        for each in [pool.submit(one) for one in work]:
            each.result()


def _short(client: Client) -> None:
    """Run a job to its end."""
    client.output(client.must_start("echo", ["short"]), label="short")


def _stopped(stage: Stage, client: Client) -> None:
    """Stop a job that somebody streams."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 1000"])
    receiver = client.receiver(job_id, label="stopped")
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(receiver.run)
        receiver.first_byte.wait(stage.join_timeout_s)
        client.must_stop(job_id)
        streaming.result()


def _left(client: Client) -> None:
    """Leave a stream while its job runs, and stop that then."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 1000"])
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="left")
    client.must_stop(job_id)


def _read(client: Client, writer: WriterJob, stop_after: int | None, label: str) -> None:
    """Read a writer's output, to its end or until so many bytes have come."""
    plan = StreamPlan(
        pattern=writer.pattern, stop_after_bytes=stop_after, timeout_s=STREAM_TIMEOUT_S
    )
    client.stream(writer.job_id, plan, label=label)


def _picture(stage: Stage, looks: Sequence[Json]) -> None:
    """Record the memory for the report's picture."""
    samples: list[Json] = [
        [number, look["bytes of memory"] / MIB]
        for number, look in enumerate(looks, 1)
        if isinstance(look, dict)
    ]
    title = "Memory of a server after each round of work"
    values: dict[str, Json] = {"title": title, "unit": "MiB", "limit": None, "samples": samples}
    stage.fact("usage of memory", values)


def slope(values: Sequence[float]) -> float:
    """Return how much a series grows a step: the median over all its pairs (Theil and Sen).

    Some wild values do not move it.
    """
    points = list(enumerate(values))
    return statistics.median(
        (after - before) / (later - earlier)
        for (earlier, before), (later, after) in itertools.combinations(points, 2)
    )


def growth(values: Sequence[float]) -> float:
    """Return how much a series grows a step in both its halves; one large step is in one alone."""
    middle = len(values) // 2
    return min(slope(values[:middle]), slope(values[middle:]))


def judge_soak(history: History) -> Iterator[Finding]:
    """Flat, and everything that was streamed was right."""
    left = [fact.value for fact in history.facts("never came to rest")]
    promise = f"a round's connections are gone {REST_TIMEOUT_S:g} s after it"
    yield equal(promise, [f"{sockets} are left" for sockets in left], [])
    yield all_exact("whole streams are whole", history.streams("whole"), LOG_BYTES)
    for label in ("half", "flow", "left", "stopped"):
        wrong = [each for each in history.streams(label) if each.wrong_at is not None or each.gap]
        yield equal(f"no byte is wrong of those called {label!r}", len(wrong), 0)
    if left:
        return
    looks = history.fact("looks")
    judged = list(looks)[WARM_UP_ROUNDS:] if isinstance(looks, list) else []
    yield floor("rounds after the first ones", len(judged), ROUNDS)
    streamed = sum(each.received_bytes for each in history.streams())
    yield floor("bytes streamed", streamed, 0.9 * ROUNDS * ROUND_BYTES)
    if len(judged) < ROUNDS:
        return
    for what, most, why in BOUNDS:
        series = [look[what] for look in judged]
        yield at_most(f"{what} that each round adds", growth(series), most, why)


CHECKS: Final = (
    Check(
        "streams.soak",
        "Round after round of jobs, streams, stops and cancels: memory, descriptors and threads "
        "do not grow.",
        run_soak, judge_soak,
        frozenset({Need.LAUNCH, Need.HOST, Need.PYTHON, Need.RETENTION, Need.OFFSETS, Need.NATIVE}),
        ("83",), 300, alone=True,
    ),
)  # fmt: skip
