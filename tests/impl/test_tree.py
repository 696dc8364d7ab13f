"""Terminating a job's tree: everyone once, nobody else, whatever is forbidden or missing.

Real processes in a directory of plain files: they are no cgroup, so what the kernel says of each
process's cgroup is a file, too. The check `limits.stop-grace` has a real cgroup.
"""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.descriptors import no_descriptor_left
from worker_service import tree
from worker_service.cgroup import Cgroup
from worker_service.spawn import ExitStatus
from worker_service.tree import NOT_PERMITTED, TERMINATE_ROUNDS_MAX, CgroupTree, GroupTree

JOB: Final = "0b5c9d0e-0000-4000-8000-000000000001"
BOTH: Final = [signal.SIGTERM, signal.SIGCONT]


class Main:
    """A main process that records what its group gets."""

    pid = 4711
    pidfd = -1

    def __init__(self) -> None:
        self.got: list[signal.Signals] = []
        self.forbidden = False

    def signal_group(self, signal_number: signal.Signals) -> None:
        self.got.append(signal_number)
        if self.forbidden:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def peek_exit(self) -> ExitStatus | None:
        return None

    def reap(self) -> None:
        """It is no process."""


class Job:
    """A job's cgroup and its processes, none of which exists; a descriptor is -pid."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cgroup = Cgroup(directory / JOB)
        self.proc = directory / "proc"
        self.got: dict[int, list[int]] = {}
        self.forbidden: set[int] = set()
        self.on_signal: Callable[[], object] = lambda: None
        self.cgroup.path.mkdir()
        for name, text in (
            ("cgroup.events", ""), ("cgroup.kill", ""), ("memory.events", ""), ("cgroup.procs", ""),
        ):  # fmt: skip
            (self.cgroup.path / name).write_text(text)
        monkeypatch.setattr(tree, "_PROC", self.proc)
        monkeypatch.setattr(os, "pidfd_open", self._pidfd_open)
        monkeypatch.setattr(signal, "pidfd_send_signal", self._send)
        self.main = Main()
        self.tree = CgroupTree(self.cgroup)
        self.tree.main = self.main

    def add(self, pid: int, below: str = "", says: str | None = None) -> None:
        """Add a process; the kernel says that it is in `says`, by default in the job's cgroup."""
        directory = self.cgroup.path / below
        directory.mkdir(exist_ok=True)
        with (directory / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")
        (self.proc / str(pid)).mkdir(parents=True)
        path = f"/jobworker/{JOB}/{below}" if says is None else says
        (self.proc / f"{pid}/cgroup").write_text(f"1:name=systemd:/x\n0::{path}\n")

    def _pidfd_open(self, pid: int) -> int:
        if not (self.proc / str(pid)).exists():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        read_fd, write_fd = os.pipe()
        os.close(write_fd)
        self.pid_of_descriptor = {read_fd: pid}
        return read_fd

    def _send(self, pidfd: int, number: int) -> None:
        pid = self.pid_of_descriptor[pidfd]
        self.got.setdefault(pid, []).append(number)
        self.on_signal()
        if pid in self.forbidden:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    made = Job(tmp_path, monkeypatch)
    yield made
    made.tree.discard()


def test_each_process_of_the_cgroup_and_below_it_is_terminated_once(job: Job) -> None:
    job.add(1)
    job.add(2, "inner")
    job.add(3, "inner/most")
    job.tree.terminate()
    assert job.got == {1: BOTH, 2: BOTH, 3: BOTH}
    assert job.main.got == [], "the main process would get a second SIGTERM"


def test_process_forked_meanwhile_is_terminated(job: Job) -> None:
    job.add(1)
    forks = iter([2, 3])

    def fork() -> None:
        for pid in forks:
            job.add(pid)
            return

    job.on_signal = fork
    job.tree.terminate()
    assert job.got == {1: BOTH, 2: BOTH, 3: BOTH}


def test_fork_bomb_is_given_up_after_some_rounds(job: Job) -> None:
    job.add(1)
    job.on_signal = lambda: job.add(max(job.got) * 2 + len(job.got[max(job.got)]))
    job.tree.terminate()
    assert 1 < len(job.got) <= 2**TERMINATE_ROUNDS_MAX


@pytest.mark.parametrize("says", ["/", "/user.slice", f"/jobworker/{JOB[:-1]}2", f"/x{JOB}", None])
def test_process_that_reuses_a_pid_is_left_alone(job: Job, says: str | None) -> None:
    job.add(1)
    job.add(2, says=says or "")
    if says is None:
        (job.proc / "2/cgroup").unlink()
    job.tree.terminate()
    assert job.got == {1: BOTH}


def test_process_that_has_ended_is_passed_over(job: Job) -> None:
    job.add(1)
    (job.cgroup.path / "cgroup.procs").write_text("7\n1\n0\n")
    job.tree.terminate()
    assert job.got == {1: BOTH}


def test_forbidden_process_keeps_no_other_from_being_terminated(job: Job) -> None:
    for pid in (1, 2, 3):
        job.add(pid)
    job.forbidden = {1}
    with pytest.raises(PermissionError, match="CAP_KILL") as caught:
        job.tree.terminate()
    assert caught.value.strerror == NOT_PERMITTED
    assert job.got == {1: BOTH, 2: BOTH, 3: BOTH}


def test_without_a_descriptor_the_main_process_and_its_group_are_terminated(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.add(1)
    with no_descriptor_left(), caplog.at_level(logging.WARNING):
        job.tree.terminate()
    assert job.main.got == BOTH
    assert "only the main process's group gets SIGTERM" in caplog.text


def test_removed_cgroup_has_nobody_to_terminate(job: Job) -> None:
    for file in job.cgroup.path.iterdir():
        file.unlink()
    job.cgroup.path.rmdir()
    job.tree.terminate()
    assert job.main.got == []


def test_without_a_cgroup_the_group_is_terminated() -> None:
    group = GroupTree()
    group.main = main = Main()
    group.terminate()
    assert main.got == BOTH
    main.forbidden = True
    with pytest.raises(PermissionError, match="CAP_KILL"):
        group.terminate()
    assert main.got == BOTH + BOTH, "a forbidden SIGTERM keeps the paused from being continued"
    with pytest.raises(PermissionError, match="CAP_KILL"):
        group.kill()


def test_real_process_that_is_paused_acts_on_its_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_PROC", tmp_path)
    cgroup = Cgroup(tmp_path / JOB)
    cgroup.path.mkdir()
    for file in ("cgroup.events", "cgroup.kill", "memory.events"):
        (cgroup.path / file).write_text("")
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        (cgroup.path / "cgroup.procs").write_text(f"{process.pid}\n")
        (tmp_path / str(process.pid)).mkdir()
        (tmp_path / f"{process.pid}/cgroup").write_text(f"0::/{JOB}\n")
        made = CgroupTree(cgroup)
        made.terminate()
        assert process.wait(20) == 7
        made.discard()


def test_cgroup_of_a_process_is_read_from_the_kernel() -> None:
    kernel = Path("/proc/self/cgroup").read_text()
    assert tree._cgroup_of(os.getpid()) in [*kernel.splitlines(), ""]
