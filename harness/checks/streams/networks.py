"""Slow and broken networks: no byte changes, and a stream that was cut off can be resumed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import (
    HELLO_BYTES,
    KIB,
    MIB,
    WriterJob,
    WriterStep,
    new_gate,
    open_gate,
    open_gate_at,
    start_writer,
)
from harness.checks.streams.plans import BURSTS, PYTHON
from harness.drive.client import Client, message_of
from harness.drive.fault_proxy import FaultProxy, NetworkFault
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, equal, floor, holds, one_of
from harness.judge.streams import all_exact
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb


def _networks(*, bytes_per_s: int, cut_after_bytes: int) -> dict[str, NetworkFault]:
    return {
        "latency": NetworkFault(latency_s=0.01),
        "bandwidth": NetworkFault(bytes_per_s=bytes_per_s),
        "slices": NetworkFault(slice_bytes=1500),
        "reset": NetworkFault(reset_after_bytes=cut_after_bytes),
        "half-close": NetworkFault(half_close_after_bytes=cut_after_bytes),
        "blackhole": NetworkFault(blackhole_after_bytes=cut_after_bytes),
    }


# Those that end a stream, and the statuses with which a client may learn of it.
CUTS: Final = ("reset", "half-close", "client half-close", "blackhole")
CUT_CODES: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL")

# -- streams of a job that has ended --------------------------------------------------------------

# More than 4 MiB, gRPC's default limit of a message: the cut comes after a whole message.
CUT_AFTER_BYTES: Final = 4_500_000
NETWORKS: Final = _networks(bytes_per_s=8 * MIB, cut_after_bytes=CUT_AFTER_BYTES)
TIMEOUT_S: Final = 60.0
BLACKHOLE_TIMEOUT_S: Final = 8.0


def run_faults(stage: Stage) -> None:
    """Stream through each bad network, and the rest through a good one."""
    offsets = stage.target_has(Need.OFFSETS)
    files = stage.target.identities.files("admin")
    with stage.client() as direct:
        writer = start_writer(stage, direct, BURSTS * 3)
        direct.stream(writer.job_id, StreamPlan(timeout_s=TIMEOUT_S), label="written")
        for name, fault in NETWORKS.items():
            timeout_s = BLACKHOLE_TIMEOUT_S if name == "blackhole" else TIMEOUT_S
            plan = StreamPlan(pattern=writer.pattern, timeout_s=timeout_s, may_time_out=True)
            with (
                FaultProxy(stage.server.address, fault) as proxy,
                Client(proxy.address, files, stage.recorder, dialect=stage.dialect) as client,
            ):
                first = client.stream(writer.job_id, plan, label=name)
            end = first.start_offset + first.received_bytes
            rest = StreamPlan(pattern=writer.pattern).resumed_at(end, offsets=offsets)
            direct.stream(writer.job_id, rest, label=f"{name} resumed")


def judge_faults(history: History) -> Iterator[Finding]:
    """A slow network changes nothing; a broken one ends the stream in a status, without a loss."""
    total = history.the(WriterJob).total_bytes
    for name in NETWORKS:
        stream = history.stream(name)
        yield equal(f"{name}: no byte is wrong", stream.wrong_at, None)
        if name in CUTS:
            yield one_of(f"{name}: the cut is reported by a status", stream.code, CUT_CODES)
            yield floor(f"{name}: bytes before the cut", stream.received_bytes, 1)
        else:
            yield all_exact(f"{name}: the stream is complete", [stream], total)
        rest = history.stream(f"{name} resumed")
        end = stream.start_offset + stream.received_bytes
        yield equal(f"{name}: the rest begins where the cut was", rest.start_offset, end)
        yield all_exact(f"{name}: the resumed stream has the rest", [rest], total, None)


FAULTS: Final = Check(
    "streams.faults",
    "Slow networks change no byte; cut streams end in a status and are resumed without loss.",
    run_faults,
    judge_faults,
    needs=PYTHON,
    cites=("78", "66"),
    time_limit_s=180,
)

# -- live streams ---------------------------------------------------------------------------------

# What is written before and after the fault. A cut comes amid the first part, and the job waits for
# its second gate until the rest of the first part was resumed: so it is running when it is cut off.
LIVE_STEP: Final = WriterStep(64 * KIB, write_bytes=16 * KIB, pause_ms=20, repeat=24)
FIRST_PART_BYTES: Final = HELLO_BYTES + LIVE_STEP.size_bytes * LIVE_STEP.repeat
LIVE_CUT_BYTES: Final = 600_000
LIVE_NETWORKS: Final = {
    **_networks(bytes_per_s=2 * MIB, cut_after_bytes=LIVE_CUT_BYTES),
    "client half-close": NetworkFault(client_half_close_after_bytes=LIVE_CUT_BYTES),
}
LIVE_TIMEOUT_S: Final = 40.0
LIVE_BLACKHOLE_TIMEOUT_S: Final = 6.0
RESUMED_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class FollowedThroughFault(Observation):
    """A stream of a running job through a bad network.

    Attributes:
        fault: the name of the network's fault, and the stream's label.
        total_bytes: how much the job writes in all.
        received_bytes: how much was received before the job could write its second part.
    """

    fault: str
    total_bytes: int
    received_bytes: int


def run_live_faults(stage: Stage) -> None:
    """Stream running jobs through each bad network; resume what was cut while the job runs."""
    with stage.client() as direct, ThreadPoolExecutor(len(LIVE_NETWORKS)) as pool:
        list(pool.map(lambda name: _follow_through(stage, direct, name), LIVE_NETWORKS))


def _follow_through(stage: Stage, direct: Client, name: str) -> None:
    offsets = stage.target_has(Need.OFFSETS)
    second_gate = new_gate()
    steps = [LIVE_STEP, WriterStep(gate=second_gate), LIVE_STEP]
    writer = start_writer(stage, direct, steps, gated=True)
    files = stage.target.identities.files("admin")
    timeout_s = LIVE_BLACKHOLE_TIMEOUT_S if name == "blackhole" else LIVE_TIMEOUT_S
    plan = StreamPlan(
        pattern=writer.pattern, timeout_s=stage.patience(timeout_s), may_time_out=True
    )
    with (
        FaultProxy(stage.server.address, LIVE_NETWORKS[name]) as proxy,
        Client(proxy.address, files, stage.recorder, dialect=stage.dialect) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = client.receiver(writer.job_id, plan, label=name)
        following = pool.submit(first.run)
        first.first_byte.wait(stage.join_timeout_s)
        open_gate(direct, writer)
        # Until the first part was received, or until the end, which is all that a cut leaves.
        seconds_until(
            lambda: first.ended.is_set() or first.received_bytes >= FIRST_PART_BYTES,
            stage.patience(LIVE_TIMEOUT_S),
        )
        stage.record(FollowedThroughFault(name, writer.total_bytes, first.received_bytes))
        direct.query(writer.job_id, label=f"{name} meanwhile")
        if name not in CUTS:
            open_gate_at(direct, second_gate)
            following.result()
            return
        end = following.result().received_bytes
        rest = StreamPlan(pattern=writer.pattern).resumed_at(end, offsets=offsets)
        second = direct.receiver(writer.job_id, rest, label=f"{name} resumed")
        resuming = pool.submit(second.run)
        # What was cut off must arrive without more output from the job.
        second.first_byte.wait(stage.patience(RESUMED_S))
        open_gate_at(direct, second_gate)
        resuming.result()


def judge_live_faults(history: History) -> Iterator[Finding]:
    """A slow stream is live and complete; a cut one ends in a status and can be resumed live."""
    followed = {seen.fault: seen for seen in history.all(FollowedThroughFault)}
    yield assumed(
        "a job was followed through each network",
        true=followed.keys() == LIVE_NETWORKS.keys(),
        got=sorted(followed),
    )
    yield from separately(_judge_followed(*each, history) for each in followed.items())


def _judge_followed(name: str, seen: FollowedThroughFault, history: History) -> Iterator[Finding]:
    stream = history.stream(name)
    meanwhile = history.call(f"{name} meanwhile")
    yield answered(f"{name}: a query on another connection is answered", meanwhile)
    status = message_of(meanwhile, pb.QueryJobResponse).status
    yield assumed(f"{name}: the job is running", true=status == "running", got=status)
    if name not in CUTS:
        promise = f"{name}: bytes that arrive while the job is running"
        received = seen.received_bytes
        kept = received >= FIRST_PART_BYTES
        yield holds(promise, kept=kept, got=received, want=FIRST_PART_BYTES)
        yield all_exact(f"{name}: the stream is complete", [stream], seen.total_bytes)
        return
    yield equal(f"{name}: no byte is wrong", stream.wrong_at, None)
    yield equal(f"{name}: no gap before the cut", stream.gap, "")
    yield one_of(f"{name}: the cut is reported by a status", stream.code, CUT_CODES)
    yield floor(f"{name}: bytes before the cut", stream.received_bytes, HELLO_BYTES)
    rest = history.stream(f"{name} resumed")
    promise = f"{name}: the rest begins where the cut was"
    yield equal(promise, rest.start_offset, stream.received_bytes)
    yield all_exact(f"{name}: the resumed stream has the rest", [rest], seen.total_bytes, None)


LIVE_FAULTS: Final = Check(
    "streams.live-faults",
    "A running job is followed through slow networks, and resumed live after a cut.",
    run_live_faults,
    judge_live_faults,
    needs=PYTHON,
    cites=("78", "66"),
    time_limit_s=180,
)

CHECKS: Final = (FAULTS, LIVE_FAULTS)
