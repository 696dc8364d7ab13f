"""Defaults, CPU and processes, by what the kernel and the job itself see.

Leaves out memory and bombs (`limits_memory`), disks (`limits_disk`) and what is refused
(`limits_asked`).
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.limits_host import (
    MIB,
    Samples,
    cgroup_of,
    cgroups_of,
    contents,
    files_of,
    is_there,
    mean_rate,
    on_host,
    rates,
    sampled,
    sleeping_job,
    start_payload,
    usage_fact,
    wait_ready,
)
from harness.history import History, Json
from harness.judge.promises import (
    answered,
    at_least,
    at_most,
    equal,
    floor,
)
from harness.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

DEFAULT_FILES: Final = {
    "cpu.max": "50000 100000", "memory.max": "104857600", "io.weight": "default 500"
}  # fmt: skip
DEFAULT_CORES: Final = 0.5

# The kernel's own test allows 10 % of the sum for its shortest run; emulation adds late ticks.
CPU_TOLERANCE: Final = 0.15
CPU_WHY: Final = "kselftest allows 10 % for its shortest run, an emulated timer adds some"
# A limit is a ceiling. On a host that has no time for its guest (three guests on two processors) a
# job got 0.40 of its 0.50; the next smaller mistake, half of what was asked, still shows.
CPU_SHORTFALL: Final = 0.4
CPU_SHORTFALL_WHY: Final = "a guest that its host starves gives less than the quota, 20 % seen"
CPU_WINDOW_S: Final = 4.0
CPU_STEP_S: Final = 0.2
# A quota of two cores on a machine of two cannot be seen as a ceiling, only that it is none of one.
MORE_THAN_ONE_CORE: Final = 1.1

FILES: Final = ("cpu.max", "memory.max", "pids.max")
PIDS_LIMIT: Final = 5
EAGAIN: Final = 11


def _run_defaults(stage: Stage) -> None:
    with stage.client() as client, sleeping_job(client) as job_id:
        directory = cgroup_of(stage, client, job_id)
        stage.fact("files", files_of(stage, directory, *DEFAULT_FILES))
        stage.fact("weights", is_there(stage, "/sys/fs/cgroup/io.cost.qos"))


def _judge_defaults(history: History) -> Iterator[Finding]:
    files = history.fact("files")
    for name, want in DEFAULT_FILES.items():
        got = files.get(name) if isinstance(files, dict) else None
        if name == "io.weight" and got is None and not history.fact("weights"):
            continue  # this kernel has no weights for disks
        first = got.splitlines()[0] if isinstance(got, str) and got else got
        yield equal(f"a job that asks for nothing has the default {name}", first, want)


def _run_default_half_core(stage: Stage) -> None:
    with stage.client() as client:
        # Two processes: half a core is the whole job's, not each one's.
        job_id = start_payload(client, "cpu_hog", "2", f"{CPU_WINDOW_S:g}")
        stage.fact("hog", client.output(job_id))


def _judge_default_half_core(history: History) -> Iterator[Finding]:
    times = json.loads(str(history.fact("hog")).splitlines()[-1])
    yield floor("seconds that the job measured itself", times["wall_s"], CPU_WINDOW_S)
    got = times["cpu_s"] / times["wall_s"]
    yield from _held_to("a job that asks for nothing gets", DEFAULT_CORES, got)


def _held_to(promise: str, cores: float, got: float) -> Iterator[Finding]:
    most, least = cores * (1 + CPU_TOLERANCE), cores * (1 - CPU_SHORTFALL)
    yield at_most(f"{promise} at most {cores:g} cores", got, most, CPU_WHY)
    yield at_least(f"{promise} {cores:g} cores", got, least, CPU_SHORTFALL_WHY)


def _run_cpu(cores: float, stage: Stage) -> None:
    with stage.client() as client:
        limits = pb.ResourceLimits(cpu_millicores=round(cores * 1000))
        job_id = start_payload(client, "cpu_hog", f"{round(cores) + 1}", "0", limits=limits)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        stage.fact("cpu.max", files_of(stage, directory, "cpu.max")["cpu.max"])
        stage.fact("processors", int(on_host(stage, "nproc")))
        samples = sampled(stage, [directory], CPU_WINDOW_S, CPU_STEP_S)[directory]
        client.must_stop(job_id, grace_s=0)
    _record_cpu(stage, cores, samples)


def _record_cpu(stage: Stage, cores: float, samples: Samples) -> None:
    stage.fact("samples", len(samples))
    stage.fact("cores", mean_rate(samples, "cpu_us", 1e6))
    stage.fact("throttled", samples[-1][1]["throttled"] - samples[0][1]["throttled"])
    title = f"CPU of a job with {cores:g} cores"
    usage_fact(stage, title, "cores", cores, rates(samples, "cpu_us", 1e6))


def _judge_cpu(cores: float, history: History) -> Iterator[Finding]:
    yield floor("samples of the job's CPU time", history.number("samples"), 5)
    yield equal(
        "cpu.max is what was asked", history.fact("cpu.max"), f"{round(cores * 100_000)} 100000"
    )
    got = history.number("cores")
    if cores < history.number("processors"):
        yield from _held_to("a job gets", cores, got)
        yield at_least("the kernel throttles it", history.number("throttled"), 1)
    else:
        most = cores * (1 + CPU_TOLERANCE)
        yield at_most(f"a job gets at most {cores:g} cores", got, most, CPU_WHY)
        yield at_least("a job of more than one core gets them", got, MORE_THAN_ONE_CORE)


def _run_pids(stage: Stage) -> None:
    with stage.client() as client:
        limits = pb.ResourceLimits(pids_max=PIDS_LIMIT)
        job_id = start_payload(client, "fork_counter", limits=limits)
        stage.fact("output", client.output(job_id))
        client.query(job_id, label="final")
        client.start("true", label="another")


def _judge_pids(history: History) -> Iterator[Finding]:
    yield equal(
        f"with {PIDS_LIMIT} processes a job can make one less beside its first, then EAGAIN",
        history.fact("output"),
        f"{PIDS_LIMIT - 1} {EAGAIN}\n",
    )
    yield answered("the server goes on", history.call("another"))


def _limits_of(number: int) -> pb.ResourceLimits:
    return pb.ResourceLimits(
        cpu_millicores=10 * number, memory_max_bytes=(20 + number) * MIB, pids_max=10 + number
    )


def _run_twenty(stage: Stage) -> None:
    with stage.client() as client:
        with ThreadPoolExecutor(5) as pool:
            jobs = list(
                pool.map(
                    lambda number: client.must_start("sleep", ["1000"], limits=_limits_of(number)),
                    range(1, 21),
                )
            )
        directories = cgroups_of(stage, client, jobs)
        found = contents(stage, "/", [f"{each}/{file}" for each in directories for file in FILES])
        for number, directory in enumerate(directories, 1):
            stage.fact(f"files {number}", [found[f"{directory}/{file}"] for file in FILES])
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda job_id: client.must_stop(job_id, grace_s=0), jobs))


def _judge_twenty(history: History) -> Iterator[Finding]:
    yield floor("jobs at once", len(history.facts("files ")), 20)
    for number in range(1, 21):
        asked = _limits_of(number)
        want: list[Json] = [
            f"{asked.cpu_millicores * 100} 100000", str(asked.memory_max_bytes), str(asked.pids_max)
        ]  # fmt: skip
        yield equal(f"job {number} of 20 has its own limits", history.fact(f"files {number}"), want)


_JOBS_ALONE: Final = frozenset({Need.CGROUPS, Need.PYTHON})
_LIMITED: Final = frozenset({Need.CGROUPS, Need.PYTHON, Need.LIMIT_FIELDS})
_LOOKED_AT: Final = frozenset({Need.CGROUPS, Need.PYTHON, Need.LIMIT_FIELDS, Need.HOST})


def _cpu_check(name: str, words: str, cores: float) -> Check:
    return Check(
        name=f"limits.{name}",
        guarantee=f"A job with {words} gets that much CPU, and the kernel throttles the rest.",
        run=partial(_run_cpu, cores),
        judge=partial(_judge_cpu, cores),
        needs=_LOOKED_AT,
        cites=("49", "R-CGROUP-1"),
        alone=True,
    )


CHECKS: Final = (
    Check(
        name="limits.defaults",
        guarantee="A job that asks for nothing gets 50 % of a core, 100 MB and weight 500.",
        run=_run_defaults,
        judge=_judge_defaults,
        needs=frozenset({Need.CGROUPS, Need.HOST}),
        cites=("56", "R-CGROUP-2"),
    ),
    Check(
        name="limits.default-half-core",
        guarantee="The default half core is enforced, by the job's own clock.",
        run=_run_default_half_core,
        judge=_judge_default_half_core,
        needs=_JOBS_ALONE,
        cites=("56", "49", "R-CGROUP-2"),
        alone=True,
    ),
    _cpu_check("cpu-half-core", "half a core", 0.5),
    _cpu_check("cpu-one-core", "one core", 1.0),
    _cpu_check("cpu-two-cores", "two cores", 2.0),
    Check(
        name="limits.pids",
        guarantee="A job cannot have more processes than its limit, and the server is unharmed.",
        run=_run_pids,
        judge=_judge_pids,
        needs=_LIMITED,
        cites=("52",),
    ),
    Check(
        name="limits.twenty-at-once",
        guarantee="Twenty jobs with limits at once each keep their own.",
        run=_run_twenty,
        judge=_judge_twenty,
        needs=frozenset({Need.CGROUPS, Need.LIMIT_FIELDS, Need.HOST}),
        cites=("62",),
    ),
)
