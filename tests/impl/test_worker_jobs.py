"""What a worker remembers of its jobs: lists, deletion, and the time to live of ended ones."""

import threading
import time
from collections.abc import Iterator

import pytest

from harness.host.clock import poll_until
from tests.support.reactor import on_reactor
from tests.support.worker import listed, output, shell
from worker_service.cgroup import Usage
from worker_service.errors import (
    JobNotFoundError,
    JobRunningError,
)
from worker_service.job import Job, State
from worker_service.log import OutputLog
from worker_service.spawn import Command
from worker_service.tree import GroupTree
from worker_service.worker import Worker, WorkerSettings

END_MAX_S = 10.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    running = Worker(WorkerSettings(stop_grace_s=1.0), hierarchy=None)
    yield running
    running.close(grace_s=0)


def test_list_continues_after_any_number_in_both_orders(worker: Worker) -> None:
    started = [worker.start(Command("true")).job_id for _ in range(5)]
    numbers = [job.number for job, _ in worker.list_jobs()]
    assert numbers == sorted(set(numbers))
    for place, number in enumerate(numbers):
        assert listed(worker, after=number) == started[place + 1 :]
        assert listed(worker, after=number, newest_first=True) == started[:place][::-1]
    worker.stop(started[2])
    worker.delete(started[2])  # its number still has a place
    assert listed(worker, after=numbers[2]) == started[3:]
    assert listed(worker, after=numbers[2], newest_first=True) == started[1::-1]
    newer = worker.start(Command("true")).job_id
    assert listed(worker, after=numbers[3]) == [started[4], newer]


def test_list_has_only_jobs_in_the_state(worker: Worker) -> None:
    running = worker.start(Command("sleep", ("100",))).job_id
    exited = worker.start(Command("true")).job_id
    output(worker, worker.query(exited))
    signaled = worker.start(shell("kill -9 $$")).job_id
    output(worker, worker.query(signaled))
    for state, want in (("running", running), ("exited", exited), ("signaled", signaled)):
        assert listed(worker, state=State(state)) == [want]
    assert [status.state for _, status in worker.list_jobs(newest_first=True)][-1] == "running"


def test_list_reads_no_usage_and_query_does(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = worker.start(Command("sleep", ("100",)))
    usage = Usage(pids_current=7)
    monkeypatch.setattr(GroupTree, "usage", lambda _: usage)
    assert [status.usage for _, status in worker.list_jobs()] == [None]
    assert worker.query(status.job_id).usage == usage


def test_delete_forgets_an_ended_job_and_frees_its_output(worker: Worker) -> None:
    status = worker.start(shell("head -c 300000 /dev/zero"))
    output(worker, status)
    log = worker.log(status.job_id)
    reader = log.reader_at(100_000)
    worker.stop(status.job_id)
    worker.delete(status.job_id)
    for call in (worker.query, worker.delete, worker.stop, worker.log):
        with pytest.raises(JobNotFoundError, match="forgotten when deleted"):
            call(status.job_id)
    assert not listed(worker)
    on_reactor(worker._reactor, lambda: None)
    assert log.held_bytes() == 0
    chunk = reader.read(1)
    assert (chunk.offset, chunk.missed_bytes, len(chunk.data)) == (300_000, 200_000, 0)


def test_job_that_a_query_reports_as_ended_can_be_deleted(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is closed after its status has changed, which takes a while with many readers."""
    closing, close = threading.Event(), threading.Event()

    def close_late(log: OutputLog, failure: str | None = None) -> None:
        closing.set()
        assert close.wait(END_MAX_S)
        close_at_once(log, failure)

    close_at_once = OutputLog.close
    monkeypatch.setattr(OutputLog, "close", close_late)
    status = worker.start(shell("head -c 300000 /dev/zero"))
    log = worker.log(status.job_id)
    assert closing.wait(END_MAX_S)
    try:
        assert worker.query(status.job_id).state is State.EXITED
        worker.delete(status.job_id)
    finally:
        close.set()
    on_reactor(worker._reactor, lambda: None)
    assert not listed(worker)
    assert (log.held_bytes(), worker._memory.total_bytes()) == (0, 0)


def test_delete_of_a_running_job_is_refused(worker: Worker) -> None:
    status = worker.start(Command("sleep", ("100",)))
    with pytest.raises(JobRunningError, match=f"job {status.job_id} is running; stop it first"):
        worker.delete(status.job_id)
    assert listed(worker) == [status.job_id]


def test_ended_jobs_are_forgotten_after_their_ttl() -> None:
    ttl_s = 0.3
    worker = Worker(WorkerSettings(job_ttl_s=ttl_s), hierarchy=None)
    try:
        running = worker.start(Command("sleep", ("100",)))
        for _ in range(2):  # the second time with another timer
            ended_s = time.monotonic()
            ended = [worker.start(shell("echo on")) for _ in range(5)]
            logs = [worker.log(status.job_id) for status in ended]
            for status in ended:
                worker.stop(status.job_id)
            known = listed(worker)
            assert time.monotonic() - ended_s >= ttl_s or len(known) == 6
            poll_until(lambda: listed(worker) == [running.job_id] or None, END_MAX_S, "expiry")
            on_reactor(worker._reactor, lambda: None)
            assert not any(log.held_bytes() for log in logs)
        with pytest.raises(JobNotFoundError, match=r"0.3 s after their end \(--job-ttl\)"):
            worker.query(ended[0].job_id)
    finally:
        worker.close(grace_s=0)


def test_job_that_expires_before_its_start_has_returned_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(WorkerSettings(job_ttl_s=1e-9), hierarchy=None)
    begin, expired = Job.begin, threading.Event()
    expire = worker._expire

    def begin_until_expired(job: Job) -> Exception | None:
        failure = begin(job)
        assert expired.wait(END_MAX_S)
        return failure

    def note_expiry() -> None:
        expire()
        expired.set()

    monkeypatch.setattr(Job, "begin", begin_until_expired)
    monkeypatch.setattr(worker, "_expire", note_expiry)
    try:
        worker.start(Command("true"))
        assert not listed(worker)
    finally:
        worker.close(grace_s=0)
