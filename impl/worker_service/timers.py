"""Timed callbacks on one shared thread.

Shared state and its guard: `_due_at_s`, `_wakes_at_s` and `_closed` under `_condition`. Callbacks
run without it, so one may still run while its `calling` ends, and must be harmless then.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

logger = logging.getLogger(__name__)

type Callback = Callable[[], float]

# Callbacks due this soon after the first are called with it: a thousand streams that check the deny
# list wake the thread ten times a second, not a thousand times.
_TOGETHER_S: Final = 0.1
# How long `close` waits for a callback: one reads the deny list, on a file system that may hang.
CLOSE_MAX_S: Final = 2.0


class Timers:
    """Callbacks that are due after a delay unless a block ends first. `close` it after use."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._due_at_s: dict[Callback, float] = {}
        self._wakes_at_s = math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rpc_timers", daemon=True)
        self._thread.start()

    @contextmanager
    def calling(self, callback: Callback, after_s: float) -> Iterator[None]:
        """Call back after `after_s` seconds, then after those it returns, until the block ends.

        Each block needs its own callback. A call may be `_TOGETHER_S` early; `math.inf` means
        never. A block costs only its lock: the thread is not woken for one that is due later than
        another, nor when a block ends.
        """
        due_at_s = time.monotonic() + after_s
        with self._condition:
            self._due_at_s[callback] = due_at_s
            if due_at_s < self._wakes_at_s:
                self._wakes_at_s = due_at_s
                self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                del self._due_at_s[callback]

    def close(self) -> None:
        """End the thread; wait for a callback that runs, but not longer than `CLOSE_MAX_S`."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(CLOSE_MAX_S)

    def _run(self) -> None:
        while due := self._wait():
            for callback in due:
                after_s = _call(callback)
                with self._condition:
                    if callback in self._due_at_s:
                        self._due_at_s[callback] = time.monotonic() + after_s

    def _wait(self) -> list[Callback]:
        """Wait for the callbacks due next and return them; none once closed."""
        with self._condition:
            while not self._closed:
                now_s = time.monotonic()
                self._wakes_at_s = min(self._due_at_s.values(), default=math.inf)
                if self._wakes_at_s <= now_s:
                    limit_s = now_s + _TOGETHER_S
                    return [call for call, at_s in self._due_at_s.items() if at_s <= limit_s]
                self._condition.wait(min(self._wakes_at_s - now_s, threading.TIMEOUT_MAX))
            return []


def _call(callback: Callback) -> float:
    try:
        return callback()
    except Exception:
        # The thread is shared: one call's error must not leave all others without time limits.
        logger.exception("unexpected error in a timer; the others continue")
        return math.inf
