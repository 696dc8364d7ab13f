"""The job's state machine, whatever the order of events: one final status, nothing left."""

import errno
import os
import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker_service.cgroup import Usage
from worker_service.job import DRAIN_MAX_S, Job, JobStatus, ProcessTree, State
from worker_service.log import OutputLog
from worker_service.reactor import Callback, Scheduler, Timer
from worker_service.spawn import Command, ExitStatus

PIDFD = 1_000_001
TREE_FD = 1_000_002


class FakeScheduler:
    """Calls back when the test says so."""

    def __init__(self) -> None:
        self.watched: dict[int, Callback] = {}
        self.timers: list[tuple[Timer, float]] = []

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        del events
        assert fd not in self.watched
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        timer = Timer(0.0, callback)
        timer.due_s = float("inf")  # a later, shorter request replaces it
        self.timers.append((timer, delay_s))
        return timer

    def ready(self, fd: int) -> None:
        if fd in self.watched:
            self.watched[fd]()

    def live_timers(self) -> list[Timer]:
        return [timer for timer, _ in self.timers if timer.callback is not None]

    def fire(self, number: int) -> None:
        live = self.live_timers()
        if live:
            timer = live[number % len(live)]
            callback, timer.callback = timer.callback, None
            assert callback is not None
            callback()


class FakeProcess:
    pid = 4711
    pidfd = PIDFD

    def __init__(self) -> None:
        self.exit: ExitStatus | None = None
        self.signals: list[signal.Signals] = []
        self.reaped = 0

    def signal_group(self, signal_number: signal.Signals) -> None:
        assert not self.reaped, "a signal after the pid was given back may hit a stranger"
        self.signals.append(signal_number)

    def peek_exit(self) -> ExitStatus | None:
        return self.exit

    def reap(self) -> None:
        self.reaped += 1


class FakeTree:
    def __init__(self, process: FakeProcess) -> None:
        self.process = process
        self.kills = 0
        self.refuses = False
        self.gone = False
        self.discarded = 0

    def kill(self) -> None:
        assert not self.discarded
        assert not self.process.reaped
        self.kills += 1
        if self.refuses:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def is_gone(self) -> bool:
        return self.gone

    def watch(self, scheduler: Scheduler, callback: Callback) -> None:
        scheduler.watch(TREE_FD, 0, callback)

    def unwatch(self, scheduler: Scheduler) -> None:
        scheduler.unwatch(TREE_FD)

    def usage(self) -> Usage | None:
        assert not self.discarded, "a removed cgroup counts nothing"
        return Usage(oom_kills=1)

    def last_usage(self) -> Usage | None:
        return self.usage()

    def discard(self) -> None:
        assert self.process.exit is not None
        self.discarded += 1


class ScarceLog(OutputLog):
    """A log that at times needs a descriptor and gets none."""

    scarce = False

    def splice_from(self, pipe_fd: int, max_bytes: int) -> int:
        if self.scarce:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return super().splice_from(pipe_fd, max_bytes)


class JobMachine(RuleBasedStateMachine):
    """Events in any order, as often as they like."""

    @initialize()
    def make(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)
        self.written = b""
        self.scheduler = FakeScheduler()
        self.process = FakeProcess()
        self.tree = FakeTree(self.process)
        self.log = ScarceLog()
        self.job = Job(
            JobStatus("id", Command("true"), State.RUNNING, 4711, 1.0),
            process=self.process,
            tree=self.tree,
            output_fd=self.read_fd,
            log=self.log,
            scheduler=self.scheduler,
        )
        self.job.begin()
        self.final: JobStatus | None = None
        self.drain_cut = False

    def teardown(self) -> None:
        if not hasattr(self, "job"):
            return
        self.close_output()
        self.log.scarce = False
        for timer in self.scheduler.live_timers():
            if timer.callback == self.job._resume_output:
                self.scheduler.fire(self.scheduler.live_timers().index(timer))
        self.process.exit = self.process.exit or ExitStatus(0, 0)
        self.tree.gone = True
        for fd in (self.read_fd, PIDFD, TREE_FD):
            self.scheduler.ready(fd)
        self.scheduler.ready(self.read_fd)
        assert self.job.wait_ended(0), "the job did not end although everything has"
        assert not self.scheduler.watched
        assert not self.scheduler.live_timers()
        assert self.process.reaped == 1
        assert self.tree.discarded == 1
        assert self.tree.kills >= 1
        if not self.drain_cut:
            assert self.log.reader_at(0).read(10**7).data == self.written
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(self.read_fd)

    @precondition(lambda self: self.write_fd >= 0 and self.final is None)
    @rule(data=st.binary(min_size=1, max_size=500))
    def write(self, data: bytes) -> None:
        try:
            os.write(self.write_fd, data)
        except BrokenPipeError:
            return
        self.written += data

    @precondition(lambda self: self.write_fd >= 0)
    @rule()
    def close_output(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    @rule()
    def output_event(self) -> None:
        self.scheduler.ready(self.read_fd)

    @precondition(lambda self: self.process.exit is None)
    @rule(code=st.integers(0, 255), number=st.sampled_from([0, 9, 15]))
    def exit(self, code: int, number: int) -> None:
        self.process.exit = ExitStatus(0 if number else code, number)

    @rule()
    def exit_event(self) -> None:
        self.scheduler.ready(PIDFD)

    @rule()
    def tree_event(self) -> None:
        self.scheduler.ready(TREE_FD)

    @rule()
    def tree_gone(self) -> None:
        self.tree.gone = True

    @rule(refuses=st.booleans())
    def kill_is_refused(self, refuses: bool) -> None:
        self.tree.refuses = refuses

    @rule(scarce=st.booleans())
    def descriptors_are_scarce(self, scarce: bool) -> None:
        self.log.scarce = scarce

    @rule(grace=st.sampled_from([0.0, 0.1, 5.0]))
    def stop(self, grace: float) -> None:
        self.job.request_stop(grace)

    @rule(number=st.integers(0, 5))
    def timer(self, number: int) -> None:
        open_before = self.job._output_open
        self.scheduler.fire(number)
        if open_before and self.job.wait_ended(0):
            self.drain_cut = True

    @invariant()
    def ends_once_and_for_good(self) -> None:
        if not hasattr(self, "job"):
            return
        status = self.job.status()
        closed = self.log.extent().closed
        assert closed == self.job.wait_ended(0) == (status.ended_at_s is not None)
        if not closed:
            assert status.state is State.RUNNING
            assert not self.process.reaped
            return
        assert self.process.exit is not None
        assert (status.exit_code, status.signal) == (
            self.process.exit.exit_code,
            self.process.exit.signal,
        )
        assert status.state is (State.SIGNALED if status.signal else State.EXITED)
        assert status.oom_killed
        if self.final is None and not self.drain_cut:
            assert self.log.reader_at(0).read(10**7).data == self.written
        self.final = self.final or status
        assert status == self.final


TestJob = JobMachine.TestCase
TestJob.settings = settings(max_examples=300, stateful_step_count=30)


class StatusSeen(OutputLog):
    """Notes the job's state at the moment that the log is closed."""

    job: Job
    seen: State | None = None

    def close(self, failure: str | None = None) -> None:
        self.seen = self.seen or self.job.status().state
        super().close(failure)


def make(
    log: OutputLog, own_tree: ProcessTree | None = None
) -> tuple[Job, FakeScheduler, FakeProcess, FakeTree, int, int]:
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    scheduler, process = FakeScheduler(), FakeProcess()
    tree = FakeTree(process)
    status = JobStatus("id", Command("true"), State.RUNNING, 4711, 1.0)
    job = Job(
        status, process=process, tree=own_tree or tree, output_fd=read_fd, log=log,
        scheduler=scheduler,
    )  # fmt: skip
    job.begin()
    return job, scheduler, process, tree, read_fd, write_fd


def test_the_status_is_final_before_the_log_is_closed() -> None:
    log = StatusSeen()
    log.job, scheduler, process, tree, read_fd, write_fd = make(log)
    os.close(write_fd)
    scheduler.ready(read_fd)
    process.exit, tree.gone = ExitStatus(3, 0), True
    scheduler.ready(PIDFD)
    assert log.seen is State.EXITED


def test_a_job_has_not_ended_while_its_tree_lives() -> None:
    job, scheduler, process, tree, read_fd, write_fd = make(OutputLog())
    os.close(write_fd)
    scheduler.ready(read_fd)
    process.exit = ExitStatus(0, 0)
    scheduler.ready(PIDFD)
    assert job.status().state is State.RUNNING
    tree.gone = True
    scheduler.ready(TREE_FD)
    assert job.status().state is State.EXITED


def test_output_that_stays_open_is_cut_after_the_drain_and_kept_until_then() -> None:
    log = OutputLog()
    job, scheduler, process, tree, _, write_fd = make(log)
    process.exit, tree.gone = ExitStatus(0, 0), True
    scheduler.ready(PIDFD)
    assert not job.wait_ended(0)
    os.write(write_fd, b"last words")
    [(_, delay_s)] = scheduler.timers
    assert delay_s == DRAIN_MAX_S
    scheduler.fire(0)
    assert job.wait_ended(0)
    assert log.reader_at(0).read(100).data == b"last words"
    os.close(write_fd)


def test_output_that_cannot_be_stored_kills_the_job_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = OutputLog()
    job, scheduler, process, tree, read_fd, write_fd = make(log)

    def refuse(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(log, "splice_from", refuse)
    scheduler.ready(read_fd)
    assert tree.kills == 1
    process.exit, tree.gone = ExitStatus(0, 9), True
    scheduler.ready(PIDFD)
    assert job.wait_ended(0)
    with pytest.raises(Exception, match="Cannot allocate memory; the job was killed"):
        log.raise_failure()
    os.close(write_fd)


def test_a_stop_sends_sigterm_once_and_a_shorter_grace_wins() -> None:
    job, scheduler, process, tree, read_fd, write_fd = make(OutputLog())
    job.request_stop(10)
    job.request_stop(5)
    assert process.signals == [signal.SIGTERM, signal.SIGCONT]
    assert [delay_s for timer, delay_s in scheduler.timers if timer.callback] == [5]
    job.request_stop(0)
    assert tree.kills == 1
    assert not scheduler.live_timers()
    process.exit, tree.gone = ExitStatus(0, 9), True
    os.close(write_fd)
    scheduler.ready(read_fd)
    scheduler.ready(PIDFD)
    assert job.status().signal == 9
