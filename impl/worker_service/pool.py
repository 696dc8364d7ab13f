"""The threads that run calls."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any, override

from worker_service.errors import HostExhaustedError

logger = logging.getLogger(__name__)


class Pool(Executor):
    """Runs every call on its own thread, up to a maximum; more calls wait for one to end.

    Guarantees:
    - A call waits only if the maximum of threads, or as many as the host allows, are busy. The
      standard library's pool can count a busy thread as idle; this one counts unfinished calls.
    - A thread is started only if all others but the spare ones are busy. None ends before the
      shutdown: an idle one costs 16 KiB, and a client that could make threads end and start could
      slow down others.
    - If the host allows no more threads, calls wait for the existing ones. An error would end
      gRPC's one thread that accepts calls, and no call would ever be answered. `idle_threads` says
      how many are left, so that calls which may hold one for long can be refused in time.
    - Whatever a call raises is in its future, and does not end a thread. A thread is counted as
      free just before the future's callbacks run, so these must not wait.

    Shared state and its guard: `_unfinished`, `_threads`, `_short`, `_closed` and `_warned` under
    `_lock`.

    Args:
        threads_max: how many threads to start at most.
        spare_threads: how many to keep idle, for when the host allows no more.

    Raises:
        HostExhaustedError: not even one thread can be started.
    """

    def __init__(self, threads_max: int, spare_threads: int = 0) -> None:
        self._threads_max = threads_max
        self._spare_threads = spare_threads
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._unfinished = 0
        self._threads: list[threading.Thread] = []
        self._short = False
        self._closed = False
        self._warned = False
        self._start_threads()

    @override
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("a call after the shutdown of the pool")
            self._unfinished += 1
            self._start_threads()
            self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse more calls, and end each thread once no call is left for it.

        Args:
            wait: return when all threads have ended.
            cancel_futures: cancel the calls that wait for a thread.
        """
        waiting = []
        with self._lock:
            self._closed = True
            if cancel_futures:
                with suppress(queue.Empty):
                    while True:
                        waiting.append(self._calls.get_nowait())
            for _ in self._threads:
                self._calls.put(None)
        for call in filter(None, waiting):
            call[0].cancel()
        if wait:
            for thread in self._threads:
                thread.join()

    def idle_threads(self) -> int | None:
        """Return how many threads are idle if the host allows no more; None: it does."""
        with self._lock:
            return len(self._threads) - self._unfinished if self._short else None

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads after a shutdown; return whether all have ended."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start_threads(self) -> None:
        wanted = min(max(1, self._unfinished + self._spare_threads), self._threads_max)
        self._short = False
        while len(self._threads) < wanted and not self._short:
            self._short = not self._start_thread()

    def _start_thread(self) -> bool:
        # A daemon: a server that was never stopped does not keep the program from ending.
        name = f"rpc_{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise HostExhaustedError(f"a thread for calls: {error}") from error
            if not self._warned:
                self._warned = True
                logger.warning(
                    "only %d threads for calls could be started (%s); more calls wait: raise the "
                    "limit of processes (ulimit -u, pids.max, TasksMax=)",
                    len(self._threads), error,
                )  # fmt: skip
            return False
        self._threads.append(thread)
        return True

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._settle(*call)
            del call  # it holds the request and the response

    def _settle[T](self, future: Future[T], work: Callable[[], T]) -> None:
        report: Callable[[], None] | None = None
        if future.set_running_or_notify_cancel():
            try:
                report = partial(future.set_result, work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is wanted
                report = partial(future.set_exception, error)
        with self._lock:
            self._unfinished -= 1
        if report is not None:
            report()
        del report  # an error refers to this frame
