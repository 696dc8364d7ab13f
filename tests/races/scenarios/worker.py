"""The job table and the shutdown: start, list and close, with stand-ins for jobs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from unittest import mock

from harness.races.instrumentation import Watch
from harness.races.linearizability import Model, Operation, OperationHistory
from harness.races.scenario import Scenario
from tests.races.support import run_threads
from worker_service import worker as worker_module
from worker_service.errors import JobNotFoundError, ShuttingDownError
from worker_service.job import JobStatus
from worker_service.spawn import Command
from worker_service.worker import Worker, WorkerSettings

WATCH = Watch((Worker,))
COMMAND = Command("fake", ())


class StandInJob:
    """A stand-in for a job that only records its stop."""

    def __init__(self, status: JobStatus, **_parts: object) -> None:
        self._status = status
        self._stopped = False

    def begin(self) -> None:
        """See `Job.begin`."""

    def request_stop(self, _grace_s: float) -> None:
        """See `Job.request_stop`."""
        self._stopped = True

    def wait_ended(self, _timeout_s: float, _given_up: object = None) -> bool:
        """See `Job.wait_ended`."""
        return self._stopped

    def status(self) -> JobStatus:
        """See `Job.status`."""
        return self._status

    status_with_usage = status


class DirectReactor:
    """Runs each callback at once; reactor.* explores the real one."""

    def __init__(self, _name: str) -> None:
        pass

    def call_soon(self, callback: Callable[[], None]) -> None:
        """See `Reactor.call_soon`."""
        callback()

    def stop(self, timeout_s: float) -> None:
        """See `Reactor.stop`."""


@contextmanager
def a_worker() -> Iterator[Worker]:
    def spawn(_command: object, _cgroup: object, _user: object) -> tuple[int, object]:
        return os.devnull, SimpleNamespace(pid=4711)  # type: ignore[return-value]

    with (
        mock.patch.object(worker_module, "Job", StandInJob),
        mock.patch.object(worker_module, "Reactor", DirectReactor),
        mock.patch.object(worker_module, "_spawn_with_pipe", spawn),
    ):
        yield Worker(WorkerSettings(), hierarchy=None)


def a_list_against_a_start() -> None:
    with a_worker() as worker:
        known = [worker.start(COMMAND).job_id]

        def starter() -> None:
            known.append(worker.start(COMMAND).job_id)

        def lister() -> None:
            before = set(known)
            listed = {status.job_id for _, status in worker.list_jobs()}
            assert listed >= before, "a job that was started is not listed"

        run_threads(starter, lister)
        assert [status.job_id for _, status in worker.list_jobs()] == known


def close_against_starts(starters: int) -> Callable[[], None]:
    def model() -> None:
        begun: list[str] = []
        with a_worker() as worker:

            def starter() -> None:
                with suppress(ShuttingDownError):
                    begun.append(worker.start(COMMAND).job_id)

            def closer() -> None:
                worker.close(0)

            begun_s = time.monotonic()
            run_threads(*[starter] * starters, closer)
            assert time.monotonic() == begun_s, "close waited for a time-out"
            assert worker.running() == 0, "a job outlives the worker"
            assert len(list(worker.list_jobs())) == len(begun)

    return model


def two_closes() -> None:
    with a_worker() as worker:
        worker.start(COMMAND)

        def closer() -> None:
            worker.close(0)

        run_threads(closer, closer)
        assert worker.running() == 0, "a job outlives the worker"


class TableModel(Model):
    """The sequential model of the table: a started job is in it, and stays."""

    name = "table"

    def init(self) -> frozenset[str]:
        return frozenset()

    def step(self, state: frozenset[str], operation: Operation) -> tuple[bool, frozenset[str]]:
        if operation.f == "start":
            return operation.output not in state, state | {operation.output}
        if operation.f == "list":
            return operation.output == state, state
        return operation.output == (operation.arg in state), state


def the_table_has_an_order() -> None:
    history = OperationHistory()
    known: list[str] = []
    with a_worker() as worker:

        def start() -> str:
            known.append(worker.start(COMMAND).job_id)
            return known[-1]

        def is_there(job_id: str) -> bool:
            try:
                return worker.query(job_id).job_id == job_id
            except JobNotFoundError:
                return False

        def starter() -> None:
            history.call("starter", "start", None, start)

        def reader() -> None:
            listed = history.call(
                "reader", "list", None,
                lambda: frozenset(status.job_id for _, status in worker.list_jobs()),
            )  # fmt: skip
            for job_id in sorted(listed):
                history.call("reader", "query", job_id, lambda: is_there(job_id))  # noqa: B023 - called at once

        run_threads(starter, reader)
    history.require_linearizable(TableModel())


scenario = partial(Scenario, explores=(worker_module,), watch=WATCH)


SCENARIOS = (
    scenario("worker.list", "Every job that was started is listed.", a_list_against_a_start),
    scenario(
        "worker.table", "Starts, lists and queries are linearizable: one order explains all.",
        the_table_has_an_order, linearizable=True,
    ),
    scenario(
        "worker.close-start", "A start during a close is refused, or its job is ended.",
        close_against_starts(1),
    ),
    scenario(
        "worker.close-starts", "A close waits for every start in progress.",
        close_against_starts(2),
    ),
    scenario("worker.closes", "Two closes end every job.", two_closes),
)  # fmt: skip
