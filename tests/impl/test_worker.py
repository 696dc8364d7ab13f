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
from pathlib import Path
from typing import Any

import pytest

from harness.host.clock import poll_until
from tests.support.descriptors import open_descriptors
from worker_service import job as job_module
from worker_service import spawn
from worker_service import worker as worker_module
from worker_service.cgroup import Limits, Usage
from worker_service.errors import (
    HostExhaustedError,
    InvalidRequestError,
    JobNotFoundError,
    JobRunningError,
    JobWorkerError,
    LimitsUnavailableError,
    ShuttingDownError,
    StopTimedOutError,
)
from worker_service.job import JobStatus, State
from worker_service.log import LogReader
from worker_service.spawn import Child, Command
from worker_service.tree import GroupTree
from worker_service.worker import Worker, WorkerSettings

END_MAX_S = 10.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    running = Worker(WorkerSettings(stop_grace_s=1.0), hierarchy=None)
    yield running
    running.close(grace_s=0)


def shell(script: str) -> Command:
    return Command("sh", ("-c", script))


def read_until(reader: LogReader, wanted: bytes = b"") -> bytes:
    """Read until some output has appeared, or to the end of the log."""
    data = b""
    while True:
        data += reader.read(2**20).data
        pending, closed = reader.pending_bytes()
        if (wanted and wanted in data) or (closed and not pending):
            return data
        reader.wait(1, 30)


def output(worker: Worker, status: JobStatus, wanted: bytes = b"") -> bytes:
    return read_until(worker.log(status.job_id).reader_at(0), wanted)


def listed(worker: Worker, **given: Any) -> list[str]:
    return [status.job_id for _, status in worker.list_jobs(**given)]


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


def test_start_rejects_limits_without_a_hierarchy(worker: Worker) -> None:
    with pytest.raises(LimitsUnavailableError, match="--no-limits"):
        worker.start(Command("true"), Limits(pids_max=5))
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
    assert not Path(f"/proc/{children[0].pid}").exists(), "the process was not killed and reaped"
    assert open_descriptors() == before
    assert output(worker, worker.start(Command("echo", ("next",)))) == b"next\n"


def test_start_without_an_answer_of_the_reactor_is_refused(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "BEGIN_MAX_S", 0.01)
    busy, free = threading.Event(), threading.Event()

    def keep_busy() -> None:
        busy.set()
        free.wait(10)

    worker._reactor.call_soon(keep_busy)
    assert busy.wait(10)
    threading.Timer(0.5, free.set).start()
    with pytest.raises(HostExhaustedError, match="no answer; the job was killed"):
        worker.start(Command("sleep", ("100",)))
    assert not listed(worker)


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
    worker._reactor.run(lambda: None, END_MAX_S)
    assert log.held_bytes() == 0
    chunk = reader.read(1)
    assert (chunk.offset, chunk.missed_bytes, len(chunk.data)) == (300_000, 200_000, 0)


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
            worker._reactor.run(lambda: None, END_MAX_S)
            assert not any(log.held_bytes() for log in logs)
        with pytest.raises(JobNotFoundError, match=r"0.3 s after their end \(--job-ttl\)"):
            worker.query(ended[0].job_id)
    finally:
        worker.close(grace_s=0)


def test_job_that_expires_before_its_start_has_returned_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(WorkerSettings(job_ttl_s=1e-9), hierarchy=None)
    run, expired = worker._reactor.run, threading.Event()
    expire = worker._expire

    def run_until_expired(*given: Any) -> None:
        run(*given)
        assert expired.wait(END_MAX_S)

    def note_expiry() -> None:
        expire()
        expired.set()

    monkeypatch.setattr(worker._reactor, "run", run_until_expired)
    monkeypatch.setattr(worker, "_expire", note_expiry)
    try:
        worker.start(Command("true"))
        assert not listed(worker)
    finally:
        worker.close(grace_s=0)


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
