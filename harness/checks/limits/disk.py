"""A disk's ceilings and shares bite: jobs here read and write the guest's own data disk raw."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.limits.host_cgroups import (
    MIB,
    cgroup_of,
    is_there,
    mean_rate,
    on_host,
    rates,
    sampled,
    usage_fact,
)
from harness.judge.promises import at_least, floor, holds, within
from harness.record.history import History
from harness.record.verdict import Finding, UnsupportedError
from jobworker.v1 import jobworker_pb2 as pb

DISK: Final = "/dev/vdc"  # the guest's data disk: empty, nobody else's
# The kernel throttles in slices of 100 ms and counts each started one whole (blk-throttle.c).
IO_TOLERANCE: Final = 0.35
IO_WHY: Final = "a few seconds' transfer, in which each started slice of 100 ms counts whole"
BYTES_PER_S: Final = MIB
BYTES: Final = 4 * MIB
OPERATIONS_PER_S: Final = 20
OPERATIONS: Final = 80

# 64 KiB readers with weights 1000 and 100 reach 10 within 4 s on a quiet machine, 7 on a busy one;
# without weights 1.07.
WEIGHTS: Final = (100, 1000)
WEIGHT_RATIO_LEAST: Final = 4.0
WEIGHT_WHY: Final = "10 in the long run, 7 in 4 s on a busy machine, 1.1 without weights"
WEIGHT_WINDOW_S: Final = 5.0
WEIGHT_STEP_S: Final = 0.25
IOCOST_MODEL: Final = (
    "ctrl=user model=linear rbps=4000000 rseqiops=64 rrandiops=64 "
    "wbps=4000000 wseqiops=64 wrandiops=64"
)
IOCOST_QOS: Final = "enable=1 ctrl=user rpct=0 rlat=0 wpct=0 wlat=0 min=100.00 max=100.00"


def _run_transfer(words: list[str], ceiling: pb.IoMax, stage: Stage) -> None:
    with stage.client() as client:
        job_id = client.must_start("dd", words, limits=pb.ResourceLimits(io_max=[ceiling]))
        stage.fact("output", client.output(job_id))


def _judge_transfer(what: str, want_s: float, amount: float, history: History) -> Iterator[Finding]:
    text = str(history.fact("output"))
    found = re.search(r"copied, ([\d.e+-]+) s", text)
    yield floor(f"transfers that dd told of: {text[-200:]!r}", int(found is not None), 1)
    if found is not None:
        rate = amount / float(found[1])
        yield within(what, rate, amount / want_s, IO_TOLERANCE, IO_WHY)


@contextmanager
def _shared_by_weight(stage: Stage) -> Iterator[None]:
    """Switch on what makes weights act for the disk, with a model that makes it slow.

    Raises:
        UnsupportedError: the kernel has no iocost.
    """
    if not is_there(stage, "/sys/fs/cgroup/io.cost.qos"):
        raise UnsupportedError("weights for disks (a kernel with CONFIG_BLK_CGROUP_IOCOST)")
    device = on_host(stage, f"cat /sys/block/{DISK.rpartition('/')[2]}/dev").strip()
    on_host(stage, f"echo '{device} {IOCOST_MODEL}' > /sys/fs/cgroup/io.cost.model")
    on_host(stage, f"echo '{device} {IOCOST_QOS}' > /sys/fs/cgroup/io.cost.qos")
    try:
        yield
    finally:
        on_host(stage, f"echo '{device} enable=0' > /sys/fs/cgroup/io.cost.qos")


def _run_weight(stage: Stage) -> None:
    reading = f"while :; do dd if={DISK} of=/dev/null bs=64k iflag=direct 2>/dev/null; done"
    with stage.client() as client, _shared_by_weight(stage):
        jobs = [
            client.must_start("sh", ["-c", reading], limits=pb.ResourceLimits(io_weight=weight))
            for weight in WEIGHTS
        ]
        directories = [cgroup_of(stage, client, job_id) for job_id in jobs]
        samples = sampled(stage, directories, WEIGHT_WINDOW_S, WEIGHT_STEP_S)
        for job_id in jobs:
            client.must_stop(job_id, grace_s=0)
    for weight, directory in zip(WEIGHTS, directories, strict=True):
        stage.fact(f"rate {weight}", mean_rate(samples[directory], "read_bytes", MIB))
        points = rates(samples[directory], "read_bytes", MIB)
        usage_fact(stage, f"reading of a job with weight {weight}", "MiB/s", None, points)


def _judge_weight(history: History) -> Iterator[Finding]:
    light, heavy = (history.number(f"rate {weight}") for weight in WEIGHTS)
    yield floor("MiB/s that both read", light + heavy, 1.0)
    yield holds("the light job is not starved", kept=light > 0, got=light, want="> 0")
    yield at_least(
        f"weight {WEIGHTS[1]} reads so many times as much as {WEIGHTS[0]}",
        heavy / max(light, 1e-9),
        WEIGHT_RATIO_LEAST,
        WEIGHT_WHY,
    )


_NEEDS: Final = frozenset(
    {Need.DISK, Need.HOST, Need.CGROUPS, Need.LIMIT_FIELDS, Need.PYTHON, Need.GRACE}
)

CHECKS: Final = (
    Check(
        name="limits.io-bytes-per-second",
        guarantee="A job writes no faster than its bytes a second.",
        run=partial(
            _run_transfer,
            ["if=/dev/zero", f"of={DISK}", "bs=64k", f"count={BYTES // 65536}", "oflag=direct"],
            pb.IoMax(device=DISK, write_bytes_per_second=BYTES_PER_S),
        ),
        judge=partial(
            _judge_transfer, "a job writes 1 MiB/s (in bytes/s)", BYTES / BYTES_PER_S, BYTES
        ),
        needs=_NEEDS,
        cites=("51", "R-CGROUP-1"),
        alone=True,
    ),
    Check(
        name="limits.io-read-bytes-per-second",
        guarantee="A job reads no faster than its bytes a second.",
        run=partial(
            _run_transfer,
            [f"if={DISK}", "of=/dev/null", "bs=64k", f"count={BYTES // 65536}", "iflag=direct"],
            pb.IoMax(device=DISK, read_bytes_per_second=BYTES_PER_S),
        ),
        judge=partial(
            _judge_transfer, "a job reads 1 MiB/s (in bytes/s)", BYTES / BYTES_PER_S, BYTES
        ),
        needs=_NEEDS,
        cites=("51", "R-CGROUP-1"),
        alone=True,
    ),
    Check(
        name="limits.io-write-operations-per-second",
        guarantee="A job writes no more often than its operations a second.",
        run=partial(
            _run_transfer,
            ["if=/dev/zero", f"of={DISK}", "bs=4k", f"count={OPERATIONS}", "oflag=direct"],
            pb.IoMax(device=DISK, write_operations_per_second=OPERATIONS_PER_S),
        ),
        judge=partial(
            _judge_transfer,
            "a job writes 20 times a second",
            OPERATIONS / OPERATIONS_PER_S,
            OPERATIONS,
        ),
        needs=_NEEDS,
        cites=("51",),
        alone=True,
    ),
    Check(
        name="limits.io-operations-per-second",
        guarantee="A job reads no more often than its operations a second.",
        run=partial(
            _run_transfer,
            [f"if={DISK}", "of=/dev/null", "bs=4k", f"count={OPERATIONS}", "iflag=direct"],
            pb.IoMax(device=DISK, read_operations_per_second=OPERATIONS_PER_S),
        ),
        judge=partial(
            _judge_transfer,
            "a job reads 20 times a second",
            OPERATIONS / OPERATIONS_PER_S,
            OPERATIONS,
        ),
        needs=_NEEDS,
        cites=("51",),
        alone=True,
    ),
    Check(
        name="limits.io-weight",
        guarantee="Of two jobs that compete for a disk, the heavier one gets more of it.",
        run=_run_weight,
        judge=_judge_weight,
        needs=_NEEDS,
        cites=("51", "R-CGROUP-1"),
        alone=True,
    ),
)
