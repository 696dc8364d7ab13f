"""The job's state machine, in any order of events: one final status, nothing left behind."""

import os
import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.job import PIDFD, TREE_FD, JobRig
from worker_service.errors import OutputLostError
from worker_service.job import DRAIN_MAX_S, END_RETRY_S, Job, JobStatus, State
from worker_service.log import OutputLog
from worker_service.output_memory import OutputMemory
from worker_service.spawn import ExitStatus


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class JobMachine(RuleBasedStateMachine):
    """Events in any order, any number of times."""

    @initialize()
    def make(self) -> None:
        self.rig = JobRig()
        self.log = self.rig.log
        self.job, self.process, self.tree = self.rig.job, self.rig.process, self.rig.tree
        self.scheduler = self.rig.scheduler
        self.written = b""
        self.final: JobStatus | None = None
        self.drain_cut = False

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.rig.close_output()
        self.process.exit = self.process.exit or ExitStatus(0, 0)
        self.tree.gone = True
        for fd in (self.rig.read_fd, PIDFD, TREE_FD, self.rig.read_fd):
            self.scheduler.ready(fd)
        assert self.job.wait_ended(0), "the job did not end although everything else has"
        assert not self.scheduler.watched
        assert not self.scheduler.live_timers()
        assert self.process.reaped == 1
        assert self.tree.discarded == 1
        assert self.tree.kills >= 1
        if not self.drain_cut:
            assert self.log.reader_at(0).read(10**7).data == self.written
        assert not is_open(self.rig.read_fd)

    @precondition(lambda self: self.rig.write_fd >= 0 and self.final is None)
    @rule(data=st.binary(min_size=1, max_size=500))
    def write(self, data: bytes) -> None:
        try:
            os.write(self.rig.write_fd, data)
        except BrokenPipeError:
            return
        self.written += data

    @precondition(lambda self: self.rig.write_fd >= 0)
    @rule()
    def close_output(self) -> None:
        self.rig.close_output()

    @rule()
    def output_event(self) -> None:
        self.rig.output_ready()

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

    @rule(refuses=st.booleans())
    def sigterm_is_refused(self, refuses: bool) -> None:
        self.tree.refuses_terms = refuses

    @rule(grace=st.sampled_from([0.0, 0.1, 5.0]))
    def stop(self, grace: float) -> None:
        self.job.request_stop(grace)

    @rule(number=st.integers(0, 5))
    def timer(self, number: int) -> None:
        open_before = is_open(self.rig.read_fd)
        self.scheduler.fire(number)
        if open_before and self.job.wait_ended(0):
            self.drain_cut = True

    @invariant()
    def ends_once_and_stays_ended(self) -> None:
        if not hasattr(self, "rig"):
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
    """Records the job's state at the moment when the log is closed."""

    job: Job
    seen: State | None = None

    def close(self, failure: str | None = None) -> None:
        self.seen = self.seen or self.job.status().state
        super().close(failure)


def test_status_is_final_before_the_log_is_closed() -> None:
    log = StatusSeen()
    rig = JobRig(log)
    log.job = rig.job
    rig.end_output()
    rig.exit(3)
    assert log.seen is State.EXITED


def test_job_is_running_until_its_tree_is_gone() -> None:
    rig = JobRig()
    rig.end_output()
    rig.exit(gone=False)
    assert rig.job.status().state is State.RUNNING
    rig.tree.gone = True
    rig.scheduler.ready(TREE_FD)
    assert rig.job.status().state is State.EXITED


def test_output_held_open_is_kept_until_the_drain_ends_and_then_cut() -> None:
    rig = JobRig()
    rig.exit()
    assert not rig.job.wait_ended(0)
    os.write(rig.write_fd, b"last words")
    assert [delay_s for _, delay_s in rig.scheduler.timers] == [DRAIN_MAX_S]
    rig.scheduler.fire(0)
    assert rig.job.wait_ended(0)
    assert rig.log.reader_at(0).read(100).data.tobytes() == b"last words"
    rig.close_output()


def test_output_that_cannot_be_stored_kills_the_job_and_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = JobRig()

    def refuse(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(rig.log, "read_from", refuse)
    rig.output_ready()
    assert rig.tree.kills == 1
    rig.exit(number=9)
    assert rig.job.wait_ended(0)
    with pytest.raises(OutputLostError, match="Cannot allocate memory; the job was killed"):
        rig.log.reader_at(0).raise_if_output_lost()
    rig.close_output()


def test_job_whose_exit_status_is_lost_ends_as_killed_with_its_output(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = JobRig()
    os.write(rig.write_fd, b"kept")
    rig.process.status_lost, rig.tree.gone = True, True
    rig.scheduler.ready(PIDFD)
    assert rig.job.wait_ended(0)
    assert (rig.job.status().state, rig.job.status().signal) == (State.SIGNALED, signal.SIGKILL)
    assert rig.log.reader_at(0).read(100).data.tobytes() == b"kept"
    with pytest.raises(OutputLostError, match="No child processes; the job was killed"):
        rig.log.reader_at(0).raise_if_output_lost()
    assert not rig.scheduler.watched
    assert not rig.scheduler.live_timers()
    assert (rig.process.reaped, rig.tree.discarded) == (1, 1)
    assert "job id fails in the server" in caplog.text
    rig.close_output()


@pytest.mark.parametrize("at_exit", [True, False])
def test_job_whose_callback_fails_is_killed_and_ends(
    monkeypatch: pytest.MonkeyPatch, *, at_exit: bool
) -> None:
    rig = JobRig()

    def fail(*_: object) -> int:
        raise KeyError("defect")

    if at_exit:
        rig.process.exit = ExitStatus(3, 0)
        monkeypatch.setattr(rig.tree, "is_gone", fail)
        rig.scheduler.unwatchable = {TREE_FD}  # the end of the tree cannot be watched
        rig.scheduler.ready(PIDFD)
    else:
        monkeypatch.setattr(rig.log, "read_from", fail)
        rig.output_ready()
    assert not rig.scheduler.watched, "its event would call the failing callback again"
    assert rig.tree.kills >= 1
    rig.job.request_stop(5)
    rig.scheduler.fire_after(END_RETRY_S)
    if not at_exit:
        assert rig.job.status().state is State.RUNNING, "its process has not ended"
        rig.process.exit = ExitStatus(0, 9)
        rig.scheduler.fire_after(END_RETRY_S)
    rig.scheduler.fire_after(DRAIN_MAX_S)
    assert rig.job.wait_ended(0)
    assert (rig.job.status().exit_code, rig.job.status().signal) == ((3, 0) if at_exit else (0, 9))
    assert not rig.scheduler.live_timers()
    assert (rig.process.reaped, rig.tree.discarded) == (1, 1)
    with pytest.raises(OutputLostError, match="the job was killed"):
        rig.log.reader_at(0).raise_if_output_lost()
    rig.close_output()


@pytest.mark.parametrize("unwatchable", ["output", "process"])
def test_job_that_cannot_be_watched_fails_to_begin_and_can_be_abandoned(unwatchable: str) -> None:
    rig = JobRig(begins=False)
    rig.scheduler.unwatchable = {rig.read_fd if unwatchable == "output" else PIDFD}
    with pytest.raises(OSError, match="No space left on device") as no:
        rig.job.begin()
    rig.tree.gone = True
    rig.job.abandon(no.value)
    assert rig.tree.kills == 1
    rig.process.exit = ExitStatus(0, 9)
    rig.scheduler.fire_after(END_RETRY_S)
    assert rig.job.wait_ended(0)
    assert not rig.scheduler.watched
    assert (rig.process.reaped, rig.tree.discarded) == (1, 1)
    assert not is_open(rig.read_fd)
    rig.close_output()


def test_event_that_fails_while_the_job_begins_abandons_it_afterwards() -> None:
    rig = JobRig(begins=False)
    planted = ValueError("planted")
    rig.job.abandon(planted)  # on the scheduler's thread, while another one begins
    assert (is_open(rig.read_fd), rig.process.reaped, rig.tree.kills) == (True, 0, 0)
    assert rig.job.begin() is planted
    assert rig.scheduler.watched
    rig.tree.gone = True
    rig.process.exit = ExitStatus(0, 9)
    rig.job.abandon(planted)
    assert rig.job.wait_ended(0)
    assert not rig.scheduler.watched
    assert not is_open(rig.read_fd)
    rig.close_output()


def test_step_that_fails_at_the_end_keeps_no_other_from_running(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = JobRig()

    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(rig.tree, "last_usage", fail)
    monkeypatch.setattr(rig.process, "reap", fail)
    rig.end_output()
    rig.exit(3)
    assert rig.job.status().exit_code == 3
    assert rig.job.wait_ended(0)
    assert rig.tree.discarded == 1
    assert caplog.text.count("a step of its end failed") == 2
    rig.log.reader_at(0).raise_if_output_lost()


def live_delays(rig: JobRig) -> list[float]:
    return [delay_s for timer, delay_s in rig.scheduler.timers if timer.callback]


def test_repeated_stop_sends_sigterm_once_and_the_shortest_grace_applies() -> None:
    rig = JobRig()
    rig.job.request_stop(10)
    rig.job.request_stop(5)
    assert rig.tree.terminations == 1
    assert live_delays(rig) == [5]
    rig.job.request_stop(0)
    assert rig.tree.kills == 1
    assert not rig.scheduler.live_timers()
    rig.end_output()
    rig.exit(number=9)
    assert rig.job.status().signal == 9


def test_longer_grace_of_a_second_stop_changes_nothing() -> None:
    rig = JobRig()
    rig.job.request_stop(5)
    rig.scheduler.timers[0][0].due_s = 0.0  # due already
    rig.job.request_stop(10)
    assert live_delays(rig) == [5]
    rig.scheduler.fire_after(5)
    assert rig.tree.kills == 1
    rig.job.request_stop(10)
    assert not rig.scheduler.live_timers(), "a killed job has no grace"
    rig.end_output()
    rig.exit(number=9)


def test_grace_of_a_stop_is_the_whole_trees_not_the_main_processs() -> None:
    rig = JobRig()
    rig.job.request_stop(10)
    rig.exit(number=15, gone=False)
    assert rig.tree.kills == 0, "the rest of the tree is killed within its grace"
    assert live_delays(rig) == [10]
    assert rig.job.status().ended_at_s is None
    os.write(rig.write_fd, b"last words")
    rig.end_output()
    rig.end_output()
    assert not rig.job.wait_ended(0), "the tree has not ended"
    rig.tree.gone = True
    rig.scheduler.ready(TREE_FD)
    assert rig.job.wait_ended(0)
    assert (rig.job.status().signal, rig.tree.kills) == (15, 1)
    assert rig.log.reader_at(0).read(100).data.tobytes() == b"last words"
    assert not rig.scheduler.live_timers()


def test_end_of_the_grace_kills_what_the_main_process_left_and_begins_the_drain() -> None:
    rig = JobRig()
    rig.job.request_stop(10)
    rig.exit(3, gone=False)
    rig.scheduler.fire_after(10)
    assert rig.tree.kills == 1
    assert live_delays(rig) == [DRAIN_MAX_S]
    rig.scheduler.fire_after(DRAIN_MAX_S)
    assert rig.job.status().exit_code == 3
    rig.close_output()


def test_second_stop_without_a_grace_kills_what_the_main_process_left() -> None:
    rig = JobRig()
    rig.job.request_stop(10)
    rig.exit(gone=False)
    rig.job.request_stop(0)
    assert rig.tree.kills == 1
    assert live_delays(rig) == [DRAIN_MAX_S]
    rig.tree.gone = True
    rig.end_output()
    assert rig.job.wait_ended(0)


def test_exit_that_no_stop_caused_kills_the_rest_at_once() -> None:
    rig = JobRig()
    rig.exit(gone=False)
    assert rig.tree.kills == 1
    rig.job.request_stop(10)
    assert live_delays(rig) == [DRAIN_MAX_S], "a killed tree has no grace"
    assert rig.tree.terminations == 0
    rig.tree.gone = True
    rig.end_output()
    assert rig.job.wait_ended(0)


def test_tree_that_may_not_be_signalled_is_killed_at_the_end_of_the_grace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = JobRig()
    rig.tree.refuses_terms = True
    rig.job.request_stop(5)
    assert "job id: SIGTERM did not reach its whole tree" in caplog.text
    assert live_delays(rig) == [5]
    rig.scheduler.fire_after(5)
    assert rig.tree.kills == 1
    rig.end_output()
    rig.exit(number=9)
    assert rig.job.wait_ended(0)


def test_output_is_counted_while_it_is_written_and_gives_way_once_its_job_has_ended() -> None:
    memory = OutputMemory(10)
    rig, later = JobRig(memory=memory), JobRig(memory=memory)
    for each, data in ((rig, b"123"), (later, b"1234567")):
        os.write(each.write_fd, data)
        each.output_ready()
    assert memory.total_bytes() == 10
    for each in (rig, later):
        each.end_output()
        each.exit()
    third = JobRig(memory=memory)
    os.write(third.write_fd, b"6")
    third.output_ready()
    assert [each.log.held_bytes() for each in (rig, later, third)] == [0, 7, 1]
    third.end_output()
    third.exit()
