"""Networks that are slow, cut or swallow: no byte changes, and what was cut off is resumed."""

from collections.abc import Iterator
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB, start_writer
from harness.checks.streams import BURSTS, PYTHON
from harness.client import Client
from harness.history import History
from harness.judge.promises import equal, floor, one_of
from harness.judge.streams import all_exact
from harness.proxy import Fault, FaultProxy
from harness.receiver import StreamPlan
from harness.verdict import Finding

# Beyond the largest message of any server that keeps to gRPC's own limit of 4 MiB.
CUT_AFTER_BYTES: Final = 4_500_000
FAULTS: Final = {
    "latency": Fault(latency_s=0.01),
    "bandwidth": Fault(bytes_per_s=8 * MIB),
    "slices": Fault(slice_bytes=1500),
    "reset": Fault(reset_after_bytes=CUT_AFTER_BYTES),
    "half-close": Fault(half_close_after_bytes=CUT_AFTER_BYTES),
    "blackhole": Fault(blackhole_after_bytes=CUT_AFTER_BYTES),
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


CHECKS: Final = (
    Check(
        "streams.faults",
        "Slow networks change no byte; cut streams end in a status and are resumed without loss.",
        run_faults, judge_faults, PYTHON, ("78", "66"), 180,
    ),
)  # fmt: skip
