"""One thread that waits for descriptors and timers, and calls back, without polling.

No callback can stop the thread or keep it busy: one that raises is logged, and its descriptor is no
longer watched, since its event would return at once. `Guarded` also reports it to its owner, which
no event may reach any more.

Shared state and its guard: other threads submit work through `call_soon`, by a thread-safe deque
and an eventfd, and `watch` descriptors: `_callbacks` is guarded by `_lock`, which also orders what
a thread did before it watched, and the first event. Everything else is used by the reactor's thread
only.
"""

import heapq
import itertools
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

logger = logging.getLogger(__name__)

Callback = Callable[[], None]

READABLE: Final = select.EPOLLIN
PRIORITY: Final = select.EPOLLPRI

# Callbacks handled before the next poll: bounds the delay that one burst can cause.
_MAX_EVENTS: Final = 64
# epoll_wait(2) counts milliseconds in 31 bits, 24 days: a longer wait takes several polls.
_POLL_MAX_S: Final = 24 * 3600.0


class Timer:
    """A callback in the future, until it is cancelled."""

    __slots__ = ("callback", "due_s")

    def __init__(self, due_s: float, callback: Callback) -> None:
        self.due_s = due_s
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Disarm the timer. Reactor's thread only."""
        self.callback = None


class Scheduler(Protocol):
    """The part of a reactor that a job uses; tests provide their own."""

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call back while the descriptor has one of the events (level-triggered).

        Raises:
            OSError: the kernel refuses, for example beyond its limit of watches (epoll_ctl(2)).
        """

    def unwatch(self, fd: int) -> None:
        """Stop watching, if it is watched; must be called before the descriptor is closed."""

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Call back once, after a delay."""


class Guarded:
    """A scheduler for one owner, to whom every failure of a callback is reported.

    Args:
        scheduler: calls back.
        report: called instead of logging, on the same thread.
    """

    def __init__(self, scheduler: Scheduler, report: Callable[[Exception], None]) -> None:
        self._scheduler = scheduler
        self._report = report

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """See `Scheduler.watch`."""
        self._scheduler.watch(fd, events, self._guard(callback))

    def unwatch(self, fd: int) -> None:
        """See `Scheduler.unwatch`."""
        self._scheduler.unwatch(fd)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """See `Scheduler.call_later`."""
        return self._scheduler.call_later(delay_s, self._guard(callback))

    def _guard(self, callback: Callback) -> Callback:
        def call() -> None:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - whatever it is, the owner handles it
                self._report(error)

        return call


class Reactor:
    """An epoll loop on a thread of its own. `unwatch` and `call_later`: that thread only."""

    def __init__(self, name: str = "reactor") -> None:
        self._epoll = select.epoll()
        self._wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Open as long as any thread may submit work: after `stop` its number could be reused.
        weakref.finalize(self, os.close, self._wakeup_fd)
        self._epoll.register(self._wakeup_fd, READABLE)
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callback] = {}
        self._unwatched: set[int] = set()  # since the last poll
        self._soon: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_order = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call_soon(self, callback: Callback) -> None:
        """Run a callback on the reactor's thread, unless it has ended; from any thread."""
        self._soon.append(callback)
        os.eventfd_write(self._wakeup_fd, 1)

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """See `Scheduler.watch`."""
        with self._lock:  # an event waits for it: without its callback it would return at once
            self._epoll.register(fd, events)
            self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """See `Scheduler.unwatch`."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None:
                self._unwatched.add(fd)
                self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """See `Scheduler.call_later`."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.due_s, next(self._timer_order), timer))
        return timer

    def stop(self, timeout_s: float) -> None:
        """End the thread after the work submitted before.

        Raises:
            TimeoutError: a callback did not return in time; the thread still runs.
        """

        def set_stopping() -> None:
            self._stopping = True

        self.call_soon(set_stopping)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the reactor did not stop within {timeout_s} s")
        self._epoll.close()

    def _run(self) -> None:
        while not self._stopping:
            self._unwatched.clear()
            for fd, _ in self._epoll.poll(self._timeout_s(), _MAX_EVENTS):
                if fd == self._wakeup_fd:
                    os.eventfd_read(fd)
                    continue
                # An earlier callback of this round unwatched it, and another thread may reuse its
                # number and be about to watch that: an event of the new one comes again.
                if fd in self._unwatched:
                    continue
                with self._lock:
                    callback = self._callbacks.get(fd)
                if callback is not None and not self._call(callback):
                    self._call(lambda fd=fd: self.unwatch(fd))  # type: ignore[misc]
            for _ in range(len(self._soon)):
                self._call(self._soon.popleft())
            self._run_due_timers()

    def _timeout_s(self) -> float | None:
        if self._soon:
            return 0.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return min(max(0.0, self._timers[0][0] - time.monotonic()), _POLL_MAX_S)

    def _run_due_timers(self) -> None:
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            _, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._call(timer.callback)

    @staticmethod
    def _call(callback: Callback) -> bool:
        """Return whether the callback succeeded."""
        try:
            callback()
        except Exception:
            # One job's error must not end the output of all others: log it, with its trace.
            logger.exception("a callback of the reactor failed")
            return False
        return True
