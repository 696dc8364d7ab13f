"""Calls back when time is up, on one thread for all.

Shared state and its guard: `_due_at_s`, `_wakes_at_s` and `_closed` under `_condition`. Callbacks
run outside of it, so one may still run while its `calling` ends, and must do no harm then.
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

# What is due so soon after the first is taken along: a thousand streams that look at the deny list
# wake the thread ten times a second, and not a thousand times.
_TOGETHER_S: Final = 0.1


class Timers:
    """What is to happen unless something else ends before. `close` it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._due_at_s: dict[Callback, float] = {}
        self._wakes_at_s = math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rpc_timers", daemon=True)
        self._thread.start()

    @contextmanager
    def calling(self, callback: Callback, after_s: float) -> Iterator[None]:
        """Call back in `after_s` seconds, and then in those that it returns, until the block ends.

        Each block has a callback of its own. A call may come `_TOGETHER_S` early; `math.inf` is
        never. A block costs no more than its lock: the thread is not woken for one that is due
        later than another, nor by its end.
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
        """End the thread; nothing is called from then on."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while due := self._wait():
            for callback in due:
                after_s = _call(callback)
                with self._condition:
                    if callback in self._due_at_s:
                        self._due_at_s[callback] = time.monotonic() + after_s

    def _wait(self) -> list[Callback]:
        """Wait for what is due next; return nothing when closed."""
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
        # The thread is everybody's: one call's trouble must not leave all others without bounds.
        logger.exception("unexpected error in a timer; the others go on")
        return math.inf
