"""Networks that are slow, cut or swallow: no byte changes, and what was cut off is resumed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import (
    HELLO_BYTES,
    KIB,
    MIB,
    WriterStep,
    new_gate,
    open_gate,
    open_gate_at,
    start_writer,
)
from harness.checks.streams.delivery import BURSTS, PYTHON
from harness.drive.client import Client
from harness.drive.fault_proxy import FaultProxy, NetworkFault
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import answered, assumed, equal, floor, holds, one_of
from harness.judge.streams import all_exact
from harness.record.history import History
from harness.record.verdict import Finding

# Beyond the largest message of any server that keeps to gRPC's own limit of 4 MiB.
CUT_AFTER_BYTES: Final = 4_500_000
FAULTS: Final = {
    "latency": NetworkFault(latency_s=0.01),
    "bandwidth": NetworkFault(bytes_per_s=8 * MIB),
    "slices": NetworkFault(slice_bytes=1500),
    "reset": NetworkFault(reset_after_bytes=CUT_AFTER_BYTES),
    "half-close": NetworkFault(half_close_after_bytes=CUT_AFTER_BYTES),
    "blackhole": NetworkFault(blackhole_after_bytes=CUT_AFTER_BYTES),
}
CUTS: Final = ("reset", "half-close", "blackhole")
TYPED: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL")


def run_faults(stage: Stage) -> None:
    """A stream through each bad network, and the rest of it through a good one."""
    offsets = stage.target_has(Need.OFFSETS)
    files = stage.target.identities.files("admin")
    with stage.client() as direct:
        writer = start_writer(stage, direct, BURSTS * 3)
        stage.fact("total", writer.total_bytes)
        direct.stream(writer.job_id, StreamPlan(timeout_s=60), label="written")
        for name, fault in FAULTS.items():
            with (
                FaultProxy(stage.server.address, fault) as proxy,
                Client(proxy.address, files, stage.recorder) as client,
            ):
                timeout_s = 8 if name == "blackhole" else 60
                plan = StreamPlan(pattern=writer.pattern, timeout_s=timeout_s, may_time_out=True)
                first = client.stream(writer.job_id, plan, label=name)
            at = first.start_offset + first.received_bytes
            rest = StreamPlan(
                pattern=writer.pattern,
                from_offset=at if offsets else None,
                skip_bytes=0 if offsets else at,
            )
            direct.stream(writer.job_id, rest, label=f"{name} resumed")


def judge_faults(history: History) -> Iterator[Finding]:
    """Slow networks change nothing, broken ones give a typed error and lose nothing."""
    total = int(history.number("total"))
    for name in FAULTS:
        stream = history.stream(name)
        yield equal(f"{name}: no byte is wrong", stream.wrong_at, None)
        if name in CUTS:
            yield one_of(f"{name}: the cut is told by a status", stream.code, TYPED)
            yield floor(f"{name}: bytes before the cut", stream.received_bytes, 1)
        else:
            yield all_exact(f"{name}: the stream is complete", [stream], total)
        rest = history.stream(f"{name} resumed")
        yield equal(
            f"{name}: the rest begins where the cut was", rest.start_offset,
            stream.start_offset + stream.received_bytes,
        )  # fmt: skip
        yield all_exact(f"{name}: what was cut off comes when resumed", [rest], total, None)


# -- live streams ---------------------------------------------------------------------------------

# What is written before and after the fault. A cut comes amid the first part, and the job waits for
# the second until the rest of the first has been resumed: it has not ended when it is cut off.
LIVE_STEP: Final[WriterStep] = {"bytes": 64 * KIB, "write": 16 * KIB, "pause_ms": 20, "repeat": 24}
LIVE_PART_BYTES: Final = 24 * 64 * KIB
LIVE_CUT_BYTES: Final = 600_000
LIVE_FAULTS: Final = {
    "live latency": NetworkFault(latency_s=0.01),
    "live bandwidth": NetworkFault(bytes_per_s=2 * MIB),
    "live slices": NetworkFault(slice_bytes=1500),
    "live reset": NetworkFault(reset_after_bytes=LIVE_CUT_BYTES),
    "live half-close": NetworkFault(half_close_after_bytes=LIVE_CUT_BYTES),
    "live client half-close": NetworkFault(client_half_close_after_bytes=LIVE_CUT_BYTES),
    "live blackhole": NetworkFault(blackhole_after_bytes=LIVE_CUT_BYTES),
}
LIVE_CUTS: Final = [name for name in LIVE_FAULTS if name.endswith(("reset", "close", "blackhole"))]
LIVE_TIMEOUT_S: Final = 40.0
BLACKHOLE_TIMEOUT_S: Final = 6.0
RESUMED_S: Final = 5.0


def run_live_faults(stage: Stage) -> None:
    """A stream of a job that goes on through each bad network, taken up while it still goes on."""
    stage.fact("total", HELLO_BYTES + 2 * LIVE_PART_BYTES)
    with stage.client() as direct, ThreadPoolExecutor(len(LIVE_FAULTS)) as pool:
        list(pool.map(lambda name: _follow_through(stage, direct, name), LIVE_FAULTS))


def _follow_through(stage: Stage, direct: Client, name: str) -> None:
    offsets = stage.target_has(Need.OFFSETS)
    second_gate = new_gate()
    steps: list[WriterStep] = [LIVE_STEP, {"gate": second_gate}, LIVE_STEP]
    writer = start_writer(stage, direct, steps, gated=True)
    files = stage.target.identities.files("admin")
    timeout_s = BLACKHOLE_TIMEOUT_S if name.endswith("blackhole") else LIVE_TIMEOUT_S
    plan = StreamPlan(
        pattern=writer.pattern, timeout_s=stage.patience(timeout_s), may_time_out=True
    )
    with (
        FaultProxy(stage.server.address, LIVE_FAULTS[name]) as proxy,
        Client(proxy.address, files, stage.recorder) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = client.receiver(writer.job_id, plan, label=name)
        following = pool.submit(first.run)
        first.first_byte.wait(stage.join_timeout_s)
        open_gate(direct, writer)
        # Until all of the first part is there, or the end: of a cut stream its end alone.
        written = HELLO_BYTES + LIVE_PART_BYTES
        came_true(
            lambda: first.ended.is_set() or first.received_bytes >= written,
            stage.patience(LIVE_TIMEOUT_S),
        )
        stage.fact(f"{name} received", first.received_bytes)
        direct.query(writer.job_id, label=f"{name} meanwhile")
        if name not in LIVE_CUTS:
            open_gate_at(direct, second_gate)
            following.result()
            return
        at = following.result().received_bytes
        rest = StreamPlan(
            pattern=writer.pattern,
            from_offset=at if offsets else None,
            skip_bytes=0 if offsets else at,
        )
        second = direct.receiver(writer.job_id, rest, label=f"{name} resumed")
        resuming = pool.submit(second.run)
        # By itself: what was cut off comes before the job writes any more.
        second.first_byte.wait(stage.patience(RESUMED_S))
        open_gate_at(direct, second_gate)
        resuming.result()


def judge_live_faults(history: History) -> Iterator[Finding]:
    """What is written meanwhile comes through; what is cut off is told, and resumed live."""
    total = int(history.number("total"))
    for name in LIVE_FAULTS:
        stream = history.stream(name)
        meanwhile = history.call(f"{name} meanwhile")
        yield answered(f"{name}: a query on another connection is answered", meanwhile)
        status = meanwhile.response.get("status")
        yield assumed(f"{name}: the job goes on", true=status == "running", got=status)
        if name not in LIVE_CUTS:
            received = history.number(f"{name} received")
            written = HELLO_BYTES + LIVE_PART_BYTES
            promise = f"{name}: bytes that come while the job goes on"
            yield holds(promise, kept=received >= written, got=received, want=written)
            yield all_exact(f"{name}: the stream is complete", [stream], total)
            continue
        yield equal(f"{name}: no byte is wrong", stream.wrong_at, None)
        yield equal(f"{name}: no gap before the cut", stream.gap, "")
        yield one_of(f"{name}: the cut is told by a status", stream.code, TYPED)
        yield floor(f"{name}: bytes before the cut", stream.received_bytes, HELLO_BYTES)
        rest = history.stream(f"{name} resumed")
        promise = f"{name}: the rest begins where the cut was"
        yield equal(promise, rest.start_offset, stream.received_bytes)
        yield all_exact(f"{name}: what was cut off comes when resumed", [rest], total, None)


CHECKS: Final = (
    Check(
        "streams.faults",
        "Slow networks change no byte; cut streams end in a status and are resumed without loss.",
        run_faults, judge_faults, PYTHON, ("78", "66"), 180,
    ),
    Check(
        "streams.live-faults",
        "A job that goes on is followed through slow networks, and resumed live after a cut.",
        run_live_faults, judge_live_faults, PYTHON, ("78", "66"), 180,
    ),
)  # fmt: skip
