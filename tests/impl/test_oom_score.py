"""The OOM score of a job: the server's, but never its protection.

The kernel's files are plain ones here: only a privileged process may have a negative score. The
check `lifecycle.oom-score` tests real processes.
"""

import itertools
import logging
from pathlib import Path
from typing import Final

import pytest

from worker_service import oom_score
from worker_service.cgroup import Cgroup
from worker_service.oom_score import MAX_TURNS, make_killable

PROTECTED: Final = "-9"  # of two bytes, as "0\n" is, which then replaces all of the file


class Processes(Cgroup):
    """A cgroup of processes that exist as files only, and a fork bomb if `forks` is set."""

    def __init__(self, proc: Path) -> None:
        super().__init__(proc / "cgroup")
        self.forks = False
        self._proc = proc
        self._pids = itertools.count(100)
        self.path.mkdir()

    def fork(self, score: str = PROTECTED) -> int:
        """Add a process that inherits the server's score."""
        pid = next(self._pids)
        (self._proc / str(pid)).mkdir()
        (self._proc / f"{pid}/oom_score_adj").write_text(score)
        with (self.path / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")
        return pid

    def processes(self) -> list[int]:
        if self.forks:
            self.fork()
        return super().processes()

    def scores(self) -> list[int]:
        """Return the score of each process."""
        files = sorted(self._proc.glob("*/oom_score_adj"))
        return [int(file.read_text()) for file in files]


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.setattr(oom_score, "_PROC", tmp_path)
    return Processes(tmp_path)


def test_processes_forked_before_the_adjustment_are_adjusted(
    cgroup: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    first = cgroup.fork()
    cgroup.fork()
    cgroup.fork()
    with caplog.at_level(logging.WARNING):
        make_killable(first, cgroup)
    assert cgroup.scores() == [0, 0, 0]
    assert caplog.text == ""


@pytest.mark.parametrize("score", ["0", "1", "500", "1000"])
def test_job_of_an_unprotected_server_keeps_its_score(cgroup: Processes, score: str) -> None:
    make_killable(cgroup.fork(score), cgroup)
    make_killable(cgroup.fork(score), None)
    assert cgroup.scores() == [int(score)] * 2


def test_process_without_a_cgroup_is_adjusted(cgroup: Processes) -> None:
    make_killable(cgroup.fork(), None)
    assert cgroup.scores() == [0]


def test_process_that_has_ended_is_ignored(
    cgroup: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    make_killable(4711, cgroup)
    assert caplog.text == ""


def test_scan_of_a_fork_bomb_is_bounded_and_logged(
    cgroup: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    cgroup.forks = True
    make_killable(cgroup.fork(), cgroup)
    assert cgroup.scores() == [0] * (1 + MAX_TURNS)
    assert "forks faster than its OOM scores can be adjusted" in caplog.text
