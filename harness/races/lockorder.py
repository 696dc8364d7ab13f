"""The order in which threads take locks, and where it turns in a circle.

An edge from A to B says that a thread took B while it held A. It is drawn before the thread may
block, so that a run that does hang has drawn it. A circle is told when each of its steps can be
another thread's at the same moment: no thread has two of them, and no lock is held at two of them,
for that lock would keep the threads apart (Goodlock: Havelund, SPIN 2000). To take again what one
holds (an `RLock`) waits for nobody, and draws nothing.

So that later threads count too, an edge is kept for each thread and each set of locks held, within
bounds: of a circle of more than `_CIRCLE_MAX_LOCKS` locks nothing is said.

Callers hold the detector's guard.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from harness.races.report import Frame, LockStep

_CIRCLE_MAX_LOCKS: Final = 5
# As many threads as a circle has steps, so each step finds one that has no other step.
_THREADS_MAX: Final = _CIRCLE_MAX_LOCKS
# Locks that are made and die while two others stay must not fill the memory.
_HELD_SETS_MAX: Final = 64

_numbers: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class _Edge:
    thread: int
    name: str
    stack: tuple[Frame, ...]
    held: frozenset[int]


# The edges from one lock to the next: by the numbers of the locks held, then by thread.
_Edges = dict[frozenset[int], dict[int, _Edge]]


@dataclass(eq=False, slots=True, weakref_slot=True)
class LockNode:
    """One lock.

    Attributes:
        made_at: where it was made, which is how people know it.
        number: its own for ever, unlike an id.
        after: the locks that were taken while it was held; they are forgotten when they die.
    """

    made_at: str
    number: int = field(default_factory=lambda: next(_numbers))
    after: "weakref.WeakKeyDictionary[LockNode, _Edges]" = field(
        default_factory=weakref.WeakKeyDictionary
    )


class LockOrder:
    """The graph of all locks of a run."""

    def taking(
        self,
        node: LockNode,
        held: Sequence[LockNode],
        thread: tuple[int, str],
        stack: Callable[[], tuple[Frame, ...]],
    ) -> tuple[LockStep, ...]:
        """Draw the edges to a lock that is about to be taken; return a circle that they close.

        Args:
            node: that lock.
            held: the locks that the thread holds.
            thread: its number, which no other has, and its name.
            stack: where it stands; asked only if the edge is new.
        """
        if node in held:
            return ()
        numbers = frozenset(lock.number for lock in held)
        found: tuple[LockStep, ...] = ()
        for holder in held:
            edges = holder.after.setdefault(node, {})
            if numbers not in edges and len(edges) == _HELD_SETS_MAX:
                continue
            of_threads = edges.setdefault(numbers, {})
            if thread[0] in of_threads or len(of_threads) == _THREADS_MAX:
                continue
            edge = of_threads[thread[0]] = _Edge(*thread, stack(), numbers)
            if not found and _leads_to(node, holder):
                circle = next(_circles([(holder, node, edge)]), ())
                found = tuple(_step(*step) for step in circle)
        return found


_Step = tuple[LockNode, LockNode, _Edge]


def _leads_to(start: LockNode, goal: LockNode) -> bool:
    """Tell whether there is any way; mostly there is none, and that is known at once."""
    seen = {start.number}
    reached = [start]
    while reached:
        for following in list(reached.pop().after):
            if following is goal:
                return True
            if following.number not in seen:
                seen.add(following.number)
                reached.append(following)
    return False


def _circles(way: Sequence[_Step]) -> Iterator[Sequence[_Step]]:
    """Yield what closes a way to a circle in which threads can hang."""
    goal, at = way[0][0], way[-1][1]
    if at is goal:
        yield way
        return
    if len(way) == _CIRCLE_MAX_LOCKS:
        return
    passed = {holder.number for holder, _, _ in way} - {goal.number}
    for following, edges in list(at.after.items()):
        if following.number in passed:
            continue
        for edge in (edge for of_threads in edges.values() for edge in of_threads.values()):
            if all(edge.thread != old.thread and not edge.held & old.held for _, _, old in way):
                yield from _circles([*way, (at, following, edge)])


def _step(holder: LockNode, taken: LockNode, edge: _Edge) -> LockStep:
    return LockStep(holder.made_at, taken.made_at, edge.name, edge.stack)
