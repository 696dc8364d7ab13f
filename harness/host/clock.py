"""Deadlines, and the only place that may sleep."""

import time
from collections.abc import Callable
from typing import Final

from harness.record.verdict import BrokenError

_STEP_S: Final = 0.05


class Deadline:
    """A moment in the future, on the clock that nobody sets."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._due_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._due_s - time.monotonic())

    def passed(self) -> bool:
        """Tell whether it has passed."""
        return self.left_s() == 0.0


def poll_until[Result](
    look: Callable[[], Result | None],
    timeout_s: float,
    what: str,
    explain: Callable[[], str] = str,
) -> Result:
    """Look again and again until there is something to see: for what has no event to wait for.

    Raises:
        BrokenError: it did not come in time; says what was waited for, and what `explain` adds.
    """
    deadline = Deadline(timeout_s)
    while True:
        result = look()
        if result is not None:
            return result
        if deadline.passed():
            raise BrokenError(f"waited {timeout_s:g} s for {what}\n{explain()}")
        time.sleep(min(_STEP_S, deadline.left_s()))


def came_true(look: Callable[[], bool], timeout_s: float) -> float | None:
    """Look until something is true; return after how many seconds, or None if not in time.

    For what the server promises to bring about: that it did not is a finding, not a fault of ours.
    """
    started_s = time.monotonic()
    deadline = Deadline(timeout_s)
    while not look():
        if deadline.passed():
            return None
        time.sleep(min(_STEP_S, deadline.left_s()))
    return time.monotonic() - started_s


def measured_window(seconds: float) -> None:
    """Let a time pass that is itself what is measured; never to wait for something to happen."""
    time.sleep(seconds)
