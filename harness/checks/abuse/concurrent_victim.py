"""A server under abuse, and a concurrent victim: a stream that the abuse must not harm.

`run_abuse` starts the stream before the abuse. Afterwards it checks that a new client is answered,
and counts the server's threads and descriptors. `judge_victim` judges that the stream is complete
and that the counts are as before, in the same way for every kind of abuse.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Need, Stage
from harness.checks.common import (
    KIB,
    ServerCounts,
    WriterStep,
    open_gate,
    server_counts,
    start_writer,
)
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, at_most, at_most_s, resting_on
from harness.judge.streams import all_exact
from harness.record.foundations import OUTPUT
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import DEFAULT, RunningServer, Variant

# What the victim's stream has yet to receive when the abuse is over.
BURSTS: Final = 20
BURST_BYTES: Final = 16 * KIB
STREAM_TIMEOUT_S: Final = 300.0  # it is open as long as the abuse lasts
REST_TIMEOUT_S: Final = 20.0
ANSWER_BOUND_S: Final = 5.0
ANSWER_WHY: Final = "a connection and a query take milliseconds, tens on a busy machine"
SETTLE_TIMEOUT_S: Final = 10.0
# gRPC's own threads and wake-up descriptors come and go, and its pools grow with the load.
SPARE_THREADS: Final = 20
SPARE_DESCRIPTORS: Final = 6
SPARE_WHY: Final = "what gRPC and a thread pool keep for later"
NEEDS: Final = frozenset({Need.PYTHON, Need.NATIVE, Need.GRPC})


@dataclass(frozen=True, slots=True)
class CountsAfterAbuse:
    """A server's counts before and after the abuse, and how many more it may keep."""

    before: ServerCounts
    after: ServerCounts
    spare: ServerCounts


@dataclass(frozen=True, slots=True)
class ConcurrentVictim(Observation):
    """The stream beside the abuse (recorded as `victim`), and the server's counts.

    Attributes:
        joined: whether the stream had its first byte before the abuse.
        written_bytes: how much its job wrote.
        counts: None: not counted, since the harness did not launch the server or cannot look.
    """

    joined: bool
    written_bytes: int
    counts: CountsAfterAbuse | None


@contextmanager
def run_abuse(
    stage: Stage,
    variant: Variant = DEFAULT,
    *,
    descriptors: int | None = None,
    pool_threads: int = 0,
) -> Iterator[RunningServer]:
    """Yield a server to abuse: launched for the check if possible, else the shared one.

    Args:
        stage: the check's.
        variant: settings to change.
        descriptors: see `Target.launch`.
        pool_threads: how many more threads the abuse may leave in a pool that serves calls, which
            keeps them for the next ones. Far fewer than the calls of the abuse.
    """
    if not stage.target_has(Need.LAUNCH):
        with _run_victim(stage, stage.server, None):
            yield stage.server
        return
    spare = ServerCounts(SPARE_THREADS + pool_threads, SPARE_DESCRIPTORS)
    with (
        stage.fresh_server(variant, descriptors=descriptors) as server,
        _run_victim(stage, server, spare if stage.target_has(Need.HOST) else None),
    ):
        yield server


@contextmanager
def _run_victim(stage: Stage, server: RunningServer, spare: ServerCounts | None) -> Iterator[None]:
    with stage.client(server=server) as client:
        steps = [WriterStep(BURST_BYTES, repeat=BURSTS)]
        writer = start_writer(stage, client, steps, gated=True)
        plan = StreamPlan(pattern=writer.pattern, timeout_s=STREAM_TIMEOUT_S, may_time_out=True)
        receiver = client.receiver(writer.job_id, plan, label="victim")
        streaming = threading.Thread(target=receiver.run, name="victim", daemon=True)
        streaming.start()
        joined = receiver.first_byte.wait(stage.join_timeout_s) and receiver.received_bytes > 0
        before = server_counts(stage, server) if spare else None
        yield
        with stage.client("user", server=server) as newcomer:
            newcomer.query(writer.job_id, label="newcomer")
        counts = None
        if spare is not None and before is not None:
            after = _settled_counts(stage, server, before, spare)
            counts = CountsAfterAbuse(before, after, spare)
        stage.record(ConcurrentVictim(joined, writer.total_bytes, counts))
        open_gate(client, writer)
        receiver.ended.wait(REST_TIMEOUT_S)
        receiver.cancel()
        streaming.join(REST_TIMEOUT_S)
        client.query(writer.job_id, label="the writer's end")


def _settled_counts(
    stage: Stage, server: RunningServer, before: ServerCounts, spare: ServerCounts
) -> ServerCounts:
    """Wait until the counts are as before, as far as that happens in time; return them."""

    def settled() -> bool:
        now = server_counts(stage, server)
        return (
            now.threads <= before.threads + spare.threads
            and now.descriptors <= before.descriptors + spare.descriptors
        )

    seconds_until(settled, stage.patience(SETTLE_TIMEOUT_S))
    return server_counts(stage, server)


def peak_memory_bytes(stage: Stage, server: RunningServer) -> int:
    """Return a server's peak resident memory since the last call."""
    script = f"awk '/^VmHWM/ {{print $2 * 1024}}' /proc/{server.pid}/status"
    # Writing 5 resets the peak: proc_pid_clear_refs(5).
    done = stage.host.run(f"{script}; echo 5 > /proc/{server.pid}/clear_refs")
    return int(float(done.require("reading the server's peak memory").split()[0]))


def judge_victim(history: History) -> Iterator[Finding]:
    """Judge the stream beside the abuse, the new client after it, and what the server kept."""
    seen = history.the(ConcurrentVictim)
    yield assumed("a stream was open beside the abuse", true=seen.joined, got=seen.joined)
    if not seen.joined:
        return
    newcomer = history.call("newcomer")
    yield answered("a new client is answered afterwards", newcomer)
    took_s = newcomer.ended_s - newcomer.started_s
    yield at_most_s("seconds until the new client is answered", took_s, ANSWER_BOUND_S, ANSWER_WHY)
    victim = history.stream("victim")
    exact = all_exact("the stream beside the abuse lost nothing", [victim], seen.written_bytes)
    yield resting_on(exact, *OUTPUT)
    if seen.counts is not None:
        before, after, spare = seen.counts.before, seen.counts.after, seen.counts.spare
        for what, was, now, more in (
            ("threads", before.threads, after.threads, spare.threads),
            ("descriptors", before.descriptors, after.descriptors, spare.descriptors),
        ):
            why = f"{more}: {SPARE_WHY}"
            yield at_most(f"{what} of the server afterwards", now, was + more, why)
