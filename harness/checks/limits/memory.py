"""A job is held to its memory limit, and bombs of memory and forks leave the server responsive."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.limits.host_cgroups import (
    READS_KERNEL_FILES,
    RUNS_JOBS,
    cgroup_of,
    cpu_s,
    exists,
    host_path,
    on_host,
    rates,
    read_counter,
    root_of,
    sample,
    start_payload,
    usage_curve,
    wait_ready,
)
from harness.drive.client import message_of
from harness.host.clock import Deadline
from harness.judge.promises import answered, at_most, at_most_s, equal, floor
from harness.record.history import Call, History, Observation
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb


def _final(history: History) -> pb.QueryJobResponse:
    return message_of(history.call("final"), pb.QueryJobResponse)


def _judge_killed(promise: str, query: Call) -> Finding:
    response = message_of(query, pb.QueryJobResponse)
    return equal(promise, f"{response.status} {response.signal}", "signaled 9")


@dataclass(frozen=True, slots=True)
class KernelKills(Observation):
    """What the kernel's OOM killer did during a check: whole cgroups, and processes, killed."""

    cgroups: int
    processes: int


def _kernel_kills(stage: Stage, directory: str) -> KernelKills:
    """Return what the OOM killer has done below a cgroup, ended jobs included."""
    return KernelKills(
        cgroups=read_counter(stage, directory, "memory.events", "oom_group_kill"),
        processes=read_counter(stage, directory, "memory.events", "oom_kill"),
    )


def _record_kills_since(before: KernelKills, stage: Stage, directory: str) -> None:
    after = _kernel_kills(stage, directory)
    cgroups, processes = after.cgroups - before.cgroups, after.processes - before.processes
    stage.record(KernelKills(cgroups, processes))


def _judge_kills(kernel: KernelKills, final: pb.QueryJobResponse) -> Iterator[Finding]:
    yield equal("the kernel kills one job, as a whole", kernel.cgroups, 1)
    # Not a fixed number: when it kills a whole job, the kernel counts its first victim twice.
    promise = "the job's usage counts as many kills as the kernel"
    yield equal(promise, final.usage.oom_kills, kernel.processes)


def _run_default_memory(stage: Stage) -> None:
    with stage.client() as client:
        # A server without the added fields may kill a single process, and reports no usage.
        counts_kills = all(map(stage.target_has, (Need.HOST, Need.LIMIT_FIELDS, Need.USAGE)))
        root = root_of(stage, client) if counts_kills else ""
        before = _kernel_kills(stage, root) if counts_kills else None
        job_id = start_payload(client, "memory_hog", "200")
        client.output(job_id)
        client.must_query(job_id, label="final")
        if before is not None:
            _record_kills_since(before, stage, root)


def _judge_default_memory(history: History) -> Iterator[Finding]:
    yield _judge_killed("a job beyond the default 100 MB is killed", history.call("final"))
    for kernel in history.all(KernelKills):
        yield from _judge_kills(kernel, _final(history))


DEFAULT_MEMORY: Final = Check(
    "limits.default-memory",
    "The default 100 MB are enforced: a job that allocates 200 MB ends by signal 9.",
    _run_default_memory,
    _judge_default_memory,
    needs=RUNS_JOBS,
    cites=("56", "50", "R-CGROUP-2"),
    alone=True,
    ours=True,
)


def _run_within_memory(stage: Stage) -> None:
    with stage.client() as client:
        job_id = start_payload(client, "memory_hog", "60")
        client.output(job_id, label="allocated")
        client.must_query(job_id, label="final")


def _judge_within_memory(history: History) -> Iterator[Finding]:
    final, allocated = _final(history), history.stream("allocated").text
    yield equal("60 MiB fit into the default 100 MB", allocated, "60\n")
    yield equal("such a job ends well", f"{final.status} {final.exit_code}", "exited 0")


MEMORY_WITHIN: Final = Check(
    "limits.memory-within",
    "A job that stays within its memory limit runs to its end.",
    _run_within_memory,
    _judge_within_memory,
    needs=RUNS_JOBS,
    cites=("56",),
    ours=True,
)


MEMORY_LIMIT_BYTES: Final = 50 * MIB
MEMORY_WHY: Final = "and 1 MiB: the kernel may exceed it for a moment (cgroup-v2.rst)"
MEMORY_WINDOW_S: Final = 60.0
MEMORY_STEP_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class CgroupOfKilledJob(Observation):
    """The highest memory.current of a job until its OOM kill; whether its cgroup is gone."""

    highest_bytes: int
    is_gone: bool


def _run_memory(stage: Stage) -> None:
    gate = host_path("gate")
    limits = pb.ResourceLimits(memory_max_bytes=MEMORY_LIMIT_BYTES, cpu_millicores=1000)
    with stage.client() as client:
        job_id = start_payload(client, "memory_hog", "300", gate, limits=limits)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        root = directory.rpartition("/")[0]
        before = _kernel_kills(stage, root)
        samples = sample(stage, [directory], MEMORY_WINDOW_S, MEMORY_STEP_S, gate)[directory]
        client.output(job_id)
        client.must_query(job_id, label="final")
        _record_kills_since(before, stage, root)
        highest_bytes = max(now.memory_bytes for _, now in samples)
        stage.record(CgroupOfKilledJob(highest_bytes, not exists(stage, directory)))
        start_payload(client, "fork_counter", label="another")
    points = [(at_s, now.memory_bytes / MIB) for at_s, now in samples]
    limit_mib = MEMORY_LIMIT_BYTES / MIB
    stage.record(usage_curve("memory of a job with 50 MiB", "MiB", limit_mib, points))


def _judge_memory(history: History) -> Iterator[Finding]:
    promise = "a job beyond its memory limit is killed, its main process too"
    yield _judge_killed(promise, history.call("final"))
    final, cgroup = _final(history), history.the(CgroupOfKilledJob)
    yield equal("the status reports an OOM kill", final.oom_killed, want=True)
    yield from _judge_kills(history.the(KernelKills), final)
    bound = MEMORY_LIMIT_BYTES + MIB
    yield at_most("its peak is within the limit", final.usage.memory_peak_bytes, bound, MEMORY_WHY)
    yield at_most("so is what the kernel showed", cgroup.highest_bytes, bound, MEMORY_WHY)
    yield equal("its cgroup is removed", cgroup.is_gone, want=True)
    yield answered("the server goes on", history.call("another"))


MEMORY: Final = Check(
    "limits.memory",
    "A job beyond its memory limit is killed as a whole, and its status reports the OOM kill.",
    _run_memory,
    _judge_memory,
    needs=READS_KERNEL_FILES | {Need.USAGE},
    cites=("50", "R-CGROUP-1", "R-JOB-4"),
    alone=True,
)


ANSWER_BOUND_S: Final = 5.0
ANSWER_WHY: Final = "milliseconds when idle; longer on an emulated machine that a bomb fills"
BOMB_QUERIES_LEAST: Final = 3
# 128 processes: far more than fit into 100 MB, too few to fill a guest if no limit is enforced.
BOMB_ROUNDS: Final = "7"
BOMB_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class MemoryBombEnd(Observation):
    """Whether a bomb of memory ended before it was stopped."""

    by_itself: bool


def _run_memory_bomb(stage: Stage) -> None:
    with stage.client() as client:
        job_id = start_payload(client, "bomb", "1", BOMB_ROUNDS)
        wait_ready(client, job_id)
        deadline = Deadline(BOMB_TIMEOUT_S)
        while not deadline.passed():
            reply = client.query(job_id, label="meanwhile")
            if not reply.ok or reply.message.status != "running":
                break
        stage.record(MemoryBombEnd(by_itself=not deadline.passed()))
        client.stop(job_id, label="stop", grace_s=0)
        client.query(job_id, label="final")
        client.start("true", label="another")


def _judge_memory_bomb(history: History) -> Iterator[Finding]:
    yield from _judge_meanwhile(history)
    by_itself = history.the(MemoryBombEnd).by_itself
    yield equal("a bomb of memory ends by its limit", by_itself, want=True)
    yield _judge_killed("it is killed", history.call("final"))
    yield answered("the server goes on", history.call("another"))
    yield _enough_queries(history)


def _enough_queries(history: History) -> Finding:
    """Require enough queries; a judge's last finding, since a slow server makes them few."""
    return floor("queries while the bomb ran", len(history.calls("meanwhile")), BOMB_QUERIES_LEAST)


def _judge_meanwhile(history: History) -> Iterator[Finding]:
    calls = history.calls("meanwhile")
    codes = sorted({call.code for call in calls})
    yield equal("the server answers while a bomb runs", codes, ["OK"])
    longest_s = max((call.ended_s - call.started_s for call in calls), default=0.0)
    yield at_most_s("it answers soon, in s", longest_s, ANSWER_BOUND_S, ANSWER_WHY)


MEMORY_BOMB: Final = Check(
    "limits.memory-bomb",
    "A bomb of memory ends by its limit while the server answers.",
    _run_memory_bomb,
    _judge_memory_bomb,
    needs=RUNS_JOBS,
    cites=("54",),
    alone=True,
    ours=True,
)


BOMB_STOP_BOUND_S: Final = 10.0
BOMB_STOP_WHY: Final = "kselftest's bound for cgroup.kill of a fork bomb"
BOMB_PROCESSES_LEAST: Final = 50
BOMB_WINDOW_S: Final = 3.0
BOMB_STEP_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ForkBomb(Observation):
    """The processes of a fork bomb before its stop; whether its cgroup is gone after it."""

    processes: int
    cgroup_is_gone: bool


def _run_fork_bomb(stage: Stage) -> None:
    limits = pb.ResourceLimits(pids_max=200, memory_max_bytes=300 * MIB, cpu_millicores=1000)
    with stage.client() as client:
        job_id = start_payload(client, "bomb", "0", "0", limits=limits)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        samples = sample(stage, [directory], BOMB_WINDOW_S, BOMB_STEP_S)[directory]
        for _ in range(20):
            client.query(job_id, label="meanwhile")
        processes = int(on_host(stage, f"cat {directory}/pids.current"))
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(client.stop, job_id, label="stop", grace_s=0)
            while not stopped.done():
                client.query(job_id, label="meanwhile")
        client.query(job_id, label="final")
        client.start("true", label="another")
        stage.record(ForkBomb(processes, not exists(stage, directory)))
    stage.record(usage_curve("CPU of a fork bomb", "cores", 1.0, rates(samples, cpu_s)))


def _judge_fork_bomb(history: History) -> Iterator[Finding]:
    bomb = history.the(ForkBomb)
    yield from _judge_meanwhile(history)
    stop = history.call("stop")
    yield answered("a fork bomb can be stopped", stop)
    took_s = stop.ended_s - stop.started_s
    yield at_most_s("seconds until it has ended", took_s, BOMB_STOP_BOUND_S, BOMB_STOP_WHY)
    yield _judge_killed("it is killed", history.call("final"))
    yield equal("its cgroup is removed", bomb.cgroup_is_gone, want=True)
    yield answered("the server goes on", history.call("another"))
    yield _enough_queries(history)
    yield floor("processes of the bomb", bomb.processes, BOMB_PROCESSES_LEAST)


FORK_BOMB: Final = Check(
    "limits.fork-bomb",
    "A fork bomb that ignores SIGTERM is ended within 10 s while the server answers.",
    _run_fork_bomb,
    _judge_fork_bomb,
    needs=READS_KERNEL_FILES | {Need.GRACE},
    cites=("53", "R-JOB-3"),
    alone=True,
)


# First breath: the first milliseconds, before a server could move the process into its cgroup.
FIRST_BREATH_JOBS: Final = 4


def _run_first_breath(stage: Stage) -> None:
    """Run jobs whose program allocates 150 MB at once."""
    words = ["if=/dev/zero", "of=/dev/null", "bs=150M", "count=1"]
    with stage.client() as client, ThreadPoolExecutor(FIRST_BREATH_JOBS) as pool:

        def run(number: int) -> None:
            job_id = client.must_start("dd", words)
            client.output(job_id)
            client.query(job_id, label=f"final {number}")

        list(pool.map(run, range(FIRST_BREATH_JOBS)))


def _judge_first_breath(history: History) -> Iterator[Finding]:
    for number in range(FIRST_BREATH_JOBS):
        promise = "a job that allocates 150 MB at once is killed by its limit"
        yield _judge_killed(promise, history.call(f"final {number}"))


FIRST_BREATH: Final = Check(
    "limits.first-breath",
    "A job that allocates too much memory in its first milliseconds is killed by its limit.",
    _run_first_breath,
    _judge_first_breath,
    needs=frozenset({Need.CGROUPS}),
    cites=("55", "R-CGROUP-3"),
    alone=True,
)

CHECKS: Final = (
    DEFAULT_MEMORY,
    MEMORY_WITHIN,
    MEMORY,
    MEMORY_BOMB,
    FORK_BOMB,
    FIRST_BREATH,
)
