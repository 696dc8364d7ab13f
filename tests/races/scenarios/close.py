"""The shutdown of a real worker with a real reactor, against all that may go on meanwhile."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from harness.races.exploration import one_step
from harness.races.instrumentation import Watch
from harness.races.scenario import Scenario
from tests.races.scenarios import job as jobs
from tests.races.scenarios.job import GRACE_S, a_worker, output, started
from tests.races.support import FakeProcess, Kernel, run_threads
from worker_service import worker as worker_module
from worker_service.job import JobStatus, State
from worker_service.reactor import Reactor
from worker_service.worker import Worker

WATCH = Watch(
    jobs.WATCH.classes,
    jobs.WATCH.atomic,
    settled={**jobs.WATCH.settled, "Job._status": "job.query-exit, job.stream-exit"},
)


@contextmanager
def callbacks_at_once() -> Iterator[None]:
    """Let a turn of the reactor be one step: what comes in between is explored in job.*."""
    call = Reactor._call

    def at_once(callback: Callable[[], None]) -> None:
        with one_step(of_its_own=False):
            call(callback)

    with mock.patch.object(Reactor, "_call", staticmethod(at_once)):
        yield


@contextmanager
def a_job(
    words: bytes = b"", last_words: bytes = b""
) -> Iterator[tuple[Worker, str, FakeProcess, Callable[[], None]]]:
    """Give a worker with one job, its process, and what closes the worker; nobody may be late."""
    kernel = Kernel()
    process = FakeProcess(kernel, words, last_words)
    with callbacks_at_once(), a_worker(process, kernel=kernel) as worker:
        job_id = started(worker)
        # Of the schedule's clock: until the reactor waits, too.
        threading.Event().wait(1)

        def closer() -> None:
            worker.close(GRACE_S)

        begun_s = time.monotonic()
        yield worker, job_id, process, closer
        assert worker.running() == 0, "a job outlives the worker"
        assert time.monotonic() == begun_s, "somebody waited for a time-out"


def a_close_against_a_stop() -> None:
    with a_job() as (worker, job_id, _, closer):
        stopped: list[JobStatus] = []

        def stopper() -> None:
            stopped.append(worker.stop(job_id))

        run_threads(closer, stopper)
        assert stopped == [worker.query(job_id)], "a stop told another end than the one that stays"
        assert stopped[0].signal == 15


def a_close_against_queries() -> None:
    with a_job() as (worker, job_id, _, closer):
        seen: list[JobStatus] = []

        def asker() -> None:
            seen.append(worker.query(job_id))
            seen.extend(worker.list_jobs())

        run_threads(closer, asker)
        assert len(seen) == 2, "a job that was started is not listed"
        ended = [each.ended_at_s is not None for each in seen]
        assert ended == sorted(ended), "a job that had ended runs again"


def a_close_against_a_follower() -> None:
    with a_job(last_words=b"term") as (worker, job_id, _, closer):
        reader = worker.log(job_id).reader_at(0)

        def follower() -> None:
            reader.wait(1_000_000)  # more than ever comes: until the end

        run_threads(closer, follower)
        assert reader.pending_bytes() == (4, True), "output is missing at the end"
        assert output(worker, job_id) == b"term"


def a_close_against_an_exit() -> None:
    with a_job(b"end", b"term") as (worker, job_id, process, closer):
        run_threads(closer, process.run_to_its_end)
        last = worker.query(job_id)
        told = (last.state, last.signal, output(worker, job_id))
        assert told in {(State.EXITED, 0, b"end"), (State.SIGNALED, 15, b"term")}, told


def scenario(name: str, promise: str, model: Callable[[], None]) -> Scenario:
    return Scenario(name, promise, model, (worker_module,), WATCH)


SCENARIOS = (
    scenario(
        "close.stop", "A stop against a close tells the end that stays, at once.",
        a_close_against_a_stop,
    ),
    scenario(
        "close.query", "Every job can be queried and listed while the worker closes.",
        a_close_against_queries,
    ),
    scenario(
        "close.follow", "Who follows a job that a close ends has all of its output, and its end.",
        a_close_against_a_follower,
    ),
    scenario(
        "close.exit", "A job that exits while the worker closes has one end, with its output.",
        a_close_against_an_exit,
    ),
)  # fmt: skip
