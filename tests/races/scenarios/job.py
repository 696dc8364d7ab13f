"""Jobs under a real worker and reactor: exit, stop, query and streams against each other."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from harness.races.instrumentation import Watch
from harness.races.linearizability import History, Model, Operation
from harness.races.scenario import Scenario
from tests.races.support import (
    FakeProcess,
    Kernel,
    modelled,
    run_threads,
    work_handed_in_at_once,
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
        "reader gets the one before or the one after, and both are true",
    },
    settled={"Reactor._soon": "reactor.call-soon and reactor.order"},
)
COMMAND = Command("fake", ())
GRACE_S = 5.0


@contextmanager
def a_worker(*processes: FakeProcess, kernel: Kernel) -> Iterator[Worker]:
    with modelled(kernel, iter(processes)), work_handed_in_at_once():
        worker = Worker(WorkerSettings(stop_grace_s=GRACE_S), hierarchy=None)
        yield worker
        worker.close(0)
    for process in processes:
        assert process.reaped == 1, "a job has ended and its process is not reaped"


def started(worker: Worker) -> str:
    """Start a job, and wait until the reactor follows it."""
    job_id = worker.start(COMMAND).job_id
    follows = threading.Event()
    worker._reactor.call_soon(follows.set)
    follows.wait()
    return job_id


def final(worker: Worker, job_id: str) -> JobStatus:
    """Wait for the end of a job's output; its status must be final by then."""
    reader = worker.log(job_id).reader_at(0)
    while not reader.pending_bytes()[1]:
        reader.wait(1_000_000)
    status = worker.query(job_id)
    assert status.ended_at_s is not None, "the output has ended, the status says running"
    return status


def output(worker: Worker, job_id: str) -> bytes:
    return worker.log(job_id).reader_at(0).read(100).data


def a_stop_races_with_the_end() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel, words=b"end", last_words=b"term")
    with a_worker(process, kernel=kernel) as worker:
        job_id = started(worker)
        stopped: list[JobStatus] = []

        def stopper() -> None:
            stopped.append(worker.stop(job_id))

        run_threads(process.run_to_its_end, stopper)
        last = final(worker, job_id)
        assert stopped == [last], "a stop told another end than the one that stays"
        told = (last.state, last.signal, output(worker, job_id))
        assert told in {(State.EXITED, 0, b"end"), (State.SIGNALED, 15, b"term")}, told


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
        job_id = started(worker)
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
        job_id = started(worker)
        seen: list[JobStatus] = []

        def asker() -> None:
            seen.extend(worker.query(job_id) for _ in range(2))

        run_threads(process.run_to_its_end, asker)
        ended = [each.ended_at_s is not None for each in seen]
        assert ended == sorted(ended), "a job that had ended runs again"


def a_stream_against_the_end() -> None:
    kernel = Kernel()
    process = FakeProcess(kernel, words=b"out")
    # So that the output takes the reactor several turns, and the end comes between them.
    one_byte_a_turn = mock.patch.object(job_module, "SPLICE_MAX_BYTES", 1)
    with one_byte_a_turn, a_worker(process, kernel=kernel) as worker:
        job_id = started(worker)

        def follower() -> None:
            assert final(worker, job_id).state is State.EXITED
            assert output(worker, job_id) == b"out", "output is missing behind the end"

        run_threads(process.run_to_its_end, follower)


class JobModel(Model):
    """One job in sequence: it runs until it is stopped, and has one end."""

    name = "job"

    def init(self) -> str:
        return State.RUNNING

    def step(self, state: str, operation: Operation) -> tuple[bool, str]:
        if operation.f == "stop":
            return operation.output == State.SIGNALED, operation.output
        return operation.output == state, state


def a_job_has_one_history() -> None:
    kernel = Kernel()
    history = History()
    with a_worker(FakeProcess(kernel), kernel=kernel) as worker:
        job_id = started(worker)

        def stopper() -> None:
            history.call("stopper", "stop", None, lambda: worker.stop(job_id).state)

        def asker() -> None:
            for _ in range(2):
                history.call("asker", "query", None, lambda: worker.query(job_id).state)

        run_threads(stopper, asker)
    history.must_be_linearizable(JobModel())


SCENARIOS = (
    Scenario(
        "job.stop-exit", "A stop that races with the end tells the end that stays.",
        a_stop_races_with_the_end, (job_module,), WATCH,
    ),
    Scenario(
        "job.start-stop", "A job is stopped before it is followed, and its output is kept.",
        a_stop_races_with_the_start, (job_module,), WATCH,
    ),
    Scenario(
        "job.two-stops", "Two stops tell one end, at once.", two_stops, (job_module,), WATCH,
    ),
    Scenario(
        "job.query-exit", "A job that was seen to have ended has ended for good.",
        a_query_against_the_end, (job_module,), WATCH,
    ),
    Scenario(
        "job.stream-exit", "Who sees the output's end has all of it, and finds the final status.",
        a_stream_against_the_end, (job_module,), WATCH,
    ),
    Scenario(
        "job.history", "A stop and queries have one order that explains every answer.",
        a_job_has_one_history, (job_module,), WATCH, linearizable=True,
    ),
)  # fmt: skip
