"""Deadlines, and the only place that may sleep."""

import time
from collections.abc import Callable
from typing import Final

from harness.record.verdict import BrokenError

_STEP_S: Final = 0.05


class Deadline:
    """A moment in the future, on the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._due_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._due_s - time.monotonic())

    def passed(self) -> bool:
        """Return whether it has passed."""
        return self.left_s() == 0.0


def poll_until[Result](
    look: Callable[[], Result | None],
    timeout_s: float,
    what: str,
    explain: Callable[[], str] = str,
) -> Result:
    """Call `look` until it returns something else than None, where no event can be waited for.

    Args:
        look: what to call.
        timeout_s: bound.
        what: what is waited for, for the error.
        explain: called for more details when it times out.

    Raises:
        BrokenError: it timed out.
    """
    deadline = Deadline(timeout_s)
    while True:
        result = look()
        if result is not None:
            return result
        if deadline.passed():
            raise BrokenError(f"timed out after {timeout_s:g} s waiting for {what}\n{explain()}")
        time.sleep(min(_STEP_S, deadline.left_s()))


def seconds_until(look: Callable[[], bool], timeout_s: float) -> float | None:
    """Return how many seconds it took until a condition was true, or None if it timed out.

    For what the server promises: a timeout is then a finding, not a fault of the harness.
    """
    started_s = time.monotonic()
    deadline = Deadline(timeout_s)
    while not look():
        if deadline.passed():
            return None
        time.sleep(min(_STEP_S, deadline.left_s()))
    return time.monotonic() - started_s


def measured_window(seconds: float) -> None:
    """Let a measured period pass; never use it to wait for something to happen."""
    time.sleep(seconds)
