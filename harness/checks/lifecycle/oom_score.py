"""The OOM score of a server's jobs: whom the kernel kills first when memory runs out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.judge.promises import assumed, at_least, unseen
from harness.record.history import History, Observation
from harness.record.verdict import Finding

RAISED: Final = 500
PROTECTED: Final = -500
PLANNED: Final = (RAISED, PROTECTED)
# Sets its own score, and becomes the server; a process without CAP_SYS_RESOURCE cannot lower it.
WRAPPER: Final = (
    "sh", "-c", 'echo "$0" >/proc/$$/oom_score_adj; exec "$@"',
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OomScores(Observation):
    """The scores (oom_score_adj) of a server and of its job, whose start was answered.

    Attributes:
        planned: the score planned for the server.
        server: its score; another if the harness lacks the privilege to set it.
        job: of the main process. A server can set it only once the process runs: processes that it
            forks before that keep the server's, if they are in no cgroup.
    """

    planned: int
    server: int
    job: int


def run_oom_score(stage: Stage) -> None:
    """Run a job on a server with a raised score, and on one with a lowered score."""
    for planned in PLANNED:
        wrapper = (*WRAPPER, str(planned))
        with stage.fresh_server(wrapper=wrapper) as server, stage.client(server=server) as client:
            job_pid = client.must_query(client.must_start("sleep", ["60"])).pid
            look = " ".join(f"/proc/{pid}/oom_score_adj" for pid in (server.pid, job_pid))
            server_score, job_score = stage.host.run(f"cat {look}").require("two scores").split()
            stage.record(OomScores(planned, int(server_score), int(job_score)))


def judge_oom_score(history: History) -> Iterator[Finding]:
    """Promise a job's score that is the server's or higher, and never below 0."""
    scores = {each.planned: each for each in history.all(OomScores)}
    yield assumed("two servers were tried", true=len(scores) == len(PLANNED), got=list(scores))
    raised, protected = (scores[planned] for planned in PLANNED)
    what = "the server has a raised score"
    yield assumed(what, true=raised.server == RAISED, got=raised.server)
    promise = "a job is at least as killable as the server"
    yield at_least(promise, raised.job, raised.server, "the kernel prefers the higher score")
    promise = "a job does not inherit the server's protection"
    if protected.server >= 0:
        yield unseen(promise, "the harness lacks CAP_SYS_RESOURCE to protect a server")
    else:
        yield at_least(promise, protected.job, 0)


OOM_SCORE: Final = Check(
    "lifecycle.oom-score",
    "A job is at least as killable by the OOM killer as the server, and never protected from it.",
    run_oom_score,
    judge_oom_score,
    needs=frozenset({Need.LAUNCH, Need.HOST}),
    cites=("102", "43"),
    ours=True,
)

CHECKS: Final = (OOM_SCORE,)
