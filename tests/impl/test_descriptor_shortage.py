"""A lack of descriptors is temporary: no job is killed by it, no byte is lost, every job ends."""

import logging
import os
from pathlib import Path

import pytest

from tests.support.descriptors import no_descriptor_left, open_descriptors
from tests.support.job import PIDFD, JobRig
from worker_service.cgroup import Cgroup
from worker_service.errors import HostExhaustedError
from worker_service.job import DRAIN_MAX_S, KILL_RETRY_S, OUTPUT_RETRY_S
from worker_service.log import INLINE_MAX_BYTES, OutputLog
from worker_service.spawn import ExitStatus
from worker_service.tree import CgroupTree


def full_inline_log() -> OutputLog:
    """Return a log that needs a descriptor for its next byte."""
    log = OutputLog()
    log.append(b"." * INLINE_MAX_BYTES)
    return log


def test_output_without_a_descriptor_waits_in_its_pipe_and_the_job_lives() -> None:
    rig = JobRig(full_inline_log())
    os.write(rig.write_fd, b"waits")
    with no_descriptor_left():
        for _ in range(3):
            rig.output_ready()
            assert rig.read_fd not in rig.scheduler.watched, "the reactor would spin on the pipe"
            assert rig.scheduler.timers[-1][1] == OUTPUT_RETRY_S
            rig.scheduler.fire(0)
    rig.output_ready()
    assert rig.tree.kills == 0
    rig.end_output()
    rig.exit()
    assert rig.job.wait_ended(0)
    assert rig.log.reader_at(INLINE_MAX_BYTES).read(100).data == b"waits"
    rig.log.raise_failure()


def test_output_that_waits_at_the_exit_is_kept_if_descriptors_return_in_time() -> None:
    rig = JobRig(full_inline_log())
    os.write(rig.write_fd, b"waits")
    rig.close_output()
    rig.process.exit, rig.tree.gone = ExitStatus(0, 0), True
    with no_descriptor_left():
        rig.output_ready()
        rig.scheduler.ready(PIDFD)
    assert not rig.job.wait_ended(0)
    rig.scheduler.fire(0)
    rig.output_ready()
    rig.output_ready()
    assert rig.job.wait_ended(0)
    assert rig.log.reader_at(INLINE_MAX_BYTES).read(100).data == b"waits"
    rig.log.raise_failure()
    assert not rig.scheduler.live_timers()


def test_full_pipe_is_kept_in_memory_if_no_descriptor_returns_in_time() -> None:
    rig = JobRig(full_inline_log())
    in_the_pipe = bytes(range(256)) * 256
    assert os.write(rig.write_fd, in_the_pipe) == len(in_the_pipe)
    with no_descriptor_left():
        rig.output_ready()
        rig.exit()
        rig.scheduler.fire_after(DRAIN_MAX_S)
        assert rig.job.wait_ended(0)
    assert rig.log.reader_at(INLINE_MAX_BYTES).read(10**6).data == in_the_pipe
    rig.log.raise_failure()
    assert not rig.scheduler.live_timers()
    rig.close_output()


def test_failed_kill_is_retried_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    rig = JobRig()
    rig.tree.refuses = True
    rig.job.request_stop(5)
    for tries in (1, 2):
        rig.scheduler.fire(0)
        assert rig.tree.kills == tries
        assert rig.scheduler.timers[-1][1] == KILL_RETRY_S
    assert "job id cannot be killed, will retry" in caplog.text
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
