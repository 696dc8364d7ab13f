"""The library without gRPC, with real processes."""

import errno
import itertools
import os
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.descriptors import open_descriptors
from tests.support.reactor import on_reactor
from tests.support.worker import listed, output, shell
from worker_service import job as job_module
from worker_service import spawn
from worker_service import worker as worker_module
from worker_service.cgroup import IoMax, Limits
from worker_service.errors import (
    HostExhaustedError,
    InvalidRequestError,
    JobNotFoundError,
    JobWorkerError,
    LimitsUnavailableError,
    ShuttingDownError,
    StopTimedOutError,
)
from worker_service.job import Job, JobStatus, State
from worker_service.spawn import Child, Command
from worker_service.worker import Worker, WorkerSettings

END_MAX_S = 10.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    running = Worker(WorkerSettings(stop_grace_s=1.0), hierarchy=None)
    yield running
    running.close(grace_s=0)


def test_job_runs_and_its_final_status_follows_its_output(worker: Worker) -> None:
    status = worker.start(shell("echo out; echo err >&2; exit 3"))
    assert (status.state, uuid.UUID(status.job_id).version) == (State.RUNNING, 4)
    assert output(worker, status) == b"out\nerr\n"
    final = worker.query(status.job_id)
    assert (final.state, final.exit_code, final.signal) == (State.EXITED, 3, 0)
    assert final.ended_at_s is not None
    assert final.ended_at_s >= final.started_at_s
    assert listed(worker) == [status.job_id]


def test_200_short_jobs_lose_no_byte(worker: Worker) -> None:
    program = "import os; os.write(1, bytes([int(__import__('sys').argv[1])]) * 65000)"

    def run(number: int) -> bytes:
        command = Command(sys.executable, ("-I", "-S", "-c", program, str(number)))
        return output(worker, worker.start(command))

    with ThreadPoolExecutor(8) as pool:
        for number, data in enumerate(pool.map(run, range(200))):
            assert data == bytes([number]) * 65000


def test_tree_that_ignores_sigterm_is_killed_after_the_grace(worker: Worker) -> None:
    status = worker.start(shell("trap '' TERM; sleep 100 & echo on; wait; wait"))
    output(worker, status, b"on\n")
    started_s = time.monotonic()
    final = worker.stop(status.job_id, grace_s=1)
    assert time.monotonic() - started_s >= 1
    assert (final.state, final.signal) == (State.SIGNALED, signal.SIGKILL)


def test_stop_without_a_grace_has_the_servers(worker: Worker) -> None:
    status = worker.start(shell("trap '' TERM; echo on; while :; do sleep 0.1; done"))
    output(worker, status, b"on\n")
    started_s = time.monotonic()
    final = worker.stop(status.job_id)
    assert 1 <= time.monotonic() - started_s < 5
    assert (final.state, final.signal) == (State.SIGNALED, signal.SIGKILL)


def _state(pid: int) -> str:
    """Return a process's state as the kernel names it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def with_child(script: str) -> Command:
    """Return a shell that waits for another one, which runs the script."""
    return Command("sh", ("-c", 'sh -c "$1" & wait', "sh", script))


def test_grace_of_a_stop_is_that_of_the_main_processs_children_too(worker: Worker) -> None:
    status = worker.start(
        with_child("trap 'echo last words; exit' TERM; echo ready; while :; do sleep 0.1; done")
    )
    output(worker, status, b"ready\n")
    final = worker.stop(status.job_id, grace_s=20)
    assert final.signal == signal.SIGTERM, "the main process ends at once"
    # The shell also reports the sleep that SIGTERM ended.
    assert output(worker, status).endswith(b"last words\n")


def test_silent_rest_of_a_stopped_group_is_killed_with_its_main_process(worker: Worker) -> None:
    status = worker.start(
        with_child("trap '' TERM; echo $$; exec >/dev/null 2>&1; while :; do sleep 0.1; done")
    )
    child = int(output(worker, status, b"\n"))
    started_s = time.monotonic()
    worker.stop(status.job_id, grace_s=60)
    assert time.monotonic() - started_s < 30
    assert _ended(child)


def test_job_paused_with_sigstop_can_be_stopped(worker: Worker) -> None:
    status = worker.start(shell("kill -STOP $$; sleep 100"))
    deadline_s = time.monotonic() + 10
    while _state(status.pid) != "T":
        assert time.monotonic() < deadline_s
    assert worker.stop(status.job_id).signal == signal.SIGTERM


@pytest.mark.parametrize("jobs", [1, 20])
def test_100_concurrent_stops_return_the_same_final_status(worker: Worker, jobs: int) -> None:
    started = [worker.start(Command("sleep", ("100",))) for _ in range(jobs)]
    with ThreadPoolExecutor(100) as pool:
        finals = list(
            pool.map(lambda number: worker.stop(started[number % jobs].job_id), range(100))
        )
    assert {(final.state, final.signal) for final in finals} == {(State.SIGNALED, signal.SIGTERM)}
    assert len({(final.job_id, final.ended_at_s) for final in finals}) == jobs


def test_stop_that_races_with_the_end_returns_the_final_status(worker: Worker) -> None:
    for _ in range(30):
        status = worker.start(Command("true"))
        final = worker.stop(status.job_id)
        assert (final.state, final.signal or final.exit_code) in {
            (State.EXITED, 0),
            (State.SIGNALED, signal.SIGTERM),
        }
        assert worker.query(status.job_id) == final


def _ended(pid: int) -> bool:
    """Wait for a process's end: an ending one closes its files a moment before it has ended."""
    try:
        process_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process_fd], [], [], END_MAX_S)[0])
    finally:
        os.close(process_fd)


def test_daemon_in_the_group_is_killed_with_the_main_process(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "DRAIN_MAX_S", 20)
    status = worker.start(shell("(sleep 100 & echo $!) ; exit 4"))
    started_s = time.monotonic()
    daemon = int(output(worker, status))
    assert time.monotonic() - started_s < job_module.DRAIN_MAX_S  # not only at the drain's bound
    assert worker.query(status.job_id).exit_code == 4
    assert _ended(daemon)


def test_output_held_open_by_an_escaped_daemon_is_cut_after_the_drain(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a cgroup, setsid leaves the tree.
    monkeypatch.setattr(job_module, "DRAIN_MAX_S", 0.2)
    status = worker.start(shell("setsid sh -c 'echo $$; exec sleep 100' & wait"))
    daemon = int(output(worker, status, b"\n"))
    final = worker.stop(status.job_id)
    assert final.signal == signal.SIGTERM
    os.kill(daemon, signal.SIGKILL)


def test_close_ends_all_jobs_and_refuses_new_ones() -> None:
    worker = Worker(WorkerSettings(), hierarchy=None)
    jobs = [worker.start(Command("sleep", ("100",))) for _ in range(10)]
    worker.close(grace_s=1)
    assert {worker.query(job.job_id).signal for job in jobs} == {signal.SIGTERM}
    with pytest.raises(ShuttingDownError):
        worker.start(Command("true"))
    worker.close()


def test_starts_that_race_with_close_leave_no_running_job() -> None:
    worker = Worker(WorkerSettings(), hierarchy=None)
    started: list[JobStatus] = []
    go = threading.Event()

    def start() -> None:
        go.wait(10)
        try:
            for _ in range(100):
                started.append(worker.start(Command("sleep", ("100",))))  # noqa: PERF401 - ended by an error
        except ShuttingDownError:
            return

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.set()
    worker.close(grace_s=0)
    for thread in threads:
        thread.join(30)
    assert all(worker.query(status.job_id).ended_at_s for status in started)


def test_kill_all_ends_a_close_that_waits_for_the_grace() -> None:
    worker = Worker(WorkerSettings(), hierarchy=None)
    status = worker.start(shell("trap '' TERM; echo on; while :; do sleep 100; done"))
    output(worker, status, b"on\n")
    closing = threading.Thread(target=worker.close, args=(60.0,))
    closing.start()
    worker.kill_all()
    closing.join(30)
    assert not closing.is_alive()
    assert worker.query(status.job_id).signal == signal.SIGKILL


@pytest.mark.parametrize("job_id", ["", "x", "../..", "761db04c-0150-4f0b-a6fd"])
def test_query_rejects_a_malformed_id(worker: Worker, job_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be a UUID"):
        worker.query(job_id)


def test_log_of_an_unknown_id_is_not_found(worker: Worker) -> None:
    with pytest.raises(JobNotFoundError):
        worker.log(str(uuid.uuid4()))


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
def test_start_rejects_each_limit_without_a_hierarchy(worker: Worker, name: str) -> None:
    io_max = IoMax("1:0", read_bytes_per_second=1)
    values: list[Any] = [(io_max,)] if name == "io_max" else [0, 5]
    for value in values:
        with pytest.raises(LimitsUnavailableError, match="--no-limits"):
            worker.start(Command("true"), replace(Limits(), **{name: value}))


def test_start_accepts_no_limits_without_a_hierarchy(worker: Worker) -> None:
    assert worker.start(Command("true"), Limits()).limits is None


@pytest.mark.parametrize("grace_s", [-1.0, 3601.0, float("nan")])
def test_stop_rejects_a_grace_out_of_range(worker: Worker, grace_s: float) -> None:
    status = worker.start(Command("true"))
    with pytest.raises(InvalidRequestError, match="grace period"):
        worker.stop(status.job_id, grace_s)


def test_failed_start_leaves_no_descriptor_and_no_job(worker: Worker) -> None:
    before = open_descriptors()
    for _ in range(50):
        with pytest.raises(JobWorkerError):
            worker.start(Command("/no/such"))
    assert open_descriptors() == before
    assert not listed(worker)


@pytest.mark.parametrize("watched_before", [0, 1])
def test_start_that_cannot_be_watched_is_refused_and_leaves_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, watched_before: int
) -> None:
    before = open_descriptors()
    children: list[Child] = []
    watch, watched = worker._reactor.watch, itertools.count()

    def spawn_and_note(*arguments: Any) -> Child:
        children.append(spawn.spawn(*arguments))
        return children[-1]

    def refuse(*arguments: Any) -> None:
        if next(watched) == watched_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(*arguments)

    monkeypatch.setattr(worker_module, "spawn", spawn_and_note)
    monkeypatch.setattr(worker._reactor, "watch", refuse)
    with pytest.raises(HostExhaustedError, match="No space left on device; the job was killed"):
        worker.start(Command("sleep", ("100",)))
    assert not listed(worker)
    on_reactor(worker._reactor, lambda: None)
    assert not worker._memory._ended, "the log of a job that nobody knows is kept"
    assert not Path(f"/proc/{children[0].pid}").exists(), "the process was not killed and reaped"
    assert open_descriptors() == before
    assert output(worker, worker.start(Command("echo", ("next",)))) == b"next\n"


def test_start_does_not_wait_for_the_jobs_thread(worker: Worker) -> None:
    busy, free = threading.Event(), threading.Event()

    def keep_busy() -> None:
        busy.set()
        free.wait(10)

    worker._reactor.call_soon(keep_busy)
    assert busy.wait(10)
    try:
        with ThreadPoolExecutor(1) as pool:
            status = pool.submit(worker.start, Command("echo", ("on",))).result(5)
        assert listed(worker) == [status.job_id]
    finally:
        free.set()
    assert output(worker, status) == b"on\n"


def test_job_whose_event_fails_while_it_begins_is_killed_and_ends(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Job.begin

    def fail_meanwhile(job: Job) -> Exception | None:
        job.abandon(ValueError("planted"))
        return begin(job)

    monkeypatch.setattr(Job, "begin", fail_meanwhile)
    status = worker.start(Command("sleep", ("100",)))
    assert worker.find(status.job_id).wait_ended(10)
    ended = worker.query(status.job_id)
    assert (ended.state, ended.signal) == (State.SIGNALED, 9)


def test_job_ends_although_its_exit_status_is_lost(worker: Worker) -> None:
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        # It lives on for a moment: a process that has ended and is reaped has no pidfd.
        status = worker.start(shell("echo on; sleep 0.5"))
        assert output(worker, status) == b"on\n"
    finally:
        signal.signal(signal.SIGCHLD, earlier)
    assert "No child processes" in (worker.log(status.job_id).failure() or "")
    assert worker.query(status.job_id).signal == signal.SIGKILL


def test_ended_jobs_hold_no_descriptor(worker: Worker) -> None:
    before = open_descriptors()
    for _ in range(50):
        output(worker, worker.start(Command("echo", ("x",))))
    assert open_descriptors() == before
    assert worker.running() == 0


def test_stop_that_is_given_up_returns_the_running_status_at_once(worker: Worker) -> None:
    status = worker.start(shell("trap '' TERM; echo on; while :; do sleep 100; done"))
    output(worker, status, b"on\n")
    gone = threading.Event()
    with ThreadPoolExecutor() as pool:
        started_s = time.monotonic()
        stopping = pool.submit(worker.stop, status.job_id, 60, gone.is_set)
        gone.set()
        worker.find(status.job_id).wake()
        assert stopping.result(END_MAX_S).ended_at_s is None
        assert time.monotonic() - started_s < END_MAX_S
    assert worker.stop(status.job_id, grace_s=0).signal == signal.SIGKILL


def test_retention_bounds_the_log_of_an_endless_job() -> None:
    worker = Worker(WorkerSettings(log_retention_bytes=100_000), hierarchy=None)
    try:
        status = worker.start(Command("yes"))
        reader = worker.log(status.job_id).reader_at(0)
        reader.wait(5_000_000, 30)
        extent = worker.log(status.job_id).extent()
        assert extent.end_offset >= 5_000_000
        assert extent.end_offset - extent.first_offset == 100_000
    finally:
        worker.close(grace_s=0)


@pytest.mark.parametrize("failure", [None, "the server is forbidden to signal it"])
def test_stop_that_times_out_says_why(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, failure: str | None
) -> None:
    job = worker.find(worker.start(Command("sleep", ("100",))).job_id)
    with monkeypatch.context() as patch:
        patch.setattr(job, "wait_ended", lambda *_: False)
        patch.setattr(job, "kill_failure", failure)
        with pytest.raises(StopTimedOutError, match=failure or "the kernel still holds it"):
            worker.stop(job.status().job_id, 0)
    assert job.wait_ended(20)
