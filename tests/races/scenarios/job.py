"""Jobs of a real worker and reactor: exit, stop, query and streams, concurrently."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

from harness.races.instrumentation import Watch
from harness.races.linearizability import Model, Operation, OperationHistory
from harness.races.scenario import Scenario
from tests.races.support import (
    FakeProcess,
    Kernel,
    make_call_soon_atomic,
    model_kernel,
    run_threads,
)
from worker_service import job as job_module
from worker_service.job import Job, JobStatus, State
from worker_service.reactor import Reactor
from worker_service.spawn import Command
from worker_service.worker import Worker, WorkerSettings

WATCH = Watch(
    (Worker, Job, Reactor),
    atomic={
        "Job._status": "one reference to a frozen object, written by the reactor's thread only; a "
        "reader gets the one before or the one after, both correct",
    },
    settled={"Reactor._soon": "reactor.call-soon and reactor.order"},
)
COMMAND = Command("fake", ())
GRACE_S = 5.0


@contextmanager
def a_worker(*processes: FakeProcess, kernel: Kernel) -> Iterator[Worker]:
    with model_kernel(kernel, iter(processes)), make_call_soon_atomic():
        worker = Worker(WorkerSettings(stop_grace_s=GRACE_S), hierarchy=None)
        yield worker
        worker.close(0)
    for process in processes:
        assert process.reaped == 1, "a job has ended and its process was not reaped exactly once"


def start_job(worker: Worker) -> str:
    """Start a job, and wait until the reactor watches it."""
    job_id = worker.start(COMMAND).job_id
    follows = threading.Event()
    worker._reactor.call_soon(follows.set)
    follows.wait()
    return job_id


def wait_for_end(worker: Worker, job_id: str) -> JobStatus:
    """Wait for the end of a job's output; its status must then be final."""
    reader = worker.log(job_id).reader_at(0)
    while not reader.pending_bytes()[1]:
        reader.wait(1_000_000)
    status = worker.query(job_id)
    assert status.ended_at_s is not None, "the output has ended while the status is running"
    return status


def output(worker: Worker, job_id: str) -> bytes:
    return worker.log(job_id).reader_at(0).read(100).data.tobytes()


def a_stop_races_with_the_end() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel, words=b"end", last_words=b"term")
    with a_worker(process, kernel=kernel) as worker:
        job_id = start_job(worker)
        stopped: list[JobStatus] = []

        def stopper() -> None:
            stopped.append(worker.stop(job_id))

        run_threads(process.write_and_exit, stopper)
        last = wait_for_end(worker, job_id)
        assert stopped == [last], "a stop returned another status than the final one"
        seen = (last.state, last.signal, output(worker, job_id))
        assert seen in {(State.EXITED, 0, b"end"), (State.SIGNALED, 15, b"term")}, seen


def a_stop_races_with_the_start() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel)
    with a_worker(process, kernel=kernel) as worker:
        job_id = worker.start(COMMAND).job_id

        def stopper() -> None:
            assert worker.stop(job_id).signal == 15

        begun_s = time.monotonic()
        run_threads(stopper)
        assert time.monotonic() == begun_s, "the stop waited for a time-out"


def two_stops() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel, last_words=b"term")
    with a_worker(process, kernel=kernel) as worker:
        job_id = start_job(worker)
        ends: list[JobStatus] = []

        def first() -> None:
            ends.append(worker.stop(job_id))

        def second() -> None:
            ends.append(worker.stop(job_id))

        begun_s = time.monotonic()
        run_threads(first, second)
        assert ends[0] == ends[1]
        assert output(worker, job_id) == b"term"
        assert time.monotonic() == begun_s, "a stop waited for a time-out"


def a_query_against_the_end() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel)
    with a_worker(process, kernel=kernel) as worker:
        job_id = start_job(worker)
        seen: list[JobStatus] = []

        def querier() -> None:
            seen.extend(worker.query(job_id) for _ in range(2))

        run_threads(process.write_and_exit, querier)
        ended = [each.ended_at_s is not None for each in seen]
        assert ended == sorted(ended), "a job that had ended runs again"


def a_stream_against_the_end() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel, words=b"out")
    # The reactor needs several turns for the output, so the exit can come between them.
    one_byte_a_turn = mock.patch.object(job_module, "READ_MAX_BYTES", 1)
    with one_byte_a_turn, a_worker(process, kernel=kernel) as worker:
        job_id = start_job(worker)

        def follower() -> None:
            assert wait_for_end(worker, job_id).state is State.EXITED
            assert output(worker, job_id) == b"out", "output is missing after the end"

        run_threads(process.write_and_exit, follower)


class JobModel(Model):
    """The sequential model of a job: it runs until it is stopped, and has one final status."""

    name = "job"

    def init(self) -> str:
        return State.RUNNING

    def step(self, state: str, operation: Operation) -> tuple[bool, str]:
        if operation.f == "stop":
            return operation.output == State.SIGNALED, operation.output
        return operation.output == state, state


def a_job_has_one_history() -> None:
    kernel = Kernel()
    history = OperationHistory()
    with a_worker(FakeProcess(kernel), kernel=kernel) as worker:
        job_id = start_job(worker)

        def stopper() -> None:
            history.call("stopper", "stop", None, lambda: worker.stop(job_id).state)

        def querier() -> None:
            for _ in range(2):
                history.call("querier", "query", None, lambda: worker.query(job_id).state)

        run_threads(stopper, querier)
    history.require_linearizable(JobModel())


scenario = partial(Scenario, explores=(job_module,), watch=WATCH)


SCENARIOS = (
    scenario(
        "job.stop-exit", "A stop concurrent with the exit returns the final status.",
        a_stop_races_with_the_end,
    ),
    scenario(
        "job.start-stop", "A job that is stopped before the reactor watches it keeps its output.",
        a_stop_races_with_the_start,
    ),
    scenario(
        "job.two-stops", "Two stops return the same status, without a time-out.", two_stops,
    ),
    scenario(
        "job.query-exit", "A job that has ended never runs again.",
        a_query_against_the_end,
    ),
    scenario(
        "job.stream-exit", "A follower at the output's end has all of it, and the final status.",
        a_stream_against_the_end,
    ),
    scenario(
        "job.history", "A stop and queries are linearizable: one order explains every answer.",
        a_job_has_one_history, linearizable=True,
    ),
)  # fmt: skip
