"""The search of everything: its strategy, and primitives that let others in where that can matter.

With `exploration` the only module that knows the library `interleave-test`.

One point before each operation is enough. What a thread does between two operations of primitives
touches nothing that races (see `points` for what does), so nobody can tell whether another thread
came in right after one operation or right before the next.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import interleave_test
from interleave_test import no_interleave

PREEMPTIONS: Final = 2


def let_others_in() -> None:
    """Be a point."""
    # Clearing an event that nobody waits for does nothing else.
    interleave_test.Event().clear()  # type: ignore[no-untyped-call]


class Search(interleave_test.DFSStrategy):
    """Every schedule with at most `PREEMPTIONS`, until something races that was not known to."""

    def __init__(self, known: frozenset[str], learnt: set[str]) -> None:
        super().__init__(max_preemptions=PREEMPTIONS)
        self._known = known
        self._learnt = learnt

    def more(self) -> bool | None:
        """See the library."""
        return self._known == self._learnt and super().more()

    def pick(self, runnable: Any, current: Any, index: int) -> Any:  # noqa: ANN401 - the library's
        """See the library: at a mere line the thread goes on, and the line is part of the story."""
        # The place of a point is a text; that of a line, or of an instruction, is not.
        if current is not None and not isinstance(current.last_location, str):
            return current
        return super().pick(runnable, current, index)


class _Lock(interleave_test.Lock):
    def release(self) -> None:
        with no_interleave():
            super().release()


class _RLock(interleave_test.RLock):
    def release(self) -> None:
        with no_interleave():
            super().release()


class _Condition(interleave_test.Condition):
    # Who notifies holds the lock: whoever is woken by it can do nothing before that is released.
    def notify(self, n: int = 1) -> None:
        with no_interleave():
            super().notify(n)

    def notify_all(self) -> None:
        with no_interleave():
            super().notify_all()


class _Event(interleave_test.Event):
    def is_set(self) -> bool:
        let_others_in()
        return super().is_set()

    def set(self) -> None:
        let_others_in()
        with no_interleave():
            super().set()

    def clear(self) -> None:
        let_others_in()
        with no_interleave():
            super().clear()


class _Semaphore(interleave_test.Semaphore):
    def release(self, n: int = 1) -> None:
        let_others_in()
        with no_interleave():
            super().release(n)


_PRIMITIVES: Final = {
    "Lock": _Lock,
    "RLock": _RLock,
    "Condition": _Condition,
    "Event": _Event,
    "Semaphore": _Semaphore,
}


@contextmanager
def one_point_each() -> Iterator[None]:
    """Make `threading` offer these primitives until the end."""
    before = {name: getattr(threading, name) for name in _PRIMITIVES}
    for name, primitive in _PRIMITIVES.items():
        setattr(threading, name, primitive)
    try:
        yield
    finally:
        for name, primitive in before.items():
            setattr(threading, name, primitive)
