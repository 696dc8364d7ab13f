"""The threads that calls run on."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import override

from worker_service.errors import HostExhaustedError

logger = logging.getLogger(__name__)


class Pool(ThreadPoolExecutor):
    """Has a thread for every call, up to its maximum; calls beyond that wait for one to end.

    The base counts idle threads, and may count one too many: one that finds no work tells so after
    it has been given some. A call could then wait for the end of a stream while threads were left
    to start. Here the calls that have not ended are counted instead.

    Where the host gives no more threads, calls wait for those that there are. Without that, gRPC's
    one thread that takes calls would die of it, and no call ever be answered.

    Shared state and its guard: `_unfinished` under `_lock`; all else under the base's own locks.

    Raises:
        HostExhaustedError: not even one thread can be started.
    """

    def __init__(self, threads_max: int) -> None:
        super().__init__(threads_max, thread_name_prefix="rpc")
        self._idle_semaphore = _NeverIdle()  # type: ignore[assignment] # it has what is called
        self._lock = threading.Lock()
        self._unfinished = 0
        self._told = False
        self.submit(lambda: None)

    @override
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            self._unfinished += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:  # told that the pool is shut down, or has no thread at all
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
            if not self._told:
                self._told = True
                logger.warning(
                    "no more than %d threads for calls can be started (%s); calls wait for them: "
                    "raise the limit of processes (ulimit -u, pids.max, TasksMax=)",
                    len(self._threads), error,
                )  # fmt: skip


class _NeverIdle:
    """In place of the base's count, a semaphore: whoever asks it for an idle thread gets none."""

    def acquire(self, timeout: float) -> bool:
        del timeout
        return False

    def release(self) -> None:
        """Forget it: that a thread is idle says nothing of the calls that have not ended."""
