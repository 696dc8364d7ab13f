"""The exhaustive search: its strategy, and primitives that switch threads only where it matters.

This module and `exploration` are the only ones that import the library `interleave-test`.

One switch point before each operation is enough. Between two operations on primitives a thread
touches nothing that races (`switch_points` handles what does), so no other thread can distinguish a
switch right after one operation from a switch right before the next.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import interleave_test
from interleave_test import no_interleave

PREEMPTIONS: Final = 2


def switch_point() -> None:
    """Let the scheduler switch threads here."""
    # Clearing an event that no thread waits for has no other effect.
    interleave_test.Event().clear()  # type: ignore[no-untyped-call]


class ExhaustiveSearch(interleave_test.DFSStrategy):
    """Every schedule with at most `PREEMPTIONS`; ends early when a new racing variable is found."""

    def __init__(self, known: frozenset[str], learnt: set[str]) -> None:
        super().__init__(max_preemptions=PREEMPTIONS)
        self._known = known
        self._learnt = learnt

    def more(self) -> bool | None:
        """See the library."""
        return self._known == self._learnt and super().more()

    def pick(self, runnable: Any, current: Any, index: int) -> Any:  # noqa: ANN401 - the library's
        """See the library. Never switches at a plain line, which is only recorded as a step."""
        # The location of a switch point is a string; that of a line or an instruction is not.
        if current is not None and not isinstance(current.last_location, str):
            return current
        return super().pick(runnable, current, index)


class _SinglePointLock(interleave_test.Lock):
    def release(self) -> None:
        with no_interleave():
            super().release()


class _SinglePointRLock(interleave_test.RLock):
    def release(self) -> None:
        with no_interleave():
            super().release()


class _SinglePointCondition(interleave_test.Condition):
    # The notifying thread holds the lock, so a woken thread can do nothing before its release.
    def notify(self, n: int = 1) -> None:
        with no_interleave():
            super().notify(n)

    def notify_all(self) -> None:
        with no_interleave():
            super().notify_all()


class _SinglePointEvent(interleave_test.Event):
    def is_set(self) -> bool:
        switch_point()
        return super().is_set()

    def set(self) -> None:
        switch_point()
        with no_interleave():
            super().set()

    def clear(self) -> None:
        switch_point()
        with no_interleave():
            super().clear()


class _SinglePointSemaphore(interleave_test.Semaphore):
    def release(self, n: int = 1) -> None:
        switch_point()
        with no_interleave():
            super().release(n)


_PRIMITIVES: Final = {
    "Lock": _SinglePointLock,
    "RLock": _SinglePointRLock,
    "Condition": _SinglePointCondition,
    "Event": _SinglePointEvent,
    "Semaphore": _SinglePointSemaphore,
}


@contextmanager
def use_single_point_primitives() -> Iterator[None]:
    """Replace `threading`'s primitives by these within the context."""
    before = {name: getattr(threading, name) for name in _PRIMITIVES}
    for name, primitive in _PRIMITIVES.items():
        setattr(threading, name, primitive)
    try:
        yield
    finally:
        for name, primitive in before.items():
            setattr(threading, name, primitive)
