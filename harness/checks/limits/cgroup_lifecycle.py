"""Cgroups from birth to removal: born inside, ended as a whole, nothing left, strangers spared."""

import json
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.limits.host_cgroups import (
    CGROUP_MOUNT,
    cgroup_of,
    cgroups_of,
    host_path,
    host_payload,
    is_there,
    launched_again,
    on_host,
    remove_cgroup,
    root_of,
    sleepers,
    sleeping,
    subdirectories,
    wait_ready,
    wait_sleepers,
)
from harness.host.clock import poll_until
from harness.judge.promises import answered, assumed, at_most, equal, floor
from harness.record.history import History, Json
from harness.record.verdict import BrokenError, Finding, UnsupportedError

BORN: Final = 50
BORN_AT_ONCE: Final = 10
WATCH_TIMEOUT_S: Final = 120.0
CANNOT_WATCH: Final = 3  # the exit code of the payload `cgroup_watcher`
WATCHED_JOBS: Final = 20
SHORT_JOBS: Final = 1000
SHORT_AT_ONCE: Final = 8
EXIT_BOUND_S: Final = 5.0
EXIT_WHY: Final = "milliseconds on a quiet machine; an emulated one may be at something else"
STOP_BOUND_S: Final = 10.0
STOP_WHY: Final = "kselftest's bound for the end of a tree of cgroups that is killed"


def _run_born_inside(stage: Stage) -> None:
    with stage.client() as client, ThreadPoolExecutor(BORN_AT_ONCE) as pool:

        def run(number: int) -> None:
            job_id = client.must_start("cat", ["/proc/self/cgroup"])
            stage.fact(f"born {number}", [job_id, client.output(job_id)])

        list(pool.map(run, range(BORN)))


def _judge_born_inside(history: History) -> Iterator[Finding]:
    facts = history.facts("born ")
    yield floor("jobs that told their cgroup", len(facts), BORN)
    strays = [
        fact.value
        for fact in facts
        if not (isinstance(fact.value, list) and _is_inside(*map(str, fact.value)))
    ]
    yield equal("a job's first program finds itself in the job's own cgroup", strays, [])


def _is_inside(job_id: str, told: str) -> bool:
    return told.startswith("0::/") and job_id in told.strip().rpartition("/")[2]


def _run_unmoved(stage: Stage) -> None:
    ready, stop = host_path("ready"), host_path("stop")
    plan = {"mount": CGROUP_MOUNT, "ready": ready, "stop": stop, "seconds": WATCH_TIMEOUT_S}
    command = host_payload("cgroup_watcher", json.dumps(plan))
    with stage.client() as client, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(stage.host.run, command, 2 * WATCH_TIMEOUT_S)
        poll_until(
            lambda: True if watching.done() or is_there(stage, ready) else None,
            WATCH_TIMEOUT_S,
            "the watch of the cgroup file system",
        )
        if watching.done() and watching.result().exit_code == CANNOT_WATCH:
            raise UnsupportedError("a way to watch its cgroup file system (fanotify, root)")
        stage.fact("canary", _move_a_stranger(stage))
        seconds = sleeping()
        with ThreadPoolExecutor(5) as starters:
            jobs = list(
                starters.map(lambda _: client.must_start("sleep", [seconds]), range(WATCHED_JOBS))
            )
        cgroups: list[Json] = list(cgroups_of(stage, client, jobs))
        stage.fact("cgroups", cgroups)
        on_host(stage, f"touch {stop}")
        written: list[Json] = json.loads(watching.result().require("the watch"))
        stage.fact("written", written)
        on_host(stage, f"rm -f {ready} {stop}")
        for job_id in jobs:
            client.stop(job_id)


def _move_a_stranger(stage: Stage) -> str:
    """Move a process by writing its pid, which the watch must see; return the file."""
    path = f"{CGROUP_MOUNT}/jobworker-canary-{secrets.token_hex(6)}"
    on_host(
        stage,
        f"mkdir {path} && sh -c 'echo $$ > {path}/cgroup.procs' && "
        f"until rmdir {path}; do sleep 0.1; done",
    )
    return path


def _judge_unmoved(history: History) -> Iterator[Finding]:
    moves = [
        path.removesuffix(" (deleted)")
        for path in _texts(history, "written")
        if path.removesuffix(" (deleted)").endswith(("/cgroup.procs", "/cgroup.threads"))
    ]
    canary = str(history.fact("canary"))
    seen = any(path.startswith(canary) for path in moves)
    yield assumed("the watch sees a process being moved", true=seen, got=moves)
    cgroups = _texts(history, "cgroups")
    yield floor("jobs that were watched", len(cgroups), WATCHED_JOBS)
    # Others on the host may move processes of their own: what counts is the jobs' root.
    roots = tuple({path.rpartition("/")[0] + "/" for path in cgroups})
    jobs = sorted({path for path in moves if path.startswith(roots)})
    yield equal("no process is moved into its cgroup: it is born there", jobs, [])


def _texts(history: History, label: str) -> list[str]:
    value = history.fact(label)
    return [str(each) for each in value] if isinstance(value, list) else []


def _run_daemons_stop(stage: Stage) -> None:
    seconds = sleeping()
    script = (
        f"for i in 1 2 3 4 5 6; do setsid sh -c 'setsid sleep {seconds} & sleep {seconds}' & done; "
        "wait"
    )
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        wait_sleepers(stage, seconds, 12)
        client.stop(job_id, label="stop", grace_s=None)
        stage.fact("left", sleepers(stage, seconds))
        client.query(job_id, label="final")


def _judge_daemons_stop(history: History) -> Iterator[Finding]:
    stop = history.call("stop")
    yield answered("a job with daemons stops", stop)
    yield at_most("within a time, in s", stop.ended_s - stop.started_s, STOP_BOUND_S, STOP_WHY)
    yield equal("its daemons, with sessions of their own, are gone", history.fact("left"), 0)


def _run_daemons_exit(stage: Stage) -> None:
    seconds = sleeping()
    # setsid twice and a double fork, with the job's output held open: a daemon by the book.
    script = (
        f"setsid sh -c 'setsid sleep {seconds} &' ; setsid sleep {seconds} & echo started; exit 3"
    )
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        client.output(job_id)
        client.must_query(job_id, label="final")
        stage.fact("left", sleepers(stage, seconds))


def _judge_daemons_exit(history: History) -> Iterator[Finding]:
    stream = history.stream("output")
    final = history.call("final").response
    yield equal("its output is there", stream.text, "started\n")
    yield equal(
        "its exit code is told", f"{final.get('status')} {final.get('exit_code')}", "exited 3"
    )
    after_s = stream.ended_s - (stream.last_byte_s or stream.started_s)
    yield at_most("its end is seen at once, in s", after_s, EXIT_BOUND_S, EXIT_WHY)
    yield equal("daemons that it left end with it", history.fact("left"), 0)


def _run_sub_cgroups(stage: Stage) -> None:
    script = (
        f"cd {CGROUP_MOUNT}$(cut -d: -f3 /proc/self/cgroup) && mkdir -p sub/subsub && "
        "echo $$ > sub/subsub/cgroup.procs && echo made && exec sleep 1000"
    )
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", script])
        wait_ready(client, job_id)
        directory = cgroup_of(stage, client, job_id)
        stage.fact("made", directory.endswith("/sub/subsub"))
        client.stop(job_id, label="stop")
        own = directory.removesuffix("/sub/subsub")
        stage.fact("is there", is_there(stage, own))


def _judge_sub_cgroups(history: History) -> Iterator[Finding]:
    yield assumed("the job made cgroups", true=history.fact("made") is True, got="none")
    yield answered("such a job stops", history.call("stop"))
    yield equal("its cgroup is gone with all below it", history.fact("is there"), want=False)


def _run_short_jobs(stage: Stage) -> None:
    with stage.client() as client:
        root = root_of(stage, client)

        def run(_: int) -> str:
            job_id = client.must_start("true")
            client.output(job_id)
            return job_id

        with ThreadPoolExecutor(SHORT_AT_ONCE) as pool:
            jobs = set(pool.map(run, range(SHORT_JOBS)))
        left = [name for name in subdirectories(stage, root) if name in jobs]
    stage.fact("jobs", len(jobs))
    stage.fact("left", len(left))


def _judge_short_jobs(history: History) -> Iterator[Finding]:
    yield floor("short jobs that ran to their end", history.number("jobs"), SHORT_JOBS)
    yield equal("cgroups that they left", history.number("left"), 0)


def _run_leftovers(stage: Stage) -> None:
    seconds = sleeping()
    with stage.fresh_server() as first:
        with stage.client(server=first) as client:
            jobs = [
                client.must_start("sh", ["-c", f"setsid sleep {seconds} & exec sleep {seconds}"])
                for _ in range(3)
            ]
            wait_sleepers(stage, seconds, 6)
            directories = cgroups_of(stage, client, jobs)
        first.signal(signal.SIGKILL)
        stage.fact("first ended", first.wait_exit(60))
        stage.fact("left by the first", _count(stage, directories))
        with launched_again(stage, directories[0].rpartition("/")[0]) as second:
            stage.fact("left after the next start", _count(stage, directories))
            stage.fact("processes", sleepers(stage, seconds))
            with stage.client(server=second) as client:
                client.start("true", label="start on the second")


def _count(stage: Stage, directories: list[str]) -> int:
    return sum(is_there(stage, directory) for directory in directories)


def _judge_leftovers(history: History) -> Iterator[Finding]:
    yield assumed(
        "the first server was killed",
        true=history.fact("first ended") == -signal.SIGKILL,
        got=history.fact("first ended"),
    )
    yield floor("cgroups that it left", history.number("left by the first"), 3)
    yield equal(
        "the next start removes cgroups that a killed server left",
        history.fact("left after the next start"),
        0,
    )
    yield equal("and ends the processes in them", history.fact("processes"), 0)
    yield answered("and starts jobs", history.call("start on the second"))


def _run_foreign(stage: Stage) -> None:
    seconds = sleeping()
    with stage.fresh_server() as first:
        with stage.client(server=first) as client:
            root = root_of(stage, client)
        foreign = f"{root}/foreign"
        stranger = f"echo $$ > {foreign}/cgroup.procs; exec sleep {seconds}"
        on_host(
            stage,
            f"mkdir {foreign} && setsid -f sh -c '{stranger}' < /dev/null > /dev/null 2>&1",
        )
        wait_sleepers(stage, seconds, 1)
        first.signal(signal.SIGKILL)
        first.wait_exit(60)
        with (
            launched_again(stage, root) as second,
            stage.client(server=second) as client,
        ):
            stage.fact("after the next start", sleepers(stage, seconds))
            client.start("true", label="start on the second")
        stage.fact("after its end", sleepers(stage, seconds))
        stage.fact("is there", is_there(stage, foreign))
        remove_cgroup(stage, foreign)


def _judge_foreign(history: History) -> Iterator[Finding]:
    yield equal(
        "a start leaves a cgroup alone that is no job's", history.fact("after the next start"), 1
    )
    yield answered("and starts jobs beside it", history.call("start on the second"))
    yield equal("so does the server's end", history.fact("after its end"), 1)
    yield equal("the cgroup is still there", history.fact("is there"), want=True)


def _run_pid_reuse(stage: Stage) -> None:
    seconds = sleeping()
    if stage.server.pid is None:
        raise UnsupportedError("a way into its machine beside its own jobs")
    with stage.client() as client:
        job_id = client.must_start("true")
        client.output(job_id)
        pid = client.must_query(job_id, label="final").pid
        told = on_host(stage, host_payload("pid_taker", str(pid), seconds))
        if told != "taken\n":
            raise BrokenError(f"no process could be given the pid {pid} of an ended job: {told}")
        wait_sleepers(stage, seconds, 1)
        stage.fact("stranger", on_host(stage, f"tr '\\0' ' ' < /proc/{pid}/cmdline").strip())
        stage.fact("wanted stranger", f"sleep {seconds}")
        client.stop(job_id, label="stop at once", grace_s=0)
        client.stop(job_id, label="stop")
        client.query(job_id, label="query after")
        stage.fact("alive", sleepers(stage, seconds))
        on_host(stage, f"pkill -KILL -xf 'sleep {seconds}' || true")


def _judge_pid_reuse(history: History) -> Iterator[Finding]:
    stranger = history.fact("stranger")
    yield assumed(
        "a stranger has the ended job's pid",
        true=stranger == history.fact("wanted stranger"),
        got=stranger,
    )
    yield equal("stopping an ended job leaves the stranger alone", history.fact("alive"), 1)
    yield answered("the server goes on", history.call("query after"))


_SEEN: Final = frozenset({Need.CGROUPS, Need.HOST})

CHECKS: Final = (
    Check(
        name="limits.born-inside",
        guarantee="A job is in its own cgroup when its first program looks, also many at once.",
        run=_run_born_inside,
        judge=_judge_born_inside,
        needs=frozenset({Need.CGROUPS}),
        cites=("55", "R-CGROUP-3"),
    ),
    Check(
        name="limits.never-moved",
        guarantee="No process is moved into its cgroup: nobody writes to cgroup.procs.",
        run=_run_unmoved,
        judge=_judge_unmoved,
        needs=_SEEN | {Need.PYTHON},
        cites=("55", "R-CGROUP-3"),
        alone=True,
    ),
    Check(
        name="limits.daemons-at-stop",
        guarantee="Stop ends the whole tree, daemons with sessions of their own included.",
        run=_run_daemons_stop,
        judge=_judge_daemons_stop,
        needs=_SEEN,
        cites=("34", "R-JOB-3"),
    ),
    Check(
        name="limits.daemons-at-exit",
        guarantee="A daemon that holds the output neither delays a job's end nor outlives it.",
        run=_run_daemons_exit,
        judge=_judge_daemons_exit,
        needs=_SEEN,
        cites=("33", "R-JOB-3"),
    ),
    Check(
        name="limits.sub-cgroups",
        guarantee="Cgroups that a job makes inside its own are removed with it.",
        run=_run_sub_cgroups,
        judge=_judge_sub_cgroups,
        needs=_SEEN,
        cites=("46", "R-CGROUP-4"),
    ),
    Check(
        name="limits.thousand-jobs",
        guarantee="1,000 short jobs leave no cgroup.",
        run=_run_short_jobs,
        judge=_judge_short_jobs,
        needs=_SEEN,
        cites=("59", "R-CGROUP-4"),
        time_limit_s=120,
        alone=True,
    ),
    Check(
        name="limits.leftovers",
        guarantee="What a killed server left running is ended and removed by the next start.",
        run=_run_leftovers,
        judge=_judge_leftovers,
        needs=_SEEN | {Need.LAUNCH},
        cites=("45", "R-CGROUP-4"),
        time_limit_s=120,
    ),
    Check(
        name="limits.foreign-cgroup",
        guarantee="A cgroup below the root that is no job's is left alone, with its processes.",
        run=_run_foreign,
        judge=_judge_foreign,
        needs=_SEEN | {Need.LAUNCH},
        cites=("60",),
        time_limit_s=120,
    ),
    Check(
        name="limits.pid-reuse",
        guarantee="Stopping an ended job cannot hit a stranger that was given its pid.",
        run=_run_pid_reuse,
        judge=_judge_pid_reuse,
        needs=_SEEN | {Need.PYTHON, Need.GRACE},
        cites=("47", "R-JOB-3"),
    ),
)
