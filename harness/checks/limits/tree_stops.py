"""Stops of jobs in a cgroup: it reaches processes that no signal to a process group can."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.lifecycle.job_end import JobEnd, end_of
from harness.checks.lifecycle.stopping import IGNORES_TERM, KILL_SLACK_S
from harness.checks.lifecycle.tree_grace import GRACE_S, judge_grace, stop_tree
from harness.drive.receiver import StreamPlan
from harness.judge.promises import answered, assumed, at_least, at_most_s, equal
from harness.record.history import History, Observation
from harness.record.verdict import Finding


def run_tree_grace(stage: Stage) -> None:
    """Stop a job of workers, of which one has a session of its own and one is paused."""
    with stage.client() as client:
        stop_tree(stage, client, ("handles", "session", "paused"), GRACE_S)


TREE_GRACE: Final = Check(
    "limits.tree-grace",
    "A stop gives every process in a job's cgroup one SIGTERM and the grace period, also those in "
    "sessions of their own.",
    run_tree_grace,
    judge_grace,
    needs=frozenset({Need.PYTHON, Need.GRACE, Need.OFFSETS, Need.CGROUPS}),
    cites=("34", "100", "R-JOB-3"),
    time_limit_s=60,
)


STOP_GRACE_S: Final = 1.0
CAP_KILL: Final = 1 << 5  # capabilities(7), linux/capability.h
WITHOUT_CAP_KILL: Final = ("setpriv", "--inh-caps=-kill", "--bounding-set=-kill")
NOBODY: Final = 65534
OTHER_USER: Final = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@dataclass(frozen=True, slots=True)
class OtherUsersJob(Observation):
    """A job that the server is not allowed to signal.

    Attributes:
        server_capabilities: of the server: bit N is capability N (proc(5), CapEff).
        job_uid: of the job's main process.
        left: how many of the job's processes were left after the stop.
    """

    server_capabilities: int
    job_uid: int
    left: int


def run_other_user(stage: Stage) -> None:
    """Stop a job that has become another user's, on a server without CAP_KILL."""
    with (
        stage.fresh_server(wrapper=WITHOUT_CAP_KILL) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("setpriv", [*OTHER_USER, "sh", "-c", IGNORES_TERM])
        client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")
        pid = client.must_query(job_id).pid
        look = (
            f"sed -n 's/^CapEff:\\s*//p' /proc/{server.pid}/status; "
            f"sed -n 's/^Uid:\\s*\\([0-9]*\\).*/\\1/p' /proc/{pid}/status"
        )
        capabilities, uid = stage.host.run(look).require("a server and its job").split()
        client.stop(job_id, label="stop", grace_s=STOP_GRACE_S)
        client.query(job_id, label="after")
        left = int(stage.host.run(f"ls -d /proc/{pid} 2>/dev/null | wc -l").stdout)
        stage.record(OtherUsersJob(int(capabilities, 16), int(uid), left))


def judge_other_user(history: History) -> Iterator[Finding]:
    """It is killed by its cgroup at the end of the grace period."""
    seen = history.the(OtherUsersJob)
    lacks, capabilities = not seen.server_capabilities & CAP_KILL, f"{seen.server_capabilities:x}"
    yield assumed("the server lacks CAP_KILL", true=lacks, got=capabilities)
    yield assumed("the job is another user's", true=seen.job_uid == NOBODY, got=seen.job_uid)
    stop = history.call("stop")
    yield answered("a job that the server is not allowed to signal is stopped", stop)
    yield equal("by its cgroup", end_of(history.call("after")), JobEnd("signaled", signal=9))
    took_s = stop.ended_s - stop.started_s
    yield at_least("seconds until then", took_s, STOP_GRACE_S, "the grace period")
    yield at_most_s("seconds until then", took_s, STOP_GRACE_S + KILL_SLACK_S)
    yield equal("processes left", seen.left, 0)


OTHER_USER_STOP: Final = Check(
    "limits.other-user",
    "A job of another user, which the server is not allowed to signal, is killed at the end of the "
    "grace period.",
    run_other_user,
    judge_other_user,
    needs=frozenset({Need.LAUNCH, Need.HOST, Need.GUEST, Need.CGROUPS, Need.GRACE}),
    cites=("101",),
    time_limit_s=90,
)

CHECKS: Final = (TREE_GRACE, OTHER_USER_STOP)
