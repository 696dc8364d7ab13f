"""A lack of descriptors is temporary: no running job is killed, no byte is lost, every job ends."""

import ctypes
import errno
import logging
import os
import subprocess
from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl
from pathlib import Path

import pytest

from tests.support.descriptors import no_descriptor_left, open_descriptors
from tests.support.job import JobRig, require
from worker_service.cgroup import Cgroup
from worker_service.errors import HostExhaustedError
from worker_service.job import DRAIN_MAX_S, KILL_RETRY_S
from worker_service.linux import LIBC, LIBC_AT_ONCE
from worker_service.log import OutputLog
from worker_service.output_memory import OutputMemory
from worker_service.spawn import Command, spawn
from worker_service.tree import CgroupTree


def test_output_of_any_size_is_kept_without_a_descriptor() -> None:
    rig = JobRig()
    in_the_pipe = bytes(range(256)) * 256
    with no_descriptor_left():
        for number in range(20):
            os.write(rig.write_fd, in_the_pipe)
            while rig.log.extent().end_offset < (number + 1) * len(in_the_pipe):
                rig.output_ready()
        os.write(rig.write_fd, b"the rest")
        rig.exit()
        rig.scheduler.fire_after(DRAIN_MAX_S)
    assert rig.job.wait_ended(0)
    assert rig.log.extent().end_offset == 20 * len(in_the_pipe) + len(b"the rest")
    assert rig.tree.kills == 1
    rig.log.reader_at(0).raise_if_output_lost()
    rig.close_output()


def test_full_pipe_is_kept_at_the_end_of_the_drain() -> None:
    rig = JobRig()
    fcntl(rig.write_fd, F_SETPIPE_SZ, 1024 * 1024)
    assert os.write(rig.write_fd, bytes(1024 * 1024)) == 1024 * 1024
    rig.exit()
    rig.scheduler.fire_after(DRAIN_MAX_S)
    assert rig.job.wait_ended(0)
    assert rig.log.extent().end_offset == 1024 * 1024
    rig.close_output()


class RefilledMemory(OutputMemory):
    """Writes more to a pipe whenever output has been read from it."""

    write_fd = -1

    def written(self, log: OutputLog) -> None:
        super().written(log)
        refill = b"more" * 1024
        require(log.held_bytes() < 8 * 1024 * 1024, "the end of a drain is a bounded read")
        os.write(self.write_fd, refill)


def test_end_of_the_drain_takes_no_more_than_the_pipe_holds() -> None:
    """A process that left the tree may write without an end."""
    memory = RefilledMemory(2**40)
    rig = JobRig(memory=memory)
    memory.write_fd = rig.write_fd
    os.write(rig.write_fd, b"first")
    rig.exit()
    rig.scheduler.fire_after(DRAIN_MAX_S)
    assert rig.job.wait_ended(0)
    assert len(b"first") < rig.log.extent().end_offset <= fcntl(rig.write_fd, F_GETPIPE_SZ)
    rig.close_output()


def test_ended_job_holds_no_descriptor() -> None:
    before = open_descriptors()
    rigs = [JobRig() for _ in range(10)]
    for rig in rigs:
        for _ in range(8):  # 512 KiB
            os.write(rig.write_fd, bytes(65536))
            rig.output_ready()
        rig.end_output()
        rig.end_output()
        rig.exit()
        assert rig.job.wait_ended(0)
        assert rig.log.extent().end_offset == 8 * 65536
    assert open_descriptors() == before


def test_failed_kill_is_retried_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    rig = JobRig()
    rig.tree.refuses = True
    rig.job.request_stop(5)
    for tries in (1, 2):
        rig.scheduler.fire(0)
        assert rig.tree.kills == tries
        assert rig.scheduler.timers[-1][1] == KILL_RETRY_S
    assert "job id cannot be killed, will retry" in caplog.text
    assert rig.job.kill_failure == os.strerror(errno.EMFILE)  # which a stop reports
    rig.job.request_stop(0)
    rig.tree.refuses = False
    rig.scheduler.fire(0)
    assert rig.tree.kills == 4
    assert not rig.scheduler.live_timers()
    rig.end_output()
    rig.exit(number=9)
    assert rig.job.wait_ended(0)


@pytest.mark.parametrize("gone", [True, False])
def test_job_ends_although_its_tree_cannot_be_killed(*, gone: bool) -> None:
    rig = JobRig()
    rig.end_output()
    rig.tree.refuses = True
    rig.exit(gone=gone)
    if not gone:
        rig.scheduler.fire_after(DRAIN_MAX_S)
    assert rig.job.wait_ended(0)
    assert not rig.scheduler.live_timers()
    assert not rig.scheduler.watched


def cgroup_of_files(path: Path) -> Cgroup:
    path.mkdir()
    (path / "cgroup.events").write_text("populated 0\n")
    (path / "cgroup.kill").write_text("")
    (path / "memory.events").write_text("oom_kill 1\n")
    return Cgroup(path)


def test_ending_a_job_opens_no_descriptor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = JobRig(tree=CgroupTree(cgroup_of_files(tmp_path / "job")))
    rig.end_output()  # before: it frees the descriptors of the pipe
    with no_descriptor_left(), caplog.at_level(logging.WARNING):
        rig.exit(number=9)
    assert rig.job.wait_ended(0)
    assert (tmp_path / "job" / "cgroup.kill").read_text() == "1"
    assert rig.job.status().oom_killed, "the OOM kill is not reported"
    # The plain files that replace the kernel's keep the directory, which is logged.
    assert "stays until the next start" in caplog.text


def test_cgroup_tree_without_a_descriptor_fails_and_leaves_none_open(tmp_path: Path) -> None:
    cgroup = cgroup_of_files(tmp_path / "job")
    (cgroup.path / "memory.events").unlink()  # the last one that is opened
    before = open_descriptors()
    with pytest.raises(HostExhaustedError, match=r"memory\.events"):
        CgroupTree(cgroup)
    assert open_descriptors() == before


def test_start_whose_pid_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def pidfd_spawn(pidfd: ctypes.c_int, *_: object) -> int:
        children.append(subprocess.Popen(["sleep", "100"]))
        # `byref` shows its object to C only: this is where that object keeps its value.
        ctypes.cast(pidfd, ctypes.POINTER(ctypes.c_int))[0] = os.pidfd_open(children[0].pid)
        return 0

    def pidfd_getpid(_pidfd: int) -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    # glibc 2.39 has them; here, an older one may be used.
    for function in ("posix_spawnattr_setcgroup_np", "posix_spawnattr_setflags"):
        monkeypatch.setattr(LIBC_AT_ONCE, function, lambda *_: 0, raising=False)
    monkeypatch.setattr(LIBC, "pidfd_spawn", pidfd_spawn, raising=False)
    monkeypatch.setattr(LIBC, "pidfd_getpid", pidfd_getpid, raising=False)
    before = open_descriptors()
    with pytest.raises(HostExhaustedError, match="pidfd_getpid: Too many open files; the job was"):
        spawn(Command("true"), 1, Cgroup(tmp_path))
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0].pid, os.WNOHANG)
    children[0].returncode = 0  # reaped above, so it has no status
