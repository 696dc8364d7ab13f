"""I/O limits and weights: jobs read and write the guest's own data disk directly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.limits.host_cgroups import (
    Counters,
    cgroup_of,
    exists,
    mean_rate,
    on_host,
    rates,
    sample,
    usage_curve,
)
from harness.judge.promises import at_least, floor, holds, timed, within
from harness.record.history import History, Observation
from harness.record.verdict import Finding, UnsupportedError
from jobworker.v1 import jobworker_pb2 as pb

DISK: Final = "/dev/vdc"  # the guest's data disk: empty, and used by nothing else
_NEEDS: Final = frozenset(
    {Need.DISK, Need.HOST, Need.CGROUPS, Need.LIMIT_FIELDS, Need.PYTHON, Need.GRACE}
)

# The kernel throttles in slices of 100 ms and counts each started one whole (blk-throttle.c).
IO_TOLERANCE: Final = 0.35
IO_WHY: Final = "a few seconds' transfer, in which each started slice of 100 ms counts whole"
TRANSFER_S: Final = 4  # a transfer at its limit takes so long


@dataclass(frozen=True, slots=True)
class _Unit:
    """What a limit counts: how many per second it allows here, and the size and number of blocks.

    One block is one operation of dd; they are as many as the limit allows in TRANSFER_S.
    """

    per_second: int
    block_bytes: int
    blocks: int
    cites: tuple[str, ...]


BYTES: Final = _Unit(MIB, 65536, TRANSFER_S * MIB // 65536, ("51", "R-CGROUP-1"))
OPERATIONS: Final = _Unit(20, 4096, TRANSFER_S * 20, ("51",))


def _run_transfer(unit: _Unit, limit: pb.IoMax, stage: Stage) -> None:
    # `direct` bypasses the page cache.
    if limit.HasField("read_bytes_per_second") or limit.HasField("read_operations_per_second"):
        ends = [f"if={DISK}", "of=/dev/null", "iflag=direct"]
    else:
        ends = ["if=/dev/zero", f"of={DISK}", "oflag=direct"]
    arguments = [*ends, f"bs={unit.block_bytes}", f"count={unit.blocks}"]
    with stage.client() as client:
        limits = pb.ResourceLimits(io_max=[limit])
        client.output(client.must_start("dd", arguments, limits=limits), label="dd")


def _judge_transfer(unit: _Unit, promise: str, history: History) -> Iterator[Finding]:
    text = history.stream("dd").text
    found = re.search(r"copied, ([\d.e+-]+) s", text)
    yield floor(f"transfers that dd reported: {text[-200:]!r}", int(found is not None), 1)
    if found is not None:
        took_s = float(found[1])
        rate = unit.per_second * TRANSFER_S / took_s
        finding = within(promise, rate, unit.per_second, IO_TOLERANCE, IO_WHY)
        slow = rate < unit.per_second
        yield timed(finding, took_s, TRANSFER_S / (1 - IO_TOLERANCE)) if slow else finding


TRANSFERS: Final = tuple(
    Check(
        f"limits.{name}",
        guarantee,
        partial(_run_transfer, unit, limit),
        partial(_judge_transfer, unit, promise),
        needs=_NEEDS | {Need.IO_MAX},
        cites=unit.cites,
        alone=True,
    )
    for name, unit, limit, guarantee, promise in (
        (
            "io-bytes-per-second",
            BYTES,
            pb.IoMax(device=DISK, write_bytes_per_second=BYTES.per_second),
            "A job writes at most its limit of bytes per second.",
            "a job writes 1 MiB/s (in bytes/s)",
        ),
        (
            "io-read-bytes-per-second",
            BYTES,
            pb.IoMax(device=DISK, read_bytes_per_second=BYTES.per_second),
            "A job reads at most its limit of bytes per second.",
            "a job reads 1 MiB/s (in bytes/s)",
        ),
        (
            "io-write-operations-per-second",
            OPERATIONS,
            pb.IoMax(device=DISK, write_operations_per_second=OPERATIONS.per_second),
            "A job makes at most its limit of write operations per second.",
            "a job writes 20 times a second",
        ),
        (
            "io-operations-per-second",
            OPERATIONS,
            pb.IoMax(device=DISK, read_operations_per_second=OPERATIONS.per_second),
            "A job makes at most its limit of read operations per second.",
            "a job reads 20 times a second",
        ),
    )
)


# 64 KiB readers with weights 1000 and 100 reach 10 within 4 s on a quiet machine, 7 on a busy one;
# without weights 1.07.
LIGHT: Final = 100
HEAVY: Final = 1000
WEIGHT_RATIO_LEAST: Final = 4.0
WEIGHT_WHY: Final = "10 in the long run, 7 in 4 s on a busy machine, 1.1 without weights"
WEIGHT_WINDOW_S: Final = 5.0
WEIGHT_STEP_S: Final = 0.25
IOCOST_MODEL: Final = (
    "ctrl=user model=linear rbps=4000000 rseqiops=64 rrandiops=64 "
    "wbps=4000000 wseqiops=64 wrandiops=64"
)
IOCOST_QOS: Final = "enable=1 ctrl=user rpct=0 rlat=0 wpct=0 wlat=0 min=100.00 max=100.00"


@dataclass(frozen=True, slots=True)
class CompetingReads(Observation):
    """MiB/s that each of two jobs read while they competed for a disk, by weight."""

    light: float
    heavy: float


@contextmanager
def _enable_weights(stage: Stage) -> Iterator[None]:
    """Enable weights for the disk, with a model that makes it slow.

    Raises:
        UnsupportedError: the kernel has no iocost.
    """
    if not exists(stage, "/sys/fs/cgroup/io.cost.qos"):
        raise UnsupportedError("weights for disks (a kernel with CONFIG_BLK_CGROUP_IOCOST)")
    device = on_host(stage, f"cat /sys/block/{DISK.rpartition('/')[2]}/dev").strip()
    on_host(stage, f"echo '{device} {IOCOST_MODEL}' > /sys/fs/cgroup/io.cost.model")
    on_host(stage, f"echo '{device} {IOCOST_QOS}' > /sys/fs/cgroup/io.cost.qos")
    try:
        yield
    finally:
        on_host(stage, f"echo '{device} enable=0' > /sys/fs/cgroup/io.cost.qos")


def _read_mib(counters: Counters) -> float:
    return counters.read_bytes / MIB


def _run_weight(stage: Stage) -> None:
    reading = f"while :; do dd if={DISK} of=/dev/null bs=64k iflag=direct 2>/dev/null; done"
    weights = (LIGHT, HEAVY)
    with stage.client() as client, _enable_weights(stage):
        jobs = [
            client.must_start("sh", ["-c", reading], limits=pb.ResourceLimits(io_weight=weight))
            for weight in weights
        ]
        directories = [cgroup_of(stage, client, job_id) for job_id in jobs]
        samples = sample(stage, directories, WEIGHT_WINDOW_S, WEIGHT_STEP_S)
        for job_id in jobs:
            client.must_stop(job_id, grace_s=0)
    light, heavy = (mean_rate(samples[directory], _read_mib) for directory in directories)
    stage.record(CompetingReads(light, heavy))
    for weight, directory in zip(weights, directories, strict=True):
        title = f"reading of a job with weight {weight}"
        stage.record(usage_curve(title, "MiB/s", None, rates(samples[directory], _read_mib)))


def _judge_weight(history: History) -> Iterator[Finding]:
    reads = history.the(CompetingReads)
    yield floor("MiB/s that both read", reads.light + reads.heavy, 1.0)
    yield holds("the light job is not starved", kept=reads.light > 0, got=reads.light, want="> 0")
    ratio = reads.heavy / max(reads.light, 1e-9)
    promise = f"weight {HEAVY} reads so many times as much as {LIGHT}"
    # The processor is shared evenly: where it is what both wait for, the disk's weights count less,
    # and the heavier job takes longer than this window for its fair part.
    fair_s = WEIGHT_WINDOW_S * HEAVY / LIGHT
    yield timed(
        at_least(promise, ratio, WEIGHT_RATIO_LEAST, WEIGHT_WHY),
        fair_s / max(ratio, 1e-9), fair_s / WEIGHT_RATIO_LEAST,
    )  # fmt: skip


WEIGHT: Final = Check(
    "limits.io-weight",
    "Of two jobs that compete for a disk, the heavier one gets more of it.",
    _run_weight,
    _judge_weight,
    needs=_NEEDS,
    cites=("51", "R-CGROUP-1"),
    alone=True,
)

CHECKS: Final = (*TRANSFERS, WEIGHT)
