"""What a query reports of a job's limits and usage: what the kernel's files of its cgroup have."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.limits.disk import DISK
from harness.checks.limits.host_cgroups import (
    READS_KERNEL_FILES,
    cgroup_of,
    cgroups_of,
    host_path,
    on_host,
    read_files,
    start_payload,
    unique_seconds,
    wait_ready,
)
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.judge.promises import assumed, at_least, equal, floor
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.verdict import Finding, UnsupportedError
from jobworker.v1 import jobworker_pb2 as pb


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The limits of a job's cgroup; None: unlimited, or the kernel has no such limit.

    Attributes:
        cpu_millicores, memory_max_bytes, io_weight, pids_max: as in the API.
        io_max: the lines of `io.max`, sorted.
    """

    cpu_millicores: int | None
    memory_max_bytes: int | None
    io_weight: int | None
    pids_max: int | None
    io_max: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportedLimits(Observation):
    """The limits of one job.

    Attributes:
        label: of the job.
        requested: what its start requests; what it leaves out is None.
        in_force: what the kernel's files have.
        reported: what a query reports while the job runs.
        reported_after: what one reports after the job's end.
    """

    label: str
    requested: JobLimits
    in_force: JobLimits
    reported: JobLimits
    reported_after: JobLimits


_FILES: Final = ("cpu.max", "memory.max", "io.weight", "pids.max", "io.max")
_DEVICES: Final = 2
_DEFAULT: Final = "without limits"
# In the order of io.max: cgroup-v2.rst.
_RATES: Final = {
    "rbps": "read_bytes_per_second",
    "wbps": "write_bytes_per_second",
    "riops": "read_operations_per_second",
    "wiops": "write_operations_per_second",
}


def _requests(devices: Mapping[str, str]) -> dict[str, pb.ResourceLimits]:
    """Return the jobs' limits: each limit is left out by one of them; a device has two names."""
    by_path, by_number = next(iter(devices)), list(devices.values())[1]
    return {
        _DEFAULT: pb.ResourceLimits(),
        "with every limit": pb.ResourceLimits(
            cpu_millicores=370,
            memory_max_bytes=80 * MIB,
            io_weight=321,
            pids_max=77,
            io_max=[
                pb.IoMax(
                    device=by_path,
                    read_bytes_per_second=51 * MIB,
                    write_bytes_per_second=41 * MIB,
                    read_operations_per_second=3100,
                    write_operations_per_second=2100,
                ),
                pb.IoMax(device=by_number, write_bytes_per_second=61 * MIB),
            ],
        ),
        "with limits of one disk": pb.ResourceLimits(
            io_max=[pb.IoMax(device=by_path, read_operations_per_second=1100)]
        ),
        "with a limit of processes": pb.ResourceLimits(pids_max=55),
    }


def _devices(stage: Stage) -> dict[str, str]:
    """Return the number, as the kernel writes it, of each of two disks, by their paths.

    Raises:
        UnsupportedError: the machine has fewer.
    """
    script = 'cd /sys/block; for d in *; do [ ! -b /dev/$d ] || echo "/dev/$d $(cat $d/dev)"; done'
    lines = sorted(on_host(stage, script).splitlines())
    if len(lines) < _DEVICES:
        raise UnsupportedError("two disks on the server's machine")
    return {path: number for path, _, number in (line.partition(" ") for line in lines[:_DEVICES])}


def _run_limits(stage: Stage) -> None:
    devices = _devices(stage)
    requests = _requests(devices)
    with stage.client() as client:
        jobs = [
            client.must_start(
                "sleep", [unique_seconds()], limits=limits if limits.ByteSize() else None
            )
            for limits in requests.values()
        ]
        cgroups = [each.lstrip("/") for each in cgroups_of(stage, client, jobs)]
        paths = [f"{cgroup}/{name}" for cgroup in cgroups for name in _FILES]
        files = read_files(stage, "/", *paths)
        running = [client.must_query(job_id).limits for job_id in jobs]
        for job_id in jobs:
            client.must_stop(job_id, grace_s=0)
        ended = [client.must_query(job_id).limits for job_id in jobs]
    for number, (label, limits) in enumerate(requests.items()):
        own = {name: files[f"{cgroups[number]}/{name}"] for name in _FILES}
        messages = (limits, running[number], ended[number])
        requested, *reports = (_of_message(each, devices) for each in messages)
        stage.record(ReportedLimits(label, requested, limits_of_files(own), *reports))


def _of_message(limits: pb.ResourceLimits, devices: Mapping[str, str]) -> JobLimits:
    def optional(name: str) -> int | None:
        return getattr(limits, name) if limits.HasField(name) else None

    return JobLimits(
        optional("cpu_millicores"),
        optional("memory_max_bytes"),
        optional("io_weight"),
        optional("pids_max"),
        tuple(sorted(_line(each, devices) for each in limits.io_max)),
    )


def _line(limit: pb.IoMax, devices: Mapping[str, str]) -> str:
    rates = (
        f"{key}={getattr(limit, name) if limit.HasField(name) else 'max'}"
        for key, name in _RATES.items()
    )
    return " ".join((devices.get(limit.device, limit.device), *rates))


def limits_of_files(files: Mapping[str, str | None]) -> JobLimits:
    """Return the limits that a cgroup's files have: none where one is missing or unreadable."""

    def whole(text: str | None) -> int | None:
        return None if not text or text == "max" else int(text)

    quota, _, period = (files["cpu.max"] or "max").partition(" ")
    quota_us, weight = whole(quota), files["io.weight"]
    return JobLimits(
        None if quota_us is None else quota_us * 1000 // int(period),
        whole(files["memory.max"]),
        int(weight.splitlines()[0].removeprefix("default ")) if weight else None,
        whole(files["pids.max"]),
        tuple(sorted((files["io.max"] or "").splitlines())),
    )


def _judge_limits(history: History) -> Iterator[Finding]:
    jobs = history.all(ReportedLimits)
    yield floor("jobs whose limits were read", len(jobs), 2)
    defaults = next((job.in_force for job in jobs if job.label == _DEFAULT), None)
    for job in jobs:
        for name, requested in dataclasses.asdict(job.requested).items():
            in_force = getattr(job.in_force, name)
            want = requested or getattr(defaults, name, None)
            yield equal(
                f"{name} of a job {job.label}: the requested or the default", in_force, want
            )
            for when, report in (("runs", job.reported), ("has ended", job.reported_after)):
                promise = f"a query of a job {job.label} that {when} reports the {name} in force"
                yield equal(promise, getattr(report, name), in_force)


REPORTED: Final = Check(
    "limits.reported",
    "A query reports exactly the limits in force: the requested ones, else the server's defaults.",
    _run_limits,
    _judge_limits,
    needs=READS_KERNEL_FILES | {Need.GRACE, Need.IO_MAX},
    cites=("R-CGROUP-1",),
)


@dataclass(frozen=True, slots=True)
class UsageCounters:
    """A cgroup's counters, named as in the API."""

    cpu_usage_us: int
    cpu_throttled_periods: int
    cpu_throttled_us: int
    memory_current_bytes: int
    memory_peak_bytes: int
    oom_kills: int
    io_read_bytes: int
    io_write_bytes: int
    pids_current: int


@dataclass(frozen=True, slots=True)
class ReportedUsage(Observation):
    """The usage of a job that has moved its counters, and now rests.

    Attributes:
        kernel: what the kernel's files have before a query.
        reported: what the query reports.
        kernel_after: what the files have after it.
        final: what a query reports after the job's end.
        oom_killed: whether a query reports an OOM kill: before it, after it, and after the end.
        uses_disk: whether the job has used a disk.
    """

    kernel: UsageCounters
    reported: UsageCounters
    kernel_after: UsageCounters
    final: UsageCounters
    oom_killed: tuple[bool, bool, bool]
    uses_disk: bool


_USAGE_LIMITS: Final = pb.ResourceLimits(cpu_millicores=500, memory_max_bytes=48 * MIB)
_READS: Final = 20
_WORKED: Final = len(b"ready\ndone\n")
# Those that the end of the job's processes lowers, that it may raise, and that it leaves alone.
_FALLING: Final = frozenset({"memory_current_bytes", "pids_current"})
_FINAL: Final = frozenset({"oom_kills", "io_read_bytes", "io_write_bytes"})


def _run_usage(stage: Stage) -> None:
    gate, uses_disk = host_path("gate"), stage.target_has(Need.DISK)
    with stage.client() as client:
        words = (gate, DISK if uses_disk else "")
        job_id = start_payload(client, "counter_mover", *words, limits=_USAGE_LIMITS)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        early = client.must_query(job_id)
        # So that the kernel kills the process that takes the memory, and not the whole job.
        # The gate is opened without a write: its reader may have gone, and SIGPIPE ends a shell.
        on_host(stage, f"echo 0 > {directory}/memory.oom.group; : > {gate}")
        client.stream(job_id, StreamPlan(stop_after_bytes=_WORKED), label="work")
        kernel, late, kernel_after = _quiet_reading(stage, client, job_id, directory)
        client.must_stop(job_id, grace_s=0)
        final = client.must_query(job_id)
    oom_killed = (early.oom_killed, late.oom_killed, final.oom_killed)
    usage = (kernel, _of_usage(late.usage), kernel_after, _of_usage(final.usage))
    stage.record(ReportedUsage(*usage, oom_killed, uses_disk))


def _quiet_reading(
    stage: Stage, client: Client, job_id: str, directory: str
) -> tuple[UsageCounters, pb.QueryJobResponse, UsageCounters]:
    """Return a query, and the kernel's counters before and after it: the same, if possible.

    It is one query: a server that reports what it reported before must not be right by a second.
    """
    before = _of_kernel(stage, directory)
    for _ in range(_READS):
        earlier, before = before, _of_kernel(stage, directory)
        if earlier == before:
            break
    return before, client.must_query(job_id), _of_kernel(stage, directory)


def _of_usage(usage: pb.ResourceUsage) -> UsageCounters:
    return UsageCounters(
        *(getattr(usage, field.name) for field in dataclasses.fields(UsageCounters))
    )


def _of_kernel(stage: Stage, directory: str) -> UsageCounters:
    names = (
        "cpu.stat", "memory.events", "io.stat", "memory.current", "memory.peak", "pids.current",
    )  # fmt: skip
    cpu, memory, disks, *single = (
        text or "" for text in read_files(stage, directory, *names).values()
    )
    current, peak, pids = (int(text or 0) for text in single)

    def total(text: str, key: str) -> int:
        return sum(map(int, re.findall(rf"\b{key}[ =](\d+)", text)))

    return UsageCounters(
        total(cpu, "usage_usec"),
        total(cpu, "nr_throttled"),
        total(cpu, "throttled_usec"),
        current,
        peak,
        total(memory, "oom_kill"),
        total(disks, "rbytes"),
        total(disks, "wbytes"),
        pids,
    )


def _judge_usage(history: History) -> Iterator[Finding]:
    usage = history.the(ReportedUsage)
    kernel, after = usage.kernel, usage.kernel_after
    yield assumed("the job rests", true=kernel == after, got=after, want=kernel)
    promise = "a query says whether the OOM killer killed a process: before, after, at the end"
    yield equal(promise, usage.oom_killed, (False, True, True))
    names = (field.name for field in dataclasses.fields(UsageCounters))
    yield from separately(_judge_counter(name, usage) for name in names)


def _judge_counter(name: str, usage: ReportedUsage) -> Iterator[Finding]:
    want, got = (getattr(each, name) for each in (usage.kernel, usage.reported))
    if usage.uses_disk or not name.startswith("io_"):
        yield floor(f"{name} that the job has caused", want, 1)
    yield equal(f"a query reports {name} as the kernel counts it", got, want)
    if name not in _FALLING:
        promise, final = f"{name} is reported after the end, too", getattr(usage.final, name)
        yield (equal if name in _FINAL else at_least)(promise, final, want)


USAGE: Final = Check(
    "limits.usage",
    "A query reports the counters of the job's cgroup exactly as the kernel counts them.",
    _run_usage,
    _judge_usage,
    needs=READS_KERNEL_FILES | {Need.GRACE, Need.USAGE},
    cites=("R-JOB-4",),
)

CHECKS: Final = (REPORTED, USAGE)
