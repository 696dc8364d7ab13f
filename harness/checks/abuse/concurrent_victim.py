"""A server that is abused, and beside the abuse a stream that must not notice it.

`abused` starts the stream before, and afterwards sees that it is complete, that a new client is
answered, and that the server's threads and descriptors are as many as before. `unharmed` judges
that, the same way for every kind of abuse.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from harness.checks.check import Need, Stage
from harness.checks.common import KIB, open_gate, server_count, start_writer
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import answered, assumed, at_most
from harness.judge.streams import all_exact
from harness.record.history import History, Json
from harness.record.verdict import Finding
from harness.targets.target import DEFAULT, RunningServer, Variant

# What the stream has still to bring when the abuse is over.
BURSTS: Final = 20
BURST_BYTES: Final = 16 * KIB
STREAM_TIMEOUT_S: Final = 300.0  # it is open as long as the abuse lasts
REST_TIMEOUT_S: Final = 20.0
ANSWER_BOUND_S: Final = 5.0
ANSWER_WHY: Final = "a connection and a look-up take milliseconds, tens on a busy machine"
SETTLED_S: Final = 10.0
# gRPC's own threads and wake-up descriptors come and go, and its pools grow with the load.
SPARE_THREADS: Final = 20
SPARE_DESCRIPTORS: Final = 6
NEEDS: Final = frozenset({Need.PYTHON, Need.NATIVE})


@contextmanager
def abused(
    stage: Stage,
    variant: Variant = DEFAULT,
    *,
    descriptors: int | None = None,
    pool_threads: int = 0,
) -> Iterator[RunningServer]:
    """Yield a server to abuse: one of the check's own where that can be, else the shared one.

    Args:
        stage: the check's.
        variant: settings to change.
        descriptors: see `Target.launched`.
        pool_threads: how many more threads the abuse may leave in a pool that serves calls: those
            are kept for the next ones. Far fewer than the calls that it makes.
    """
    if not stage.target_has(Need.LAUNCH):
        with _beside(stage, stage.server, None):
            yield stage.server
        return
    spare = {"threads": SPARE_THREADS + pool_threads, "fds": SPARE_DESCRIPTORS}
    counts = spare if stage.target_has(Need.HOST) else None
    with (
        stage.fresh_server(variant, descriptors=descriptors) as server,
        _beside(stage, server, counts),
    ):
        yield server


@contextmanager
def _beside(stage: Stage, server: RunningServer, spare: dict[str, int] | None) -> Iterator[None]:
    with stage.client(server=server) as client:
        steps: list[dict[str, int | str]] = [{"bytes": BURST_BYTES, "repeat": BURSTS}]
        writer = start_writer(stage, client, steps, gated=True)
        stage.fact("bystander's bytes", writer.total_bytes)
        plan = StreamPlan(pattern=writer.pattern, timeout_s=STREAM_TIMEOUT_S, may_time_out=True)
        receiver = client.receiver(writer.job_id, plan, label="bystander")
        streaming = threading.Thread(target=receiver.run, name="bystander", daemon=True)
        streaming.start()
        joined = receiver.first_byte.wait(stage.join_timeout_s) and receiver.received_bytes > 0
        stage.fact("bystander joined", joined)
        before = _counts(stage, server) if spare else {}
        yield
        with stage.client("user", server=server) as newcomer:
            newcomer.query(writer.job_id, label="newcomer")
        if spare:
            _record_settled(stage, server, before, spare)
        open_gate(client, writer)
        receiver.ended.wait(REST_TIMEOUT_S)
        receiver.cancel()
        streaming.join(REST_TIMEOUT_S)
        client.query(writer.job_id, label="the writer's end")


def _counts(stage: Stage, server: RunningServer) -> dict[str, int]:
    return {what: server_count(stage, server, what) for what in ("threads", "fds")}


def _record_settled(
    stage: Stage, server: RunningServer, before: dict[str, int], spare: dict[str, int]
) -> None:
    def settled() -> bool:
        now = _counts(stage, server)
        return all(now[what] <= before[what] + spare[what] for what in before)

    took_s = came_true(settled, stage.patience(SETTLED_S))
    stage.fact("settled after", -1 if took_s is None else took_s)
    after = _counts(stage, server)
    stage.fact("counts", {what: [before[what], after[what], spare[what]] for what in before})


def peak_memory_bytes(stage: Stage, server: RunningServer) -> int:
    """Return the most memory that a server has had since the last look."""
    script = f"awk '/^VmHWM/ {{print $2 * 1024}}' /proc/{server.pid}/status"
    done = stage.host.run(f"{script}; echo 5 > /proc/{server.pid}/clear_refs")  # proc(5): resets it
    return int(float(done.require("a look at the server's memory").split()[0]))


def unharmed(history: History) -> Iterator[Finding]:
    """Judge what was beside the abuse, and what came after it."""
    joined = history.fact("bystander joined")
    yield assumed("a stream was open beside the abuse", true=joined is True, got=joined)
    if joined is not True:
        return
    newcomer = history.call("newcomer")
    yield answered("a new client is answered afterwards", newcomer)
    took_s = newcomer.ended_s - newcomer.started_s
    yield at_most("seconds until it is", took_s, ANSWER_BOUND_S, ANSWER_WHY)
    total = int(history.number("bystander's bytes"))
    stream = history.stream("bystander")
    yield all_exact("the stream beside the abuse lost nothing", [stream], total)
    for fact in history.facts("counts"):
        yield from _as_before(fact.value)


def _as_before(counts: Json) -> Iterator[Finding]:
    for what, values in counts.items() if isinstance(counts, Mapping) else ():
        before, after, spare = map(int, str(values).strip("[]").split(","))
        why = f"{spare} that gRPC and a pool of threads keep for later"
        yield at_most(f"{what} of the server afterwards", after, before + spare, why)
