"""What a server's restart removes and what it leaves alone; a stop after the job's pid was reused.

A killed server leaves its jobs' cgroups to the next one. Cgroups and processes of others stay.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.limits.host_cgroups import (
    cgroups_of,
    count_sleepers,
    exists,
    host_payload,
    on_host,
    relaunch,
    remove_cgroup,
    root_of,
    start_stranger,
    unique_seconds,
    wait_sleepers,
)
from harness.judge.promises import answered, assumed, equal, floor
from harness.record.history import History, Observation
from harness.record.verdict import BrokenError, Finding, UnsupportedError

_OBSERVED: Final = frozenset({Need.CGROUPS, Need.HOST})
_LAUNCHED: Final = _OBSERVED | {Need.LAUNCH}

LEFT_JOBS: Final = 3


@dataclass(frozen=True, slots=True)
class Leftovers(Observation):
    """What a killed server left, before and after the next start.

    Attributes:
        exit_code: of the first server, negative: the signal; None: it still ran.
        cgroups_before: of its jobs, after its end.
        cgroups_after, processes_after: of its jobs, after the next start.
        root_is_left: whether the next server's root exists after its end.
    """

    exit_code: int | None
    cgroups_before: int
    cgroups_after: int
    processes_after: int
    root_is_left: bool


def _run_leftovers(stage: Stage) -> None:
    seconds = unique_seconds()
    with stage.fresh_server() as first:
        with stage.client(server=first) as client:
            jobs = [
                client.must_start("sh", ["-c", f"setsid sleep {seconds} & exec sleep {seconds}"])
                for _ in range(LEFT_JOBS)
            ]
            wait_sleepers(stage, seconds, 2 * LEFT_JOBS)
            directories = cgroups_of(stage, client, jobs)
        first.signal(signal.SIGKILL)
        exit_code = first.wait_exit(60)
        before = _count(stage, directories)
        root = directories[0].rpartition("/")[0]
        with relaunch(stage, root) as second:
            after, processes = _count(stage, directories), count_sleepers(stage, seconds)
            with stage.client(server=second) as client:
                client.start("true", label="start on the second")
            second.signal(signal.SIGTERM)
            second.wait_exit(60)
            stage.record(Leftovers(exit_code, before, after, processes, exists(stage, root)))


def _count(stage: Stage, directories: Sequence[str]) -> int:
    return sum(exists(stage, directory) for directory in directories)


def _judge_leftovers(history: History) -> Iterator[Finding]:
    left = history.the(Leftovers)
    was_killed = left.exit_code == -signal.SIGKILL
    yield assumed("the first server was killed", true=was_killed, got=left.exit_code)
    yield floor("cgroups that it left", left.cgroups_before, LEFT_JOBS)
    promise = "the next start removes cgroups that a killed server left"
    yield equal(promise, left.cgroups_after, 0)
    yield equal("and ends the processes in them", left.processes_after, 0)
    yield answered("and starts jobs", history.call("start on the second"))
    yield equal("the root of a server that has ended is left", left.root_is_left, want=False)


LEFTOVERS: Final = Check(
    "limits.leftovers",
    "The next start ends the jobs that a killed server left running, and removes their cgroups.",
    _run_leftovers,
    _judge_leftovers,
    needs=_LAUNCHED,
    cites=("45", "R-CGROUP-4"),
    ours=True,
)


@dataclass(frozen=True, slots=True)
class ForeignCgroup(Observation):
    """A stranger's cgroup below a server's root: its processes, and whether it is left.

    Counted after the next server's start, and after that server's end.
    """

    processes_after_start: int
    processes_after_end: int
    is_left: bool


def _run_foreign_cgroup(stage: Stage) -> None:
    seconds = unique_seconds()
    with stage.fresh_server() as first:
        with stage.client(server=first) as client:
            root = root_of(stage, client)
        foreign = f"{root}/foreign"
        on_host(stage, f"mkdir {foreign}")
        start_stranger(stage, foreign, seconds)
        first.signal(signal.SIGKILL)
        first.wait_exit(60)
        with (
            relaunch(stage, root) as second,
            stage.client(server=second) as client,
        ):
            after_start = count_sleepers(stage, seconds)
            client.start("true", label="start on the second")
        after_end = count_sleepers(stage, seconds)
        stage.record(ForeignCgroup(after_start, after_end, exists(stage, foreign)))
        remove_cgroup(stage, foreign)


def _judge_foreign_cgroup(history: History) -> Iterator[Finding]:
    foreign = history.the(ForeignCgroup)
    promise = "a start leaves a cgroup alone that belongs to no job"
    yield equal(promise, foreign.processes_after_start, 1)
    yield answered("and starts jobs beside it", history.call("start on the second"))
    yield equal("so does the server's end", foreign.processes_after_end, 1)
    yield equal("the cgroup is left", foreign.is_left, want=True)


FOREIGN_CGROUP: Final = Check(
    "limits.foreign-cgroup",
    "A cgroup below the root that belongs to no job is left alone, with its processes.",
    _run_foreign_cgroup,
    _judge_foreign_cgroup,
    needs=_LAUNCHED,
    cites=("60",),
    ours=True,
)


@dataclass(frozen=True, slots=True)
class ReusedPid(Observation):
    """The process that has an ended job's pid, the wanted one, and how many live after a stop."""

    command: str
    wanted: str
    alive: int


def _run_pid_reuse(stage: Stage) -> None:
    seconds = unique_seconds()
    if stage.server.pid is None:
        raise UnsupportedError("access to its machine other than by its own jobs")
    with stage.client() as client:
        job_id = client.must_start("true")
        client.output(job_id)
        pid = client.must_query(job_id, label="final").pid
        result = on_host(stage, host_payload("pid_taker", str(pid), seconds))
        if result != "taken\n":
            raise BrokenError(f"no process could get the pid {pid} of an ended job: {result}")
        wait_sleepers(stage, seconds, 1)
        command = on_host(stage, f"tr '\\0' ' ' < /proc/{pid}/cmdline").strip()
        client.stop(job_id, label="stop at once", grace_s=0)
        client.stop(job_id, label="stop")
        client.query(job_id, label="query after")
        stage.record(ReusedPid(command, f"sleep {seconds}", count_sleepers(stage, seconds)))
        on_host(stage, f"pkill -KILL -xf 'sleep {seconds}' || true")


def _judge_pid_reuse(history: History) -> Iterator[Finding]:
    stranger = history.the(ReusedPid)
    reused = stranger.command == stranger.wanted
    yield assumed("a stranger has the ended job's pid", true=reused, got=stranger.command)
    yield equal("stopping an ended job leaves the stranger alone", stranger.alive, 1)
    yield answered("the server goes on", history.call("query after"))


PID_REUSE: Final = Check(
    "limits.pid-reuse",
    "Stopping an ended job cannot kill a stranger that got its pid.",
    _run_pid_reuse,
    _judge_pid_reuse,
    needs=_OBSERVED | {Need.PYTHON, Need.GRACE, Need.PIDS},
    cites=("47", "R-JOB-3"),
)

CHECKS: Final = (LEFTOVERS, FOREIGN_CGROUP, PID_REUSE)
