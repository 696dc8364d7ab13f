"""Closing a real worker with a real reactor, concurrently with every other operation."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

from harness.races.exploration import atomic_step
from harness.races.instrumentation import Watch
from harness.races.scenario import Scenario
from tests.races.scenarios import job as jobs
from tests.races.scenarios.job import GRACE_S, a_worker, output, start_job
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
def make_callbacks_atomic() -> Iterator[None]:
    """Make each callback of the reactor one step: job.* explores switches within them."""
    call = Reactor._call

    def at_once(callback: Callable[[], None]) -> bool:
        with atomic_step(switch_before=False):
            return call(callback)

    with mock.patch.object(Reactor, "_call", staticmethod(at_once)):
        yield


@contextmanager
def a_job(
    words: bytes = b"", last_words: bytes = b""
) -> Iterator[tuple[Worker, str, FakeProcess, Callable[[], None]]]:
    """Yield a worker with one job, its process, and a function that closes the worker.

    No thread may wait for a time-out.
    """
    kernel = Kernel()
    process = FakeProcess(kernel, words, last_words)
    with make_callbacks_atomic(), a_worker(process, kernel=kernel) as worker:
        job_id = start_job(worker)
        # On the schedule's clock: until the reactor waits too.
        threading.Event().wait(1)

        def closer() -> None:
            worker.close(GRACE_S)

        begun_s = time.monotonic()
        yield worker, job_id, process, closer
        assert worker.running() == 0, "a job outlives the worker"
        assert time.monotonic() == begun_s, "a thread waited for a time-out"


def a_close_against_a_stop() -> None:
    with a_job() as (worker, job_id, _, closer):
        stopped: list[JobStatus] = []

        def stopper() -> None:
            stopped.append(worker.stop(job_id))

        run_threads(closer, stopper)
        assert stopped == [worker.query(job_id)], (
            "a stop returned another status than the final one"
        )
        assert stopped[0].signal == 15


def a_close_against_queries() -> None:
    with a_job() as (worker, job_id, _, closer):
        seen: list[JobStatus] = []

        def querier() -> None:
            seen.append(worker.query(job_id))
            seen.extend(status for _, status in worker.list_jobs())

        run_threads(closer, querier)
        assert len(seen) == 2, "a job that was started is not listed"
        ended = [each.ended_at_s is not None for each in seen]
        assert ended == sorted(ended), "a job that had ended runs again"


def a_close_against_a_follower() -> None:
    with a_job(last_words=b"term") as (worker, job_id, _, closer):
        reader = worker.log(job_id).reader_at(0)

        def follower() -> None:
            reader.wait(1_000_000)  # more than all output: waits for the end

        run_threads(closer, follower)
        assert reader.pending_bytes() == (4, True), "output is missing at the end"
        assert output(worker, job_id) == b"term"


def a_close_against_an_exit() -> None:
    with a_job(b"end", b"term") as (worker, job_id, process, closer):
        run_threads(closer, process.write_and_exit)
        last = worker.query(job_id)
        seen = (last.state, last.signal, output(worker, job_id))
        assert seen in {(State.EXITED, 0, b"end"), (State.SIGNALED, 15, b"term")}, seen


scenario = partial(Scenario, explores=(worker_module,), watch=WATCH)


SCENARIOS = (
    scenario(
        "close.stop", "A stop during a close returns the final status, without a time-out.",
        a_close_against_a_stop,
    ),
    scenario(
        "close.query", "Every job can be queried and listed while the worker closes.",
        a_close_against_queries,
    ),
    scenario(
        "close.follow", "A follower of a job that a close stops gets all of its output.",
        a_close_against_a_follower,
    ),
    scenario(
        "close.exit", "A job that exits during a close has one final status, and its output.",
        a_close_against_an_exit,
    ),
)  # fmt: skip
