"""Defaults, CPU and processes, as the kernel and the job itself measure them.

Left out: memory and bombs (`memory`), disks (`disk`) and refused limits (`limit_validation`).
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.limits.host_cgroups import (
    READS_KERNEL_FILES,
    RUNS_JOBS,
    SETS_LIMITS,
    cgroup_of,
    cgroups_of,
    cpu_s,
    exists,
    host_path,
    mean_rate,
    on_host,
    rates,
    read_counter,
    read_files,
    sample,
    sleeping_job,
    start_payload,
    usage_curve,
    wait_ready,
)
from harness.drive.client import message_of
from harness.judge.promises import answered, at_least, at_most, equal, floor, timed
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

DEFAULT_FILES: Final = {
    "cpu.max": "50000 100000", "memory.max": "104857600", "io.weight": "default 500"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DefaultLimitFiles(Observation):
    """The limit files of a job without limits (None: missing); whether the kernel has io.weight."""

    files: Mapping[str, str | None]
    kernel_has_io_weight: bool


def _run_defaults(stage: Stage) -> None:
    with stage.client() as client, sleeping_job(client) as job_id:
        files = read_files(stage, cgroup_of(stage, client, job_id), *DEFAULT_FILES)
        has_io_weight = exists(stage, "/sys/fs/cgroup/io.cost.qos")
        stage.record(DefaultLimitFiles(files, has_io_weight))


def _judge_defaults(history: History) -> Iterator[Finding]:
    seen = history.the(DefaultLimitFiles)
    for name, want in DEFAULT_FILES.items():
        got = seen.files.get(name)
        if name == "io.weight" and got is None and not seen.kernel_has_io_weight:
            continue
        first = got.splitlines()[0] if got else got
        yield equal(f"a job without limits has the default {name}", first, want)


DEFAULTS: Final = Check(
    "limits.defaults",
    "A job without limits gets 50 % of a core, 100 MB and weight 500.",
    _run_defaults,
    _judge_defaults,
    needs=frozenset({Need.CGROUPS, Need.HOST}),
    cites=("56", "R-CGROUP-2"),
    ours=True,
)


DEFAULT_CORES: Final = 0.5
# The kernel's own test allows 10 % of the sum for its shortest run; emulation adds late ticks.
CPU_TOLERANCE: Final = 0.15
CPU_WHY: Final = "kselftest allows 10 % for its shortest run, an emulated timer adds some"
# A limit is an upper bound. On a host without enough time for its guest (three guests on two
# processors) a job got 0.40 of its 0.50; the next smaller mistake, half of the limit, still shows.
CPU_SHORTFALL: Final = 0.4
CPU_SHORTFALL_WHY: Final = "a guest that its host starves gives less than the quota, 20 % seen"
CPU_WINDOW_S: Final = 4.0
CPU_STEP_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class HogTimes(Observation):
    """The CPU and wall time that the payload `cpu_hog` measured of itself."""

    cpu_s: float
    wall_s: float


def _run_default_half_core(stage: Stage) -> None:
    with stage.client() as client:
        # Two processes: half a core is the whole job's, not each one's.
        job_id = start_payload(client, "cpu_hog", "2", f"{CPU_WINDOW_S:g}")
        times = client.output(job_id).splitlines()[-1]
        stage.record(msgspec.json.decode(times, type=HogTimes))


def _judge_default_half_core(history: History) -> Iterator[Finding]:
    times = history.the(HogTimes)
    yield floor("seconds that the job measured itself", times.wall_s, CPU_WINDOW_S)
    got = times.cpu_s / times.wall_s
    yield from _held_to("a job without limits gets", DEFAULT_CORES, got)


def _held_to(promise: str, cores: float, got: float) -> Iterator[Finding]:
    most = cores * (1 + CPU_TOLERANCE)
    yield at_most(f"{promise} at most {cores:g} cores", got, most, CPU_WHY)
    yield _not_less(f"{promise} {cores:g} cores", cores, got)


def _not_less(promise: str, cores: float, got: float) -> Finding:
    """Promise that a job gets its cores: with fewer, its work takes so many times as long."""
    finding = at_least(promise, got, cores * (1 - CPU_SHORTFALL), CPU_SHORTFALL_WHY)
    took_s = CPU_WINDOW_S * cores / max(got, 1e-9)
    return timed(finding, took_s, CPU_WINDOW_S / (1 - CPU_SHORTFALL))


DEFAULT_HALF_CORE: Final = Check(
    "limits.default-half-core",
    "The default half core is enforced, by the job's own clock.",
    _run_default_half_core,
    _judge_default_half_core,
    needs=RUNS_JOBS,
    cites=("56", "49", "R-CGROUP-2"),
    alone=True,
    ours=True,
)


# A quota of all processors has no visible effect; it must only not slow the job down.
WHOLE_THROTTLED_SHARE: Final = 0.2
WHOLE_WHY: Final = "the kernel grants a quota in slices; half of it would cost half the time"
CPU_SAMPLES_LEAST: Final = 5


@dataclass(frozen=True, slots=True)
class CpuUse(Observation):
    """What a job with a CPU limit used.

    Attributes:
        cpu_max: content of its cgroup's file.
        processors: of the server's machine.
        samples: how often its use was sampled.
        cores: CPU seconds per second, from the first sample to the last.
        throttled_periods: in which the kernel throttled it, between these samples.
        throttled_s: CPU time that the kernel kept from it.
    """

    cpu_max: str | None
    processors: int
    samples: int
    cores: float
    throttled_periods: int
    throttled_s: float


def _run_cpu(cores: float, stage: Stage) -> None:
    with stage.client() as client:
        limits = pb.ResourceLimits(cpu_millicores=round(cores * 1000))
        job_id = start_payload(client, "cpu_hog", f"{round(cores) + 1}", "0", limits=limits)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        cpu_max = read_files(stage, directory, "cpu.max")["cpu.max"]
        processors = int(on_host(stage, "nproc"))
        before_us = read_counter(stage, directory, "cpu.stat", "throttled_usec")
        samples = sample(stage, [directory], CPU_WINDOW_S, CPU_STEP_S)[directory]
        after_us = read_counter(stage, directory, "cpu.stat", "throttled_usec")
        client.must_stop(job_id, grace_s=0)
    stage.record(
        CpuUse(
            cpu_max=cpu_max,
            processors=processors,
            samples=len(samples),
            cores=mean_rate(samples, cpu_s),
            throttled_periods=samples[-1][1].throttled - samples[0][1].throttled,
            throttled_s=(after_us - before_us) / 1e6,
        )
    )
    title = f"CPU of a job with {cores:g} cores"
    stage.record(usage_curve(title, "cores", cores, rates(samples, cpu_s)))


def _judge_cpu(cores: float, history: History) -> Iterator[Finding]:
    use = history.the(CpuUse)
    yield floor("samples of the job's CPU time", use.samples, CPU_SAMPLES_LEAST)
    yield equal("cpu.max is the requested one", use.cpu_max, f"{round(cores * 100_000)} 100000")
    if cores < use.processors:
        yield from _held_to("a job gets", cores, use.cores)
        yield at_least("the kernel throttles it", use.throttled_periods, 1)
        return
    # All processors or more: the limit has no visible effect, so none is judged.
    whole = min(cores, use.processors)
    yield _not_less(f"a job whose limit is all {whole:g} processors uses them", whole, use.cores)
    # A load does not throttle: this is the quota's doing on any machine.
    share = use.throttled_s / (whole * CPU_WINDOW_S)
    promise = "the share of its CPU time that the kernel kept from it"
    yield at_most(promise, share, WHOLE_THROTTLED_SHARE, WHOLE_WHY)


CPU_CHECKS: Final = tuple(
    Check(
        f"limits.{name}",
        guarantee,
        partial(_run_cpu, cores),
        partial(_judge_cpu, cores),
        needs=READS_KERNEL_FILES,
        cites=("49", "R-CGROUP-1"),
        alone=True,
    )
    for name, cores, guarantee in (
        (
            "cpu-half-core",
            0.5,
            "A job with half a core gets it, and the kernel throttles the rest.",
        ),
        (
            "cpu-one-core",
            1.0,
            "A job with one core gets it, and the kernel throttles the rest.",
        ),
        (
            "cpu-two-cores",
            2.0,
            "A job with two cores gets more than one, and at most two if there are more.",
        ),
    )
)


PIDS_LIMIT: Final = 5
EAGAIN: Final = 11


def _run_pids(stage: Stage) -> None:
    with stage.client() as client:
        limits = pb.ResourceLimits(pids_max=PIDS_LIMIT)
        job_id = start_payload(client, "fork_counter", limits=limits)
        client.output(job_id, label="forks")
        client.query(job_id, label="final")
        client.start("true", label="another")


def _judge_pids(history: History) -> Iterator[Finding]:
    yield equal(
        f"a job with {PIDS_LIMIT} processes can fork one less beside its first, then gets EAGAIN",
        history.stream("forks").text,
        f"{PIDS_LIMIT - 1} {EAGAIN}\n",
    )
    yield answered("the server goes on", history.call("another"))


PIDS: Final = Check(
    "limits.pids",
    "A job cannot have more processes than its limit, and the server is unharmed.",
    _run_pids,
    _judge_pids,
    needs=SETS_LIMITS,
    cites=("52",),
)


TWENTY: Final = range(1, 21)
# Half of the jobs allocate so much more than their limit, half so much less; dd itself needs less
# than 1 MiB besides.
TWENTY_MARGIN_MIB: Final = 5


@dataclass(frozen=True, slots=True)
class LimitFiles:
    """The content of a job's limit files; None: missing."""

    cpu_max: str | None
    memory_max: str | None
    pids_max: str | None


@dataclass(frozen=True, slots=True)
class LimitFilesOfTwenty(Observation):
    """The limit files of twenty jobs that ran at the same time, in the order of their numbers."""

    jobs: tuple[LimitFiles, ...]


def _limits_of(number: int) -> pb.ResourceLimits:
    return pb.ResourceLimits(
        cpu_millicores=100 + 10 * number,
        memory_max_bytes=(20 + number) * MIB,
        pids_max=10 + number,
    )


def _takes_mib(number: int) -> int:
    """Return how much memory a job allocates: more than its limit if its number is odd."""
    margin_mib = TWENTY_MARGIN_MIB if number % 2 else -TWENTY_MARGIN_MIB
    return _limits_of(number).memory_max_bytes // MIB + margin_mib


def _run_twenty(stage: Stage) -> None:
    gate = host_path("gate")
    on_host(stage, f"mkfifo {gate}")

    def start(number: int) -> str:
        take = f"exec dd if=/dev/zero of=/dev/null bs={_takes_mib(number)}M count=1"
        script = f"read line < {gate}; {take}"
        return client.must_start("sh", ["-c", script], limits=_limits_of(number))

    def finish(number: int, job_id: str) -> None:
        client.output(job_id, label=f"output {number}")
        client.must_query(job_id, label=f"final {number}")

    with stage.client() as client, ThreadPoolExecutor(len(TWENTY)) as pool:
        jobs = list(pool.map(start, TWENTY))
        cgroups = [each.lstrip("/") for each in cgroups_of(stage, client, jobs)]
        names = ("cpu.max", "memory.max", "pids.max")
        found = read_files(stage, "/", *(f"{each}/{name}" for each in cgroups for name in names))
        files = (LimitFiles(*(found[f"{each}/{name}"] for name in names)) for each in cgroups)
        stage.record(LimitFilesOfTwenty(tuple(files)))
        # Removed while it is open: jobs that wait at it continue, and none comes too late to it.
        on_host(stage, f"exec 3> {gate}; rm {gate}; exec 3>&-")
        list(pool.map(finish, TWENTY, jobs))


def _judge_twenty(history: History) -> Iterator[Finding]:
    jobs = history.the(LimitFilesOfTwenty).jobs
    yield floor("jobs at once", len(jobs), len(TWENTY))
    for number, files in zip(TWENTY, jobs, strict=True):
        limits = _limits_of(number)
        want = LimitFiles(
            f"{limits.cpu_millicores * 100} 100000",
            str(limits.memory_max_bytes),
            str(limits.pids_max),
        )
        yield equal(f"job {number} of 20 has its own limits", files, want)
    for number in TWENTY:
        final = message_of(history.call(f"final {number}"), pb.QueryJobResponse)
        end = f"{final.status} {final.signal}, OOM: {final.oom_killed}"
        takes = f"{_takes_mib(number)} MiB of {_limits_of(number).memory_max_bytes // MIB}"
        want_end = "signaled 9, OOM: True" if number % 2 else "exited 0, OOM: False"
        yield equal(f"the end of job {number} of 20, which allocates {takes}", end, want_end)


TWENTY_AT_ONCE: Final = Check(
    "limits.twenty-at-once",
    "Each of twenty concurrent jobs is held to its own memory, and has its own limits.",
    _run_twenty,
    _judge_twenty,
    needs=frozenset({Need.CGROUPS, Need.LIMIT_FIELDS, Need.HOST, Need.USAGE}),
    cites=("62",),
)

CHECKS: Final = (DEFAULTS, DEFAULT_HALF_CORE, *CPU_CHECKS, PIDS, TWENTY_AT_ONCE)
