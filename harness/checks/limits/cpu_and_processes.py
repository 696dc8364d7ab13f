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
from harness.checks.limits.host_cgroups import (
    MIB,
    Samples,
    cgroup_of,
    cgroups_of,
    contents,
    counter,
    files_of,
    host_path,
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
from harness.judge.promises import (
    answered,
    at_least,
    at_most,
    equal,
    floor,
)
from harness.record.history import History, Json
from harness.record.verdict import Finding
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
# A quota of all processors bounds nothing that could be seen: it must only not stand in the way.
WHOLE_THROTTLED_SHARE: Final = 0.2
WHOLE_WHY: Final = "the kernel hands a quota out in slices; half of it would cost half the time"

FILES: Final = ("cpu.max", "memory.max", "pids.max")
PIDS_LIMIT: Final = 5
# Every other of twenty jobs takes so much more than its memory, the others so much less; dd itself
# takes less than 1 MiB besides.
TWENTY_MARGIN_MIB: Final = 5
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
        begun_us = counter(files_of(stage, directory, "cpu.stat")["cpu.stat"], "throttled_usec")
        samples = sampled(stage, [directory], CPU_WINDOW_S, CPU_STEP_S)[directory]
        ended_us = counter(files_of(stage, directory, "cpu.stat")["cpu.stat"], "throttled_usec")
        stage.fact("throttled s", (ended_us - begun_us) / 1e6)
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
        return
    # All the processors there are, or more: no ceiling to be seen, so none is judged.
    whole = min(cores, history.number("processors"))
    yield at_least(
        f"a job that may use all {whole:g} processors does",
        got, whole * (1 - CPU_SHORTFALL), CPU_SHORTFALL_WHY,
    )  # fmt: skip
    yield at_most(
        "seconds of the processors that the kernel kept from it", history.number("throttled s"),
        WHOLE_THROTTLED_SHARE * whole * CPU_WINDOW_S, WHOLE_WHY,
    )  # fmt: skip


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
        cpu_millicores=100 + 10 * number,
        memory_max_bytes=(20 + number) * MIB,
        pids_max=10 + number,
    )


def _takes_mib(number: int) -> int:
    """Return how much memory a job takes: every other one more than it may."""
    margin_mib = TWENTY_MARGIN_MIB if number % 2 else -TWENTY_MARGIN_MIB
    return _limits_of(number).memory_max_bytes // MIB + margin_mib


def _run_twenty(stage: Stage) -> None:
    gate = host_path("gate")
    on_host(stage, f"mkfifo {gate}")

    def start(number: int) -> str:
        take = f"exec dd if=/dev/zero of=/dev/null bs={_takes_mib(number)}M count=1"
        script = f"read line < {gate}; {take}"
        return client.must_start("sh", ["-c", script], limits=_limits_of(number))

    def finish(number: int) -> None:
        client.output(jobs[number - 1], label=f"output {number}")
        client.must_query(jobs[number - 1], label=f"final {number}")

    with stage.client() as client, ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(start, range(1, 21)))
        directories = cgroups_of(stage, client, jobs)
        found = contents(stage, "/", [f"{each}/{file}" for each in directories for file in FILES])
        for number, directory in enumerate(directories, 1):
            stage.fact(f"files {number}", [found[f"{directory}/{file}"] for file in FILES])
        # Removed while it is open: who waits at it goes on, and nobody comes too late to it.
        on_host(stage, f"exec 3> {gate}; rm {gate}; exec 3>&-")
        list(pool.map(finish, range(1, 21)))


def _judge_twenty(history: History) -> Iterator[Finding]:
    yield floor("jobs at once", len(history.facts("files ")), 20)
    for number in range(1, 21):
        asked = _limits_of(number)
        want: list[Json] = [
            f"{asked.cpu_millicores * 100} 100000", str(asked.memory_max_bytes), str(asked.pids_max)
        ]  # fmt: skip
        yield equal(f"job {number} of 20 has its own limits", history.fact(f"files {number}"), want)
    for number in range(1, 21):
        final = history.call(f"final {number}").response
        end = f"{final.get('status')} {final.get('signal')}, OOM: {final.get('oom_killed')}"
        takes = f"{_takes_mib(number)} MiB of {_limits_of(number).memory_max_bytes // MIB}"
        want_end = "signaled 9, OOM: True" if number % 2 else "exited 0, OOM: False"
        yield equal(f"the end of job {number} of 20, which takes {takes}", end, want_end)


_JOBS_ALONE: Final = frozenset({Need.CGROUPS, Need.PYTHON})
_LIMITED: Final = frozenset({Need.CGROUPS, Need.PYTHON, Need.LIMIT_FIELDS})
_LOOKED_AT: Final = frozenset({Need.CGROUPS, Need.PYTHON, Need.LIMIT_FIELDS, Need.HOST})


def _cpu_check(name: str, cores: float, guarantee: str) -> Check:
    return Check(
        name=f"limits.{name}",
        guarantee=guarantee,
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
    _cpu_check(
        "cpu-half-core", 0.5, "A job with half a core gets it, and the kernel throttles the rest."
    ),
    _cpu_check(
        "cpu-one-core", 1.0, "A job with one core gets it, and the kernel throttles the rest."
    ),
    _cpu_check(
        "cpu-two-cores",
        2.0,
        "A job with two cores gets more than one; no more than two, where there are more.",
    ),
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
        guarantee="Of twenty jobs at once each is held to its own memory, and has its own limits.",
        run=_run_twenty,
        judge=_judge_twenty,
        needs=frozenset({Need.CGROUPS, Need.LIMIT_FIELDS, Need.HOST}),
        cites=("62",),
    ),
)
