"""A lack of descriptors passes: no job dies of it, no byte is lost, and every job ends."""

import logging
import os
from pathlib import Path

import pytest

from tests.impl.test_cgroup import no_descriptor_left
from tests.impl.test_job import PIDFD, make
from worker_service.cgroup import Cgroup
from worker_service.errors import HostExhaustedError
from worker_service.job import DRAIN_MAX_S, KILL_RETRY_S, OUTPUT_RETRY_S, CgroupTree
from worker_service.log import INLINE_MAX_BYTES, OutputLog
from worker_service.spawn import ExitStatus


def outgrown() -> OutputLog:
    """Return a log that needs a descriptor for its next byte."""
    log = OutputLog()
    log.append(b"." * INLINE_MAX_BYTES)
    return log


def test_output_that_no_descriptor_is_left_for_waits_in_its_pipe_and_the_job_lives() -> None:
    log = outgrown()
    job, scheduler, process, tree, read_fd, write_fd = make(log)
    os.write(write_fd, b"waits")
    with no_descriptor_left():
        for _ in range(3):
            scheduler.ready(read_fd)
            assert read_fd not in scheduler.watched, "the pipe would be asked again at once"
            assert scheduler.timers[-1][1] == OUTPUT_RETRY_S
            scheduler.fire(0)
    scheduler.ready(read_fd)
    assert tree.kills == 0
    os.close(write_fd)
    scheduler.ready(read_fd)
    process.exit, tree.gone = ExitStatus(0, 0), True
    scheduler.ready(PIDFD)
    assert job.wait_ended(0)
    assert log.reader_at(INLINE_MAX_BYTES).read(100).data == b"waits"
    log.raise_failure()


def test_output_that_waits_at_the_exit_is_kept_when_descriptors_come_back_in_time() -> None:
    log = outgrown()
    job, scheduler, process, tree, read_fd, write_fd = make(log)
    os.write(write_fd, b"waits")
    os.close(write_fd)
    process.exit, tree.gone = ExitStatus(0, 0), True
    with no_descriptor_left():
        scheduler.ready(read_fd)
        scheduler.ready(PIDFD)
    assert not job.wait_ended(0)
    scheduler.fire(0)
    scheduler.ready(read_fd)
    scheduler.ready(read_fd)
    assert job.wait_ended(0)
    assert log.reader_at(INLINE_MAX_BYTES).read(100).data == b"waits"
    log.raise_failure()
    assert not scheduler.live_timers()


def test_a_whole_pipe_that_waits_is_kept_when_no_descriptor_comes_back_in_time() -> None:
    log = outgrown()
    job, scheduler, process, tree, read_fd, write_fd = make(log)
    in_the_pipe = bytes(range(256)) * 256
    assert os.write(write_fd, in_the_pipe) == len(in_the_pipe)
    process.exit, tree.gone = ExitStatus(0, 0), True
    with no_descriptor_left():
        scheduler.ready(read_fd)
        scheduler.ready(PIDFD)
        [drain] = [timer for timer, delay_s in scheduler.timers if delay_s == DRAIN_MAX_S]
        scheduler.fire(scheduler.live_timers().index(drain))
        assert job.wait_ended(0)
    assert log.reader_at(INLINE_MAX_BYTES).read(10**6).data == in_the_pipe
    log.raise_failure()
    assert not scheduler.live_timers()
    os.close(write_fd)


def test_a_kill_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    job, scheduler, process, tree, read_fd, write_fd = make(OutputLog())
    tree.refuses = True
    job.request_stop(5)
    for tries in (1, 2):
        scheduler.fire(0)
        assert tree.kills == tries
        assert scheduler.timers[-1][1] == KILL_RETRY_S
    assert "job id cannot be killed, which is tried again" in caplog.text
    job.request_stop(0)
    tree.refuses = False
    scheduler.fire(0)
    assert tree.kills == 4
    assert not scheduler.live_timers()
    process.exit, tree.gone = ExitStatus(0, 9), True
    os.close(write_fd)
    scheduler.ready(read_fd)
    scheduler.ready(PIDFD)
    assert job.wait_ended(0)


@pytest.mark.parametrize("gone", [True, False])
def test_a_job_ends_although_its_tree_cannot_be_killed(gone: bool) -> None:
    job, scheduler, process, tree, read_fd, write_fd = make(OutputLog())
    os.close(write_fd)
    scheduler.ready(read_fd)
    tree.refuses, tree.gone = True, gone
    process.exit = ExitStatus(0, 0)
    scheduler.ready(PIDFD)
    if not gone:
        [drain] = [timer for timer, delay_s in scheduler.timers if delay_s == DRAIN_MAX_S]
        scheduler.fire(scheduler.live_timers().index(drain))
    assert job.wait_ended(0)
    assert not scheduler.live_timers()
    assert not scheduler.watched


def cgroup_of_files(path: Path) -> Cgroup:
    path.mkdir()
    (path / "cgroup.events").write_text("populated 0\n")
    (path / "cgroup.kill").write_text("")
    (path / "memory.events").write_text("oom_kill 1\n")
    return Cgroup(path)


def test_the_end_of_a_job_takes_no_descriptor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = CgroupTree(cgroup_of_files(tmp_path / "job"))
    job, scheduler, process, _, read_fd, write_fd = make(OutputLog(), tree)
    os.close(write_fd)
    with no_descriptor_left(), caplog.at_level(logging.WARNING):
        scheduler.ready(read_fd)
        process.exit = ExitStatus(0, 9)
        scheduler.ready(PIDFD)
    assert job.wait_ended(0)
    assert (tmp_path / "job" / "cgroup.kill").read_text() == "1"
    assert job.status().oom_killed, "the OOM killer struck, and it is not told"
    # The files that stand in for the kernel's are in the way, and that is told.
    assert "stays until the next start" in caplog.text


def test_a_tree_that_no_descriptor_is_left_for_is_refused_and_leaves_none(tmp_path: Path) -> None:
    cgroup = cgroup_of_files(tmp_path / "job")
    (cgroup.path / "memory.events").unlink()  # the last that is opened
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(HostExhaustedError, match=r"memory\.events"):
        CgroupTree(cgroup)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
