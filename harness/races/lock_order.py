"""The lock-order graph, and the cycles in it that can deadlock.

An edge from A to B says that a thread acquired B while it held A. It is drawn before the thread may
block, so a run that does deadlock has drawn it. A cycle is reported when its steps can be those of
different threads at the same moment: no thread makes two of the steps, and no lock is held at two
of them, since that lock would exclude the threads from each other (Goodlock: Havelund, SPIN 2000).
Reacquiring a lock that the thread holds (an `RLock`) cannot block and draws no edge.

So that later threads count too, an edge is stored for each thread and each set of locks held,
within bounds: cycles of more than `_CYCLE_MAX_LOCKS` locks are not reported.

Callers hold the detector's guard.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from harness.races.findings import Frame, LockStep

_CYCLE_MAX_LOCKS: Final = 5
# As many threads as a cycle has steps, so that each step finds a thread that makes no other step.
_THREADS_MAX: Final = _CYCLE_MAX_LOCKS
# Short-lived locks that are held with two long-lived ones must not fill the memory.
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
        made_at: where it was created, which is how a report names it.
        number: unique for the whole run, unlike an id.
        after: the locks acquired while it was held; weak, so they do not outlive the program's use.
    """

    made_at: str
    number: int = field(default_factory=lambda: next(_numbers))
    after: "weakref.WeakKeyDictionary[LockNode, _Edges]" = field(
        default_factory=weakref.WeakKeyDictionary
    )


class LockOrder:
    """The graph of all locks of a run."""

    def add_edges(
        self,
        node: LockNode,
        held: Sequence[LockNode],
        thread: tuple[int, str],
        stack: Callable[[], tuple[Frame, ...]],
    ) -> tuple[LockStep, ...]:
        """Draw the edges to a lock that is about to be acquired; return a cycle that they close.

        Args:
            node: that lock.
            held: the locks that the thread holds.
            thread: its unique number, and its name.
            stack: returns the thread's stack; called only if the edge is new.
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
            if not found and _is_reachable(node, holder):
                cycle = next(_cycles([(holder, node, edge)]), ())
                found = tuple(_lock_step(*step) for step in cycle)
        return found


_Step = tuple[LockNode, LockNode, _Edge]


def _is_reachable(start: LockNode, goal: LockNode) -> bool:
    """Return whether any path exists: mostly none does, and this finds that out fast."""
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


def _cycles(path: Sequence[_Step]) -> Iterator[Sequence[_Step]]:
    """Yield the extensions of a path to cycles in which threads can deadlock."""
    goal, at = path[0][0], path[-1][1]
    if at is goal:
        yield path
        return
    if len(path) == _CYCLE_MAX_LOCKS:
        return
    passed = {holder.number for holder, _, _ in path} - {goal.number}
    for following, edges in list(at.after.items()):
        if following.number in passed:
            continue
        for edge in (edge for of_threads in edges.values() for edge in of_threads.values()):
            if all(edge.thread != old.thread and not edge.held & old.held for _, _, old in path):
                yield from _cycles([*path, (at, following, edge)])


def _lock_step(holder: LockNode, taken: LockNode, edge: _Edge) -> LockStep:
    return LockStep(holder.made_at, taken.made_at, edge.name, edge.stack)
