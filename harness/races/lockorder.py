"""The order in which threads take locks, and where it turns in a circle.

An edge from A to B says that a thread took B while it held A. It is drawn before the thread may
block, so that a run that does hang has drawn it. A circle is told when more than one thread drew it
and no further lock was held at each of its steps: that one would keep the threads apart.

Callers hold the detector's guard.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.races.report import Frame, LockStep


@dataclass(frozen=True, slots=True)
class _Edge:
    thread: str
    stack: tuple[Frame, ...]
    gates: frozenset[int]


@dataclass(eq=False, slots=True, weakref_slot=True)
class LockNode:
    """One lock.

    Attributes:
        made_at: where it was made, which is how people know it.
        after: the locks that were taken while it was held; they are forgotten when they die.
    """

    made_at: str
    after: "weakref.WeakKeyDictionary[LockNode, _Edge]" = field(
        default_factory=weakref.WeakKeyDictionary
    )


class LockOrder:
    """The graph of all locks of a run."""

    def taking(
        self,
        node: LockNode,
        held: Sequence[LockNode],
        thread: str,
        stack: Callable[[], tuple[Frame, ...]],
    ) -> tuple[LockStep, ...]:
        """Draw the edges to a lock that is about to be taken; return a circle that they close."""
        gates = frozenset(id(lock) for lock in held)
        for holder in held:
            if holder is node or node in holder.after:
                continue
            edge = holder.after[node] = _Edge(thread, stack(), gates)
            way = _way(node, holder)
            if way:
                steps = [(holder, node, edge), *way]
                if _can_hang(steps):
                    return tuple(_step(*step) for step in steps)
        return ()


_Step = tuple[LockNode, LockNode, _Edge]


def _way(start: LockNode, goal: LockNode) -> list[_Step]:
    """Return a way through the graph, or nothing."""
    ways: list[list[_Step]] = [[]]
    seen = {id(start)}
    while ways:
        way = ways.pop()
        at = way[-1][1] if way else start
        for following, edge in list(at.after.items()):
            step = (at, following, edge)
            if following is goal:
                return [*way, step]
            if id(following) not in seen:
                seen.add(id(following))
                ways.append([*way, step])
    return []


def _can_hang(steps: Sequence[_Step]) -> bool:
    threads = {edge.thread for _, _, edge in steps}
    of_the_circle = {id(lock) for lock, _, _ in steps}
    gates = frozenset.intersection(*(edge.gates for _, _, edge in steps)) - of_the_circle
    return len(threads) > 1 and not gates


def _step(holder: LockNode, taken: LockNode, edge: _Edge) -> LockStep:
    return LockStep(holder.made_at, taken.made_at, edge.thread, edge.stack)
