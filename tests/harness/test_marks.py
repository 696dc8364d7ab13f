"""Processes of jobs are found by their mark, without their output."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from harness.checks.check import Need, Scale, Stage
from harness.checks.common import WAITS, count_marked, mark_of_jobs
from harness.checks.lifecycle.stopped_trees import TREE, TREE_PROCESSES
from harness.drive.identities import make_identities
from harness.record.history import Recorder
from harness.targets.local import LocalTarget

PATIENCE_S: Final = 20.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(tmp_path, sees_host=True)


def make_stage(tmp_path: Path, *, sees_host: bool) -> Stage:
    target = LocalTarget(make_identities(tmp_path), "none", {})
    return Stage(
        target, None, Recorder(),  # type: ignore[arg-type] # no server
        scale=Scale.FULL, seed="s", has=lambda need: need is not Need.HOST or sees_host,
    )  # fmt: skip


@contextmanager
def job(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    words = ["sh", "-c", *arguments]
    output = subprocess.DEVNULL
    with subprocess.Popen(words, stdout=output, start_new_session=True) as process:
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                assert process.returncode is not None


def test_all_processes_of_a_tree_are_counted_and_those_left_are_killed(stage: Stage) -> None:
    with mark_of_jobs(stage) as mark, job(TREE, mark, WAITS) as tree:
        assert count_marked(stage, mark, f"-ge {TREE_PROCESSES}", PATIENCE_S) == TREE_PROCESSES
        tree.kill()
        tree.wait()
        left = count_marked(stage, mark, f"-lt {TREE_PROCESSES}", PATIENCE_S)
        assert left == TREE_PROCESSES - 1
    assert count_marked(stage, mark, "-eq 0", PATIENCE_S) == 0


def test_neither_a_zombie_nor_another_job_nor_the_look_itself_counts(stage: Stage) -> None:
    with mark_of_jobs(stage) as mark, job(WAITS, f"{mark[:-1]}-"), job("exit 3", mark) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert count_marked(stage, mark, "-ge 0", PATIENCE_S) == 0


def test_processes_are_counted_by_their_state(stage: Stage) -> None:
    with mark_of_jobs(stage) as mark, job("kill -STOP $$; :", mark), job(WAITS, mark):
        assert count_marked(stage, mark, "-ge 1", PATIENCE_S, state="T") == 1
        assert count_marked(stage, mark, "-ge 2", PATIENCE_S) == 2


def test_nothing_is_killed_where_the_machine_cannot_be_seen(tmp_path: Path) -> None:
    blind = make_stage(tmp_path, sees_host=False)
    with ExitStack() as stack:
        with mark_of_jobs(blind) as mark:
            process = stack.enter_context(job(WAITS, mark))
        assert process.poll() is None
