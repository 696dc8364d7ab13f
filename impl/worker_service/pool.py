"""The thread pool that runs calls."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import override

from worker_service.errors import HostExhaustedError

logger = logging.getLogger(__name__)


class Pool(ThreadPoolExecutor):
    """Runs every call on its own thread, up to a maximum; more calls wait for one to end.

    The base class counts idle threads, and may count one too many: a thread that finds no work
    reports so after work was queued for it. A call could then wait for the end of a stream although
    more threads could be started. This class counts the unfinished calls instead.

    If the host allows no more threads, calls wait for the existing ones. Otherwise the error would
    end gRPC's one thread that accepts calls, and no call would ever be answered.

    Shared state and its guard: `_unfinished` under `_lock`; all else under the base's own locks.

    Raises:
        HostExhaustedError: not even one thread can be started.
    """

    def __init__(self, threads_max: int) -> None:
        super().__init__(threads_max, thread_name_prefix="rpc")
        self._idle_semaphore = _NeverIdle()  # type: ignore[assignment] # has the methods used
        self._lock = threading.Lock()
        self._unfinished = 0
        self._warned = False
        self.submit(lambda: None)

    @override
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            self._unfinished += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:  # the pool is shut down, or has no thread at all
            self._finish()
            raise
        future.add_done_callback(self._finish)
        return future

    def _finish(self, _: object = None) -> None:
        with self._lock:
            self._unfinished -= 1

    def _adjust_thread_count(self) -> None:
        with self._lock:
            if self._unfinished <= len(self._threads):
                return
        try:
            super()._adjust_thread_count()
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


class _NeverIdle:
    """Replaces the base class's semaphore of idle threads: it never reports one."""

    def acquire(self, timeout: float) -> bool:
        del timeout
        return False

    def release(self) -> None:
        """Ignore an idle thread: it does not show how many calls are unfinished."""
