"""The grace period of a whole tree: a stop gives it to every process of a job.

Not judged here: sessions of their own, which only a cgroup can find (`limits.tree-grace`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WAITS
from harness.checks.lifecycle.stopping import KILL_SLACK_S
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, at_least, at_most_s, equal, floor
from harness.payloads import payload
from harness.payloads.stopped_worker import WORKS_ON_S
from harness.record.history import History, Observation
from harness.record.verdict import BrokenError, Finding
from harness.targets.target import poll_script

GRACE_S: Final = 15.0  # far more than the workers take on a busy machine
SHORT_GRACE_S: Final = 1.0
READY_S: Final = 30.0
PAUSED_S: Final = 10.0  # less than a stream's deadline
# A shell that waits for its workers; SIGTERM ends the shell itself at once.
TREE: Final = (
    'program=$1; shift; for each; do python3 -I -S -c "$program" "$each" & done; wait'
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoppedTree(Observation):
    """A job of several workers that was stopped.

    Attributes:
        workers: their kinds, see `harness/payloads/stopped_worker.py`.
        ready: how many of them were, at the stop.
        grace_s: of the stop.
        left: how many of their processes were left after the stop, as a job counted them.
    """

    workers: tuple[str, ...]
    ready: int
    grace_s: float
    left: str


def start_tree(client: Client, workers: Sequence[str]) -> str:
    """Start a job whose main process waits for workers, and return its id."""
    _, [*_, source] = payload("stopped_worker")
    return client.must_start("sh", ["-c", TREE, "sh", source, *workers])


def stop_tree(stage: Stage, client: Client, workers: Sequence[str], grace_s: float) -> None:
    """Start a job of workers, stop it when all are ready, and record what they did."""
    job_id = start_tree(client, workers)
    pids: list[str] = []

    def all_ready() -> bool:
        plan = StreamPlan(no_follow=True, keep_bytes=4096)
        lines = client.stream(job_id, plan, label="look").text.splitlines()
        pids[:] = [line.split()[2] for line in lines if line.split()[1:2] == ["ready"]]
        return len(pids) == len(workers)

    if seconds_until(all_ready, stage.patience(READY_S)) is None:
        client.stop(job_id, label="stop", grace_s=0)
        raise BrokenError(f"{len(pids)} of {len(workers)} workers were ready in time")
    if "paused" in workers:
        # Field 3 of its stat is the state; a job looks, since it is on the server's machine.
        paused = " ".join(f"/proc/{pid}/stat" for pid in pids)
        script = poll_script(f"cat {paused} | grep -q ') T '", PAUSED_S)
        client.output(client.must_start("sh", ["-c", script]), label="paused")
    client.stop(job_id, label="stop", grace_s=grace_s)
    alive = " ".join(f"/proc/{pid}/exe" for pid in pids)
    look = f"for each in {alive}; do readlink $each; done | wc -l"
    left = client.output(client.must_start("sh", ["-c", look]), label="left").strip()
    stage.record(StoppedTree(tuple(workers), len(pids), grace_s, left))
    client.stream(job_id, StreamPlan(keep_bytes=4096), label="whole")
    client.query(job_id, label="after")


def judge_stop(history: History) -> Iterator[Finding]:
    """The stop succeeds, and nothing is left."""
    tree = history.the(StoppedTree)
    yield floor("workers at the stop", tree.ready, len(tree.workers))
    yield answered("the stop succeeds", history.call("stop"))
    yield equal("workers left after the stop", tree.left, "0")


def judge_grace(history: History) -> Iterator[Finding]:
    """Every worker gets one SIGTERM, and the time to say its last words; no more time passes."""
    yield from judge_stop(history)
    lines = history.stream("whole").text.splitlines()
    for worker in history.the(StoppedTree).workers:
        terms = lines.count(f"{worker} term")
        yield equal(f"SIGTERMs that the worker gets ({worker})", terms, 1)
        words = lines.count(f"{worker} last words")
        yield equal(f"last words of the worker ({worker})", words, 1)
    stop = history.call("stop")
    took_s = stop.ended_s - stop.started_s
    yield at_least("seconds until the stop returns", took_s, WORKS_ON_S, "the workers' last words")
    bound_s = WORKS_ON_S + KILL_SLACK_S
    yield at_most_s("seconds until the stop returns", took_s, bound_s, "not the whole grace period")


def run_tree_grace(stage: Stage) -> None:
    """Stop a shell that waits for a worker that handles SIGTERM, and for one that is paused."""
    with stage.client() as client:
        stop_tree(stage, client, ("handles", "paused"), GRACE_S)


TREE_GRACE: Final = Check(
    "lifecycle.tree-grace",
    "A stop gives every process of a job one SIGTERM and the grace period, not just the main one.",
    run_tree_grace,
    judge_grace,
    needs=frozenset({Need.PYTHON, Need.GRACE, Need.OFFSETS}),
    cites=("100", "R-JOB-3"),
)


def run_tree_escalates(stage: Stage) -> None:
    """Stop a shell that waits for a worker that ignores SIGTERM."""
    with stage.client() as client:
        stop_tree(stage, client, ("ignores",), SHORT_GRACE_S)


def judge_tree_escalates(history: History) -> Iterator[Finding]:
    """It is killed at the end of the grace period, and not before."""
    yield from judge_stop(history)
    stop = history.call("stop")
    took_s = stop.ended_s - stop.started_s
    yield at_least("seconds until the stop returns", took_s, SHORT_GRACE_S, "the grace period")
    yield at_most_s("seconds until the stop returns", took_s, SHORT_GRACE_S + KILL_SLACK_S)


TREE_ESCALATES: Final = Check(
    "lifecycle.tree-escalates",
    "A process that ignores SIGTERM and outlives its job's main process is killed at the end of "
    "the grace period.",
    run_tree_escalates,
    judge_tree_escalates,
    needs=frozenset({Need.PYTHON, Need.GRACE, Need.OFFSETS}),
    cites=("100", "R-JOB-3"),
)


RESISTS: Final = f"trap 'echo term' TERM; echo ready; {WAITS}"
RESISTED_BYTES: Final = len("ready\nterm\n")
# The grace periods of two stops of one job, the second while the first waits.
GRACES_S: Final = {"shorter": (20.0, 0.5), "longer": (1.0, 20.0)}


def run_second_grace(stage: Stage) -> None:
    """Stop jobs that resist, and stop them again with a shorter and a longer grace period."""
    with stage.client() as client, ThreadPoolExecutor(1) as pool:
        for which, (first_s, second_s) in GRACES_S.items():
            job_id = client.must_start("sh", ["-c", RESISTS])
            client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")
            first = pool.submit(client.stop, job_id, label=f"before {which}", grace_s=first_s)
            # The first stop has arrived when its SIGTERM has.
            client.stream(job_id, StreamPlan(stop_after_bytes=RESISTED_BYTES), label="term")
            client.stop(job_id, label=which, grace_s=second_s)
            first.result()


def judge_second_grace(history: History) -> Iterator[Finding]:
    """Both stops return when the shorter of the two periods is over."""
    for which, graces_s in GRACES_S.items():
        for label in (f"before {which}", which):
            stop = history.call(label)
            yield answered(f"a stop succeeds ({label})", stop)
            took_s = stop.ended_s - stop.started_s
            promise = f"seconds until a stop returns, the second one having a {which} grace period"
            yield at_most_s(promise, took_s, min(graces_s) + KILL_SLACK_S, "the shorter one")


SECOND_GRACE: Final = Check(
    "lifecycle.second-grace",
    "A second stop can shorten the grace period of the first, and never lengthens it.",
    run_second_grace,
    judge_second_grace,
    needs=frozenset({Need.GRACE}),
    cites=("39",),
    time_limit_s=240,
)

CHECKS: Final = (TREE_GRACE, TREE_ESCALATES, SECOND_GRACE)
