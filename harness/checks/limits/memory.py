"""Memory is held to a job's limit, and bombs of memory and of forks hurt nobody else."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.limits.host_cgroups import (
    MIB,
    cgroup_of,
    counter,
    files_of,
    host_path,
    is_there,
    on_host,
    rates,
    root_of,
    sampled,
    start_payload,
    told,
    usage_fact,
    wait_ready,
)
from harness.host.clock import Deadline
from harness.judge.promises import (
    answered,
    at_most,
    equal,
    floor,
)
from harness.record.history import History
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

MEMORY_LIMIT_BYTES: Final = 50 * MIB
MEMORY_WHY: Final = "and 1 MiB: the kernel may go beyond it for a moment (cgroup-v2.rst)"
MEMORY_WINDOW_S: Final = 60.0
MEMORY_STEP_S: Final = 0.1

ANSWER_BOUND_S: Final = 5.0
ANSWER_WHY: Final = "in memory it takes milliseconds; an emulated machine that a bomb fills, longer"
BOMB_STOP_BOUND_S: Final = 10.0
BOMB_STOP_WHY: Final = "kselftest's bound for cgroup.kill of a fork bomb"
BOMB_QUERIES_LEAST: Final = 3
# 128 processes: far more than fits into 100 MB, too few to fill a guest where no limit holds.
BOMB_ROUNDS: Final = "7"
BOMB_TIMEOUT_S: Final = 60.0
BOMB_WINDOW_S: Final = 3.0
BOMB_STEP_S: Final = 0.2


def _run_default_memory(stage: Stage) -> None:
    with stage.client() as client:
        # Another server may kill one process alone, and tell no usage.
        looked_at = stage.target_has(Need.HOST) and stage.target_has(Need.LIMIT_FIELDS)
        root = root_of(stage, client) if looked_at else None
        before = _kernel_kills(stage, root) if root else {}
        job_id = start_payload(client, "memory_hog", "200")
        client.output(job_id)
        client.must_query(job_id, label="final")
        if root:
            _record_kills(stage, before, _kernel_kills(stage, root))


def _kernel_kills(stage: Stage, root: str) -> dict[str, int]:
    """Return what the kernel's OOM killer has done below a cgroup, ended jobs included."""
    text = files_of(stage, root, "memory.events")["memory.events"]
    return {name: counter(text, name) for name in ("oom_kill", "oom_group_kill")}


def _record_kills(stage: Stage, before: dict[str, int], after: dict[str, int]) -> None:
    stage.fact("kernel's kills", {name: after[name] - before[name] for name in after})


def _judge_default_memory(history: History) -> Iterator[Finding]:
    yield from _judge_killed("a job beyond the default 100 MB is killed", history)
    if history.facts("kernel's kills"):
        yield from _judge_kills(history)


def _judge_kills(history: History) -> Iterator[Finding]:
    kills = history.fact("kernel's kills")
    kernel = dict(kills) if isinstance(kills, Mapping) else {}
    yield equal("the kernel kills one job, as a whole", kernel.get("oom_group_kill"), 1)
    final = history.call("final").response
    got = int(str(told(final, "usage", "oom_kills") or 0))
    # Not a number of its own: in a whole job's kill the kernel counts its first victim twice.
    yield equal("the job's usage counts as many kills as the kernel", got, kernel.get("oom_kill"))


def _judge_killed(promise: str, history: History) -> Iterator[Finding]:
    final = history.call("final").response
    got = f"{final.get('status')} {final.get('signal')}"
    yield equal(promise, got, "signaled 9")


def _run_within_memory(stage: Stage) -> None:
    with stage.client() as client:
        job_id = start_payload(client, "memory_hog", "60")
        stage.fact("output", client.output(job_id))
        client.must_query(job_id, label="final")


def _judge_within_memory(history: History) -> Iterator[Finding]:
    final = history.call("final").response
    yield equal("60 MiB fit into the default 100 MB", history.fact("output"), "60\n")
    yield equal(
        "such a job ends well", f"{final.get('status')} {final.get('exit_code')}", "exited 0"
    )


def _run_memory(stage: Stage) -> None:
    gate = host_path("gate")
    limits = pb.ResourceLimits(memory_max_bytes=MEMORY_LIMIT_BYTES, cpu_millicores=1000)
    with stage.client() as client:
        job_id = start_payload(client, "memory_hog", "300", gate, limits=limits)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        above = directory.rpartition("/")[0]
        before = _kernel_kills(stage, above)
        samples = sampled(stage, [directory], MEMORY_WINDOW_S, MEMORY_STEP_S, gate)[directory]
        client.output(job_id)
        client.must_query(job_id, label="final")
        _record_kills(stage, before, _kernel_kills(stage, above))
        stage.fact("cgroup is there", is_there(stage, directory))
        start_payload(client, "fork_counter", label="another")
    points = [(at_s, now["memory_bytes"] / MIB) for at_s, now in samples]
    usage_fact(stage, "memory of a job with 50 MiB", "MiB", MEMORY_LIMIT_BYTES / MIB, points)
    stage.fact("highest", max(now["memory_bytes"] for _, now in samples))


def _judge_memory(history: History) -> Iterator[Finding]:
    yield from _judge_killed("a job beyond its memory is killed, its main process too", history)
    final = history.call("final").response
    peak = int(str(told(final, "usage", "memory_peak_bytes") or 0))
    yield equal("the status says that it was the OOM killer", final.get("oom_killed"), True)
    yield from _judge_kills(history)
    bound = MEMORY_LIMIT_BYTES + MIB
    yield at_most("its peak is within the limit", peak, bound, MEMORY_WHY)
    yield at_most("so is what the kernel showed", history.number("highest"), bound, MEMORY_WHY)
    yield equal("its cgroup is gone", history.fact("cgroup is there"), want=False)
    yield answered("the server goes on", history.call("another"))


def _run_memory_bomb(stage: Stage) -> None:
    with stage.client() as client:
        job_id = start_payload(client, "bomb", "1", BOMB_ROUNDS)
        wait_ready(client, job_id)
        deadline = Deadline(BOMB_TIMEOUT_S)
        while not deadline.passed():
            reply = client.query(job_id, label="meanwhile")
            if not reply.ok or reply.message.status != "running":
                break
        stage.fact("ended by itself", not deadline.passed())
        client.stop(job_id, label="stop", grace_s=0)
        client.query(job_id, label="final")
        client.start("true", label="another")


def _judge_memory_bomb(history: History) -> Iterator[Finding]:
    yield from _judge_meanwhile(history)
    yield equal("a bomb of memory ends by its limit", history.fact("ended by itself"), want=True)
    yield from _judge_killed("it is killed", history)
    yield answered("the server goes on", history.call("another"))


def _judge_meanwhile(history: History) -> Iterator[Finding]:
    calls = history.calls("meanwhile")
    yield floor("queries while the bomb ran", len(calls), BOMB_QUERIES_LEAST)
    yield equal(
        "the server answers while a bomb runs", sorted({call.code for call in calls}), ["OK"]
    )
    longest_s = max(call.ended_s - call.started_s for call in calls)
    yield at_most("it answers soon, in s", longest_s, ANSWER_BOUND_S, ANSWER_WHY)


def _run_fork_bomb(stage: Stage) -> None:
    limits = pb.ResourceLimits(pids_max=200, memory_max_bytes=300 * MIB, cpu_millicores=1000)
    with stage.client() as client:
        job_id = start_payload(client, "bomb", "0", "0", limits=limits)
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        samples = sampled(stage, [directory], BOMB_WINDOW_S, BOMB_STEP_S)[directory]
        for _ in range(20):
            client.query(job_id, label="meanwhile")
        stage.fact("processes", int(on_host(stage, f"cat {directory}/pids.current")))
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(client.stop, job_id, label="stop", grace_s=0)
            while not stopped.done():
                client.query(job_id, label="meanwhile")
        client.query(job_id, label="final")
        client.start("true", label="another")
        stage.fact("cgroup is there", is_there(stage, directory))
    usage_fact(stage, "CPU of a fork bomb", "cores", 1.0, rates(samples, "cpu_us", 1e6))


def _judge_fork_bomb(history: History) -> Iterator[Finding]:
    yield floor("processes of the bomb", history.number("processes"), 50)
    yield from _judge_meanwhile(history)
    stop = history.call("stop")
    yield answered("a fork bomb can be stopped", stop)
    seconds = stop.ended_s - stop.started_s
    yield at_most("it is ended within 10 s", seconds, BOMB_STOP_BOUND_S, BOMB_STOP_WHY)
    yield from _judge_killed("it is killed", history)
    yield equal("its cgroup is gone", history.fact("cgroup is there"), want=False)
    yield answered("the server goes on", history.call("another"))


def _run_at_once(stage: Stage) -> None:
    """Four programs that take 150 MB with their very first breath."""
    words = ["if=/dev/zero", "of=/dev/null", "bs=150M", "count=1"]
    with stage.client() as client, ThreadPoolExecutor(4) as pool:

        def run(number: int) -> None:
            job_id = client.must_start("dd", words)
            client.output(job_id)
            client.query(job_id, label=f"final {number}")

        list(pool.map(run, range(4)))


def _judge_at_once(history: History) -> Iterator[Finding]:
    for call in history.calls("final"):
        got = f"{call.response.get('status')} {call.response.get('signal')}"
        yield equal("a job that takes 150 MB at once meets its limit", got, "signaled 9")


_JOBS_ALONE: Final = frozenset({Need.CGROUPS, Need.PYTHON})
_LIMITED: Final = frozenset({Need.CGROUPS, Need.PYTHON, Need.LIMIT_FIELDS})
_LOOKED_AT: Final = frozenset({Need.CGROUPS, Need.PYTHON, Need.LIMIT_FIELDS, Need.HOST})


CHECKS: Final = (
    Check(
        name="limits.default-memory",
        guarantee="The default 100 MB are enforced: a job that takes 200 MB ends by signal 9.",
        run=_run_default_memory,
        judge=_judge_default_memory,
        needs=_JOBS_ALONE,
        cites=("56", "50", "R-CGROUP-2"),
        alone=True,
    ),
    Check(
        name="limits.memory-within",
        guarantee="A job that stays within its memory has no trouble.",
        run=_run_within_memory,
        judge=_judge_within_memory,
        needs=_JOBS_ALONE,
        cites=("56",),
    ),
    Check(
        name="limits.memory",
        guarantee="A job beyond its memory is killed as a whole, and its status says OOM.",
        run=_run_memory,
        judge=_judge_memory,
        needs=_LOOKED_AT,
        cites=("50", "R-CGROUP-1", "R-JOB-4"),
        alone=True,
    ),
    Check(
        name="limits.memory-bomb",
        guarantee="A bomb of memory ends by its limit while the server answers.",
        run=_run_memory_bomb,
        judge=_judge_memory_bomb,
        needs=_JOBS_ALONE,
        cites=("54",),
        alone=True,
    ),
    Check(
        name="limits.fork-bomb",
        guarantee="A fork bomb that ignores SIGTERM is ended within 10 s while the server answers.",
        run=_run_fork_bomb,
        judge=_judge_fork_bomb,
        needs=_LOOKED_AT | {Need.GRACE},
        cites=("53", "R-JOB-3"),
        alone=True,
    ),
    Check(
        name="limits.first-breath",
        guarantee="A job that takes too much memory in its first milliseconds meets its limit.",
        run=_run_at_once,
        judge=_judge_at_once,
        needs=frozenset({Need.CGROUPS}),
        cites=("55", "R-CGROUP-3"),
        alone=True,
    ),
)
