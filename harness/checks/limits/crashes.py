"""Servers that are killed at random moments under load, and what the next one on the root finds.

In each round, starts, stops and streams are under way when SIGKILL comes, and jobs of every kind
run: silent ones, writers, daemons, forking ones, one with cgroups of its own, one that ignores
SIGTERM. All processes of a round's jobs have a word in their environment, by which those that are
left are counted. Not covered: a server without cgroups, of which nothing is promised here: its jobs
run on; power failures and a dying machine.
"""

import secrets
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from signal import SIGKILL
from threading import Event
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, WriterStep, plan_text
from harness.checks.limits.host_cgroups import on_host, relaunch, root_of
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.judge.promises import at_most_s, equal, floor, holds
from harness.payloads import payload
from harness.payloads.burst_writer import Pattern
from harness.record.history import Call, History, Observation, Outcome, Stream, UsageCurve
from harness.record.scopes import separately
from harness.record.verdict import Finding
from harness.targets.launching import CGROUP_MOUNT
from harness.targets.target import RunningServer

ROUNDS: Final = 10
SMALL_ROUNDS: Final = 4
# A server is killed within so long after its load began, at a random moment.
LOAD_S: Final = 2.0
SMALL_LOAD_S: Final = 4.0
STARTERS: Final = 3
GRACE_S: Final = 60.0
EXIT_TIMEOUT_S: Final = 60.0
STREAM_TIMEOUT_S: Final = 90.0
MARK: Final = "JOBWORKER_CRASH_ROUND"

ERROR_WITHIN_S: Final = 5.0
ERROR_WHY: Final = "the kernel closes a killed server's connections at once; a busy machine is late"
RECOVERS_WITHIN_S: Final = 15.0
RECOVERS_WHY: Final = "the start of Python, and up to 1.3 s for the end of a throttled job"

_FOREVER: Final = 10**6
_WRITES: Final = (WriterStep(16 * KIB, pause_ms=20, repeat=_FOREVER),)
# Each kind of job, as a script; the writer is a payload.
SCRIPTS: Final[Mapping[str, str]] = {
    "silent": "exec sleep 1000",
    "forking": "while :; do sh -c 'sleep 0.02 & sleep 0.02'; done",
    "daemons": "setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & setsid sleep 1000 & wait",
    "sub-cgroups": (
        f"cd {CGROUP_MOUNT}$(cut -d: -f3 /proc/self/cgroup) && mkdir -p sub/subsub && "
        "echo $$ > sub/subsub/cgroup.procs; sleep 1000 & exec sleep 1000"
    ),
    "ignoring SIGTERM": "trap '' TERM; echo ready; while :; do sleep 0.2; done",
}
KINDS: Final = ("writing", *SCRIPTS)


@dataclass(frozen=True, slots=True)
class CrashPlan(Observation):
    """What a run of crashes did.

    Attributes:
        rounds: how many servers were to be killed.
        clean_start_s: how long the start of a server took that found nothing.
        recovers_within_s: the bound of such a start after a kill, on this machine.
    """

    rounds: int
    clean_start_s: float
    recovers_within_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill of a server. Times are those of the records.

    Attributes:
        exit_code: of the server, negative: the signal; None: it still ran.
        requested_s, done_s: before and after the signal was sent.
        after_s: from the begin of its load.
        cgroups, processes: of its jobs, as it left them.
    """

    exit_code: int | None
    requested_s: float
    done_s: float
    after_s: float
    cgroups: int
    processes: int


@dataclass(frozen=True, slots=True)
class CrashRound(Observation):
    """A killed server, and what the next one on its cgroup root made of it.

    Attributes:
        number: of the round; the labels of its calls and streams begin with it.
        kill: the kill.
        recovered_s: from the launch of the next server to the answer to its first start.
        cgroups, processes: of the killed server's jobs, once the next one listened.
    """

    number: int
    kill: Kill
    recovered_s: float
    cgroups: int
    processes: int


def run_crashes(stage: Stage) -> None:
    """Kill a server under load, start the next one on its root and look; again and again."""
    rounds = stage.extent.rounds or stage.pick(full=ROUNDS, small=SMALL_ROUNDS)
    mark = secrets.token_hex(8)  # not from the seed: a run may be repeated on the same machine
    now_s = stage.recorder.now_s
    launched_s = now_s()
    with stage.fresh_server() as first:
        with stage.client(server=first) as client:
            client.must_start("true", label="first start")
            clean_s = now_s() - launched_s
            root = root_of(stage, client)
        stage.record(CrashPlan(rounds, clean_s, stage.patience(RECOVERS_WITHIN_S)))
        kill, jobs = _crash(stage, first, root, f"{mark}-1", 1)
        curve = []
        for number in range(1, rounds + 1):
            launched_s = now_s()
            with relaunch(stage, root) as server, stage.client(server=server) as client:
                cgroups, processes = _count(stage, root, mark)
                recovered = client.start("true", label=f"{number} next: start").call
                seconds = recovered.ended_s - launched_s
                stage.record(CrashRound(number, kill, seconds, cgroups, processes))
                curve.append((launched_s, seconds))
                _look_for(stage, client, jobs, number)
                if number < rounds:
                    kill, jobs = _crash(stage, server, root, f"{mark}-{number + 1}", number + 1)
        stage.record(UsageCurve("Recovery of killed servers", "s", None, tuple(curve)))


def _crash(
    stage: Stage, server: RunningServer, root: str, mark: str, number: int
) -> tuple[Kill, list[str]]:
    """Load a server and kill it meanwhile; return the kill and the ids that it gave to clients."""
    now_s, jobs = stage.recorder.now_s, list[str]()
    after_s = stage.random.uniform(0.0, stage.pick(full=LOAD_S, small=SMALL_LOAD_S))
    kinds = stage.random.sample(KINDS, len(KINDS))
    with (
        ThreadPoolExecutor(len(kinds) + STARTERS) as pool,
        stage.client(server=server) as client,
        stage.client(server=server) as another,
    ):
        load = _Load(stage, client, another, {MARK: mark}, number, jobs)
        began_s = now_s()
        running = [pool.submit(load.start, kind) for kind in kinds]
        running += [pool.submit(load.start_short_ones) for _ in range(STARTERS)]
        Event().wait(after_s)  # the moment of the kill, which nothing synchronises with
        requested_s = now_s()
        server.signal(SIGKILL)
        done_s = now_s()
        for each in running:
            each.result()  # each call has a deadline
        exit_code = server.wait_exit(EXIT_TIMEOUT_S)
    left = _count(stage, root, mark)
    return Kill(exit_code, requested_s, done_s, requested_s - began_s, *left), jobs


def _count(stage: Stage, root: str, mark: str) -> tuple[int, int]:
    """Count the cgroups below a root, at any depth, and the processes that have a mark."""
    script = (
        f"find {root} -mindepth 1 -type d 2>/dev/null | wc -l; "
        f"grep -lsa {MARK}={mark} /proc/[0-9]*/environ | wc -l"
    )
    cgroups, processes = map(int, on_host(stage, script).split())
    return cgroups, processes


def _look_for(stage: Stage, client: Client, jobs: Sequence[str], number: int) -> None:
    """Query, stop and stream jobs of a killed server at the next one."""
    for job_id in stage.random.sample(jobs, min(len(jobs), len(KINDS))):
        client.query(job_id, label=f"{number} old: query")
    for job_id in jobs[:1]:
        client.stop(job_id, label=f"{number} old: stop")
        client.stream(job_id, label=f"{number} old: stream")
    client.output(
        client.must_start("echo", ["works"], label=f"{number} next: start a job"),
        label=f"{number} next: output",
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """What is under way when a server is killed. Each method runs on a thread of its own."""

    stage: Stage
    client: Client
    streamer: Client  # on another connection
    environment: Mapping[str, str]
    number: int
    jobs: list[str]  # appended to by any thread

    def start_short_ones(self) -> None:
        """Start jobs that end at once, until a call fails."""
        while self._start("true") is not None:
            pass

    def start(self, kind: str) -> None:
        """Start a job of a kind, and stop it or follow its output until the server is gone."""
        seed = f"{self.number}"
        words = ("sh", ["-c", SCRIPTS[kind]]) if kind in SCRIPTS else (
            payload("burst_writer", seed, plan_text(_WRITES))
        )  # fmt: skip
        job_id = self._start(*words)
        if job_id is None:
            return
        plan = StreamPlan(timeout_s=STREAM_TIMEOUT_S, may_time_out=True)
        label = f"{self.number} stream: {kind}"
        if kind == "writing":
            plan = StreamPlan(Pattern(seed), timeout_s=STREAM_TIMEOUT_S, may_time_out=True)
            self.streamer.stream(job_id, plan, label=label)
        elif kind == "ignoring SIGTERM":
            self.client.stream(job_id, StreamPlan(stop_after_bytes=1), label=f"{self.number} ready")
            self.client.stop(job_id, label=f"{self.number} call: stop", grace_s=GRACE_S)
        else:
            self.streamer.stream(job_id, plan, label=label)

    def _start(self, command: str, words: Sequence[str] = ()) -> str | None:
        reply = self.client.start(
            command, words, environment=self.environment, label=f"{self.number} call: start"
        )
        if not reply.ok:
            return None
        job_id: str = reply.message.job_id
        self.jobs.append(job_id)
        return job_id


def judge_crashes(history: History) -> Iterator[Finding]:
    """Each next server removes all that the killed one left, and works."""
    plan, rounds = history.the(CrashPlan), history.all(CrashRound)
    killed = [each for each in rounds if each.kill.exit_code == -SIGKILL]
    yield floor("servers that were killed", len(killed), plan.rounds)
    yield _none_left("cgroups of a killed server's jobs after the next start", rounds, _cgroups)
    yield _none_left("processes of a killed server's jobs after the next start", rounds, _processes)
    yield from separately(
        (
            _judge_old_jobs(history),
            _judge_cut(history, rounds),
            _judge_next(history, plan, rounds),
            _judge_floors(history, rounds),
        )
    )


def _cgroups(each: CrashRound) -> int:
    return each.cgroups


def _processes(each: CrashRound) -> int:
    return each.processes


def _none_left(
    promise: str, rounds: Sequence[CrashRound], count: Callable[[CrashRound], int]
) -> Finding:
    left = [f"{count(each)} in round {each.number}" for each in rounds if count(each)]
    return holds(promise, kept=not left, got=", ".join(left[:5]) or "0", want="0 in each round")


def _judge_old_jobs(history: History) -> Iterator[Finding]:
    records = [
        each for each in _records(history) if " old: " in each.label and each.code != "NOT_FOUND"
    ]
    got = ", ".join(f"{each.label}: {each.code}" for each in records[:5])
    promise = "a killed server's jobs are unknown to the next one"
    yield holds(promise, kept=not records, got=got or "NOT_FOUND", want="NOT_FOUND")


def _records(history: History) -> list[Call | Stream]:
    return [*history.calls(), *history.streams()]


def _cut_of(history: History, each: CrashRound) -> list[Call | Stream]:
    """Return the calls and streams that a round's kill cut."""
    own = (f"{each.number} call: ", f"{each.number} stream: ")
    return [
        record
        for record in _records(history)
        if record.label.startswith(own) and record.outcome is not Outcome.OK
    ]


def _judge_cut(history: History, rounds: Sequence[CrashRound]) -> Iterator[Finding]:
    """Clients get a typed error, soon, and what they had received is right."""
    codes, late_s, early = set(), 0.0, 0
    for each in rounds:
        for record in _cut_of(history, each):
            codes.add(record.code)
            late_s = max(late_s, record.ended_s - each.kill.done_s)
            early += record.ended_s < each.kill.requested_s
    yield equal("calls and streams that fail before the kill", early, 0)
    yield equal("the status of those that the kill cuts", sorted(codes), ["UNAVAILABLE"])
    yield at_most_s("seconds from a kill to the last of them", late_s, ERROR_WITHIN_S, ERROR_WHY)
    streams = [each for each in history.streams() if " stream: " in each.label]
    wrong = [each.label for each in streams if each.wrong_at is not None or each.gap]
    yield equal("streams with a byte that is wrong or lost before the kill", wrong, [])


def _judge_next(
    history: History, plan: CrashPlan, rounds: Sequence[CrashRound]
) -> Iterator[Finding]:
    refused = [each for each in history.calls() if " next: " in each.label and each.code != "OK"]
    got = ", ".join(f"{each.label}: {each.code} {each.detail}" for each in refused[:3])
    yield holds("the next server starts jobs at once", kept=not refused, got=got or "OK", want="OK")
    texts = {each.text for each in history.streams() if each.label.endswith(" next: output")}
    yield equal("and their output is right", texts, {"works\n"})
    seconds = [each.recovered_s for each in rounds]
    why = (
        f"median {statistics.median(seconds):.1f} s, {plan.clean_start_s:.1f} s without a kill "
        f"before; {RECOVERS_WHY}"
    )
    promise = f"seconds from the next launch to its first job, worst of {len(seconds)}"
    yield at_most_s(promise, max(seconds), plan.recovers_within_s, why)


def _judge_floors(history: History, rounds: Sequence[CrashRound]) -> Iterator[Finding]:
    """The kills came while there was something to cut."""
    cut = [record for each in rounds for record in _cut_of(history, each)]
    starts = sum(record.label.endswith("call: start") for record in cut)
    streams = sum(isinstance(record, Stream) for record in cut)
    yield floor("starts that a kill cut", starts, len(rounds) / 2)
    yield floor("streams that a kill cut", streams, len(rounds) / 2)
    left = (sum(each.kill.cgroups for each in rounds), sum(each.kill.processes for each in rounds))
    yield floor("cgroups and processes that killed servers left", min(left), len(rounds))


CRASHES: Final = Check(
    "limits.crashes",
    "A server killed at any moment under load leaves nothing behind after the next start, which "
    "works at once; its clients get UNAVAILABLE.",
    run_crashes,
    judge_crashes,
    needs=frozenset(
        {Need.CGROUPS, Need.HOST, Need.LAUNCH, Need.PYTHON, Need.JOB_ENVIRONMENT, Need.GRACE}
    ),
    cites=("132", "45", "R-CGROUP-4"),
    time_limit_s=240,
    round_limit_s=30,
    alone=True,
    ours=True,
)

CHECKS: Final = (CRASHES,)
