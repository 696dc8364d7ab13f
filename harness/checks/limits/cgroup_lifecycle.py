"""Cgroups from creation to removal: jobs start inside, end as a whole, and leave nothing behind."""

import json
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec

from harness.checks.check import Check, Need, Stage
from harness.checks.lifecycle.job_end import JobEnd, end_of, ends_as
from harness.checks.limits.host_cgroups import (
    cgroup_of,
    cgroups_of,
    count_sleepers,
    exists,
    host_path,
    host_payload,
    on_host,
    root_of,
    subdirectories,
    unique_seconds,
    wait_ready,
    wait_sleepers,
)
from harness.host.clock import poll_until
from harness.judge.promises import answered, assumed, at_most_s, equal, floor
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding, UnsupportedError
from harness.targets.launching import CGROUP_MOUNT

_OBSERVED: Final = frozenset({Need.CGROUPS, Need.HOST})

BORN: Final = 50
BORN_AT_ONCE: Final = 10


@dataclass(frozen=True, slots=True)
class CgroupsFromInside(Observation):
    """For each job's id, the /proc/self/cgroup that its first program read."""

    lines: Mapping[str, str]


def _run_born_inside(stage: Stage) -> None:
    with stage.client() as client, ThreadPoolExecutor(BORN_AT_ONCE) as pool:

        def run(_: int) -> tuple[str, str]:
            job_id = client.must_start("cat", ["/proc/self/cgroup"])
            return job_id, client.output(job_id)

        stage.record(CgroupsFromInside(dict(pool.map(run, range(BORN)))))


def _judge_born_inside(history: History) -> Iterator[Finding]:
    lines = history.the(CgroupsFromInside).lines
    yield floor("jobs that printed their cgroup", len(lines), BORN)
    strays = [job for job in lines.items() if not _is_inside(*job)]
    yield equal("a job's first program finds itself in the job's own cgroup", strays, [])


def _is_inside(job_id: str, line: str) -> bool:
    return line.startswith("0::/") and job_id in line.strip().rpartition("/")[2]


BORN_INSIDE: Final = Check(
    "limits.born-inside",
    "A job is in its own cgroup when its first program looks, also when many start at once.",
    _run_born_inside,
    _judge_born_inside,
    needs=frozenset({Need.CGROUPS}),
    cites=("55", "R-CGROUP-3"),
)


WATCH_TIMEOUT_S: Final = 120.0
CANNOT_WATCH: Final = 3  # the exit code of the payload `cgroup_watcher`
WATCHED_JOBS: Final = 20


@dataclass(frozen=True, slots=True)
class CgroupWrites(Observation):
    """The writes to the cgroup file system while jobs started.

    Attributes:
        canary: a cgroup of the harness, into which it moved a process.
        jobs: the cgroups of the jobs.
        written: paths of the files that were written to.
    """

    canary: str
    jobs: tuple[str, ...]
    written: tuple[str, ...]


def _run_never_moved(stage: Stage) -> None:
    ready, stop = host_path("ready"), host_path("stop")
    plan = {"mount": CGROUP_MOUNT, "ready": ready, "stop": stop, "seconds": WATCH_TIMEOUT_S}
    command = host_payload("cgroup_watcher", json.dumps(plan))
    with stage.client() as client, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(stage.host.run, command, 2 * WATCH_TIMEOUT_S)
        poll_until(
            lambda: True if watching.done() or exists(stage, ready) else None,
            WATCH_TIMEOUT_S,
            "the watch of the cgroup file system",
        )
        if watching.done() and watching.result().exit_code == CANNOT_WATCH:
            raise UnsupportedError("a way to watch its cgroup file system (fanotify, root)")
        canary = _move_canary(stage)
        seconds = unique_seconds()
        with ThreadPoolExecutor(5) as starters:
            jobs = list(
                starters.map(lambda _: client.must_start("sleep", [seconds]), range(WATCHED_JOBS))
            )
        cgroups = cgroups_of(stage, client, jobs)
        on_host(stage, f"touch {stop}")
        written = msgspec.json.decode(watching.result().require("the watch"), type=tuple[str, ...])
        stage.record(CgroupWrites(canary, tuple(cgroups), written))
        on_host(stage, f"rm -f {ready} {stop}")
        for job_id in jobs:
            client.stop(job_id)


def _move_canary(stage: Stage) -> str:
    """Move a process into a cgroup, which the watch must see; return the cgroup."""
    path = f"{CGROUP_MOUNT}/jobworker-canary-{secrets.token_hex(6)}"
    on_host(
        stage,
        f"mkdir {path} && sh -c 'echo $$ > {path}/cgroup.procs' && "
        f"until rmdir {path}; do sleep 0.1; done",
    )
    return path


def _judge_never_moved(history: History) -> Iterator[Finding]:
    writes = history.the(CgroupWrites)
    paths = [path.removesuffix(" (deleted)") for path in writes.written]
    moves = [path for path in paths if path.endswith(("/cgroup.procs", "/cgroup.threads"))]
    seen = any(path.startswith(writes.canary) for path in moves)
    yield assumed("the watch sees a process being moved", true=seen, got=moves)
    yield floor("jobs that were watched", len(writes.jobs), WATCHED_JOBS)
    # Others on the host may move processes of their own: only moves below the jobs' root count.
    roots = tuple({path.rpartition("/")[0] + "/" for path in writes.jobs})
    moved = sorted({path for path in moves if path.startswith(roots)})
    yield equal("no process is moved into its cgroup: it starts there", moved, [])


NEVER_MOVED: Final = Check(
    "limits.never-moved",
    "No process is moved into its cgroup: nothing is written to cgroup.procs.",
    _run_never_moved,
    _judge_never_moved,
    needs=_OBSERVED | {Need.PYTHON},
    cites=("55", "R-CGROUP-3"),
    alone=True,
    ours=True,
)


STOP_BOUND_S: Final = 10.0
STOP_WHY: Final = "kselftest's bound for the end of a tree of cgroups that is killed"


@dataclass(frozen=True, slots=True)
class DaemonsLeft(Observation):
    """How many daemons of a job run after its end."""

    count: int


def _run_daemons_at_stop(stage: Stage) -> None:
    seconds = unique_seconds()
    script = (
        f"for i in 1 2 3 4 5 6; do setsid sh -c 'setsid sleep {seconds} & sleep {seconds}' & done; "
        "wait"
    )
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        wait_sleepers(stage, seconds, 12)
        client.stop(job_id, label="stop", grace_s=None)
        stage.record(DaemonsLeft(count_sleepers(stage, seconds)))
        client.query(job_id, label="final")


def _judge_daemons_at_stop(history: History) -> Iterator[Finding]:
    stop = history.call("stop")
    yield answered("a job with daemons stops", stop)
    yield at_most_s("seconds until it has", stop.ended_s - stop.started_s, STOP_BOUND_S, STOP_WHY)
    left = history.the(DaemonsLeft).count
    yield equal("its daemons, with sessions of their own, are gone", left, 0)


DAEMONS_AT_STOP: Final = Check(
    "limits.daemons-at-stop",
    "A stop ends the whole tree, including daemons with sessions of their own.",
    _run_daemons_at_stop,
    _judge_daemons_at_stop,
    needs=_OBSERVED,
    cites=("34", "R-JOB-3"),
)


EXIT_BOUND_S: Final = 5.0
EXIT_WHY: Final = "milliseconds on a quiet machine; an emulated one may be busy"


def _run_daemons_at_exit(stage: Stage) -> None:
    seconds = unique_seconds()
    # setsid twice and a double fork, with the job's output held open: a textbook daemon.
    script = (
        f"setsid sh -c 'setsid sleep {seconds} &' ; setsid sleep {seconds} & echo started; exit 3"
    )
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        client.output(job_id)
        client.must_query(job_id, label="final")
        stage.record(DaemonsLeft(count_sleepers(stage, seconds)))


def _judge_daemons_at_exit(history: History) -> Iterator[Finding]:
    stream = history.stream("output")
    end, terms = end_of(history.call("final")), terms_of(history)
    yield equal("its output arrives", stream.text, "started\n")
    yield ends_as("its exit code is reported", end, JobEnd("exited", 3), terms)
    after_s = stream.ended_s - (stream.last_byte_s or stream.started_s)
    yield at_most_s("seconds until its end is noticed", after_s, EXIT_BOUND_S, EXIT_WHY)
    left = history.the(DaemonsLeft).count
    yield equal("daemons that it left end with it", left, 0)


DAEMONS_AT_EXIT: Final = Check(
    "limits.daemons-at-exit",
    "A daemon that holds the output neither delays a job's end nor outlives it.",
    _run_daemons_at_exit,
    _judge_daemons_at_exit,
    needs=_OBSERVED,
    cites=("33", "R-JOB-3"),
)


@dataclass(frozen=True, slots=True)
class SubCgroups(Observation):
    """Whether a job made cgroups inside its own; whether its own is gone after its stop."""

    made: bool
    is_gone: bool


def _run_sub_cgroups(stage: Stage) -> None:
    script = (
        f"cd {CGROUP_MOUNT}$(cut -d: -f3 /proc/self/cgroup) && mkdir -p sub/subsub && "
        "echo $$ > sub/subsub/cgroup.procs && echo made && exec sleep 1000"
    )
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        made = directory.endswith("/sub/subsub")
        client.stop(job_id, label="stop")
        own = directory.removesuffix("/sub/subsub")
        stage.record(SubCgroups(made, not exists(stage, own)))


def _judge_sub_cgroups(history: History) -> Iterator[Finding]:
    cgroups = history.the(SubCgroups)
    yield assumed("the job made cgroups", true=cgroups.made, got="none")
    yield answered("such a job stops", history.call("stop"))
    yield equal("its cgroup is gone with all below it", cgroups.is_gone, want=True)


SUB_CGROUPS: Final = Check(
    "limits.sub-cgroups",
    "Cgroups that a job makes inside its own are removed with it.",
    _run_sub_cgroups,
    _judge_sub_cgroups,
    needs=_OBSERVED,
    cites=("46", "R-CGROUP-4"),
)


SHORT_JOBS: Final = 1000
SHORT_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class CgroupsOfShortJobs(Observation):
    """How many short jobs ran to their end, and how many of their cgroups are left."""

    jobs: int
    left: int


def _run_thousand_jobs(stage: Stage) -> None:
    with stage.client() as client:
        root = root_of(stage, client)

        def run(_: int) -> str:
            job_id = client.must_start("true")
            client.output(job_id)
            return job_id

        with ThreadPoolExecutor(SHORT_AT_ONCE) as pool:
            jobs = set(pool.map(run, range(SHORT_JOBS)))
        left = [name for name in subdirectories(stage, root) if name in jobs]
    stage.record(CgroupsOfShortJobs(len(jobs), len(left)))


def _judge_thousand_jobs(history: History) -> Iterator[Finding]:
    seen = history.the(CgroupsOfShortJobs)
    yield floor("short jobs that ran to their end", seen.jobs, SHORT_JOBS)
    yield equal("cgroups that they left", seen.left, 0)


THOUSAND_JOBS: Final = Check(
    "limits.thousand-jobs",
    "1,000 short jobs leave no cgroup.",
    _run_thousand_jobs,
    _judge_thousand_jobs,
    needs=_OBSERVED,
    cites=("59", "R-CGROUP-4"),
    alone=True,
)

CHECKS: Final = (
    BORN_INSIDE,
    NEVER_MOVED,
    DAEMONS_AT_STOP,
    DAEMONS_AT_EXIT,
    SUB_CGROUPS,
    THOUSAND_JOBS,
)
