"""A happens-before detector: tells when two threads touch a variable with nothing between them.

Each thread, each lock, event, queue and each variable carries a vector clock. What one thread does
before it releases a lock (sets an event, starts a thread ...) happens before what another does
after it took that lock. Two accesses of one variable, one of them a write, of which neither happens
before the other, are a race, whether or not anything went wrong this time. The idea is FastTrack's
(Flanagan and Freund, PLDI 2009), with the reads kept of each thread.

It is told of accesses by `watching`, of synchronisation by `primitives`. What it leaves out:
variables of classes that nobody watches, order that only C code makes (it then cries a race that is
none), and bugs that need no race: two correct critical sections that should have been one.

Shared state and its guard: all clocks, shadows and findings under `_guard`, a real lock, also while
a schedule is explored. A thread that is inside the detector and is interrupted by a signal handler
of its own is let through unseen (`busy`), so that the handler does not wait for itself.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.races.lockorder import LockNode, LockOrder
from harness.races.report import Access, DataRace, Found, Frame, LockCycle

if TYPE_CHECKING:
    from types import FrameType

Clock = dict[int, int]
# Variables of objects that have no room for them, with the objects: an id must not be used again.
Beside = dict[int, "tuple[dict[str, Variable], object]"]

_STACK_MAX_FRAMES: Final = 12
_OWN_DIRECTORY: Final = str(Path(__file__).parent)
_SCHEDULER: Final = "/interleave_test/"
_HIDDEN: Final = (_OWN_DIRECTORY, str(Path(threading.__file__).parent / "threading.py"))
# Bound to the real one here, before anything is patched.
_RealLock: Final = threading.Lock


@dataclass(slots=True)
class ThreadState:
    """What is known of one thread. Written by that thread only."""

    number: int
    name: str
    clock: Clock
    held: list[LockNode] = field(default_factory=list)
    busy: bool = False


@dataclass(slots=True)
class Sync:
    """What a lock, event or queue carries from one thread to the next."""

    clock: Clock = field(default_factory=dict)


@dataclass(slots=True)
class _Epoch:
    thread: int
    time: int
    access: Access


@dataclass(slots=True)
class Variable:
    """One attribute of one object, or what a container holds.

    Attributes:
        name: for people: its class and attribute.
        atomic: published without a lock on purpose; then it orders, as a lock does.
        settled: see `watching.Watch`.
        sync: what it carries if it is atomic.
        last_write: who wrote it last.
        last_reads: who has read it since, by thread.
    """

    name: str
    atomic: bool = False
    settled: bool = False
    sync: Sync = field(default_factory=Sync)
    last_write: _Epoch | None = None
    last_reads: dict[int, _Epoch] = field(default_factory=dict)


class Detector:
    """One run's clocks and findings. Callable from any thread.

    Args:
        on_found: called with each new finding, in the thread that made it.
    """

    def __init__(self, on_found: Callable[[Found], None] | None = None) -> None:
        self._guard = _RealLock()
        self._local = threading.local()
        self.threads = 0
        self._found: dict[tuple[object, ...], Found] = {}
        self._on_found = on_found
        self._order = LockOrder()
        self.accesses = 0
        self.beside: Beside = {}

    @property
    def found(self) -> list[Found]:
        """What was found so far, each pair of places once."""
        with self._guard:
            return list(self._found.values())

    # -- threads ------------------------------------------------------------------------------

    def fork(self) -> Clock:
        """Return what a thread that is started now begins with."""
        me = self._me()
        clock = dict(me.clock)
        me.clock[me.number] += 1
        return clock

    def begin(self, name: str, clock: Clock) -> None:
        """Make the present thread known, begun where `fork` was called."""
        # Known already when `threading` itself has used a primitive in it.
        me = self._me()
        me.name = name
        _merge(me.clock, clock)

    def end(self) -> Clock:
        """Return what whoever joins the present thread then knows."""
        return self.fork()

    def join(self, clock: Clock) -> None:
        """Let the present thread know what an ended one knew."""
        _merge(self._me().clock, clock)

    def _me(self) -> ThreadState:
        state: ThreadState | None = getattr(self._local, "state", None)
        if state is None:
            # A thread that C code started, or the first one.
            state = self._local.state = self._new_state(f"thread {threading.get_ident()}", {})
        return state

    def _new_state(self, name: str, clock: Clock) -> ThreadState:
        with self._guard:
            self.threads += 1
            number = self.threads
        return ThreadState(number, name, {**clock, number: 1})

    # -- synchronisation ----------------------------------------------------------------------

    def release(self, sync: Sync) -> None:
        """Put what the present thread has done before whatever is acquired from here on."""
        me = self._me()
        if me.busy:
            return
        me.busy = True
        with self._guard:
            _merge(sync.clock, me.clock)
            me.clock[me.number] += 1
        me.busy = False

    def acquire(self, sync: Sync) -> None:
        """Put what was released there before whatever the present thread does now."""
        me = self._me()
        if me.busy:
            return
        me.busy = True
        with self._guard:
            _merge(me.clock, sync.clock)
        me.busy = False

    def taking(self, node: LockNode) -> None:
        """Note the order in which locks are taken; called before the present thread may block."""
        me = self._me()
        if me.busy or not me.held:
            return
        me.busy = True
        with self._guard:
            steps = self._order.taking(node, me.held, (me.number, me.name), capture)
        if steps:
            self._report(LockCycle(steps))
        me.busy = False

    def took(self, node: LockNode) -> None:
        """Note that the present thread holds a lock."""
        self._me().held.append(node)

    def gave_back(self, node: LockNode) -> None:
        """Note that the present thread holds it no more."""
        held = self._me().held
        if node in held:
            held.remove(node)

    # -- accesses -----------------------------------------------------------------------------

    def read(self, variable: Variable) -> None:
        """Note that the present thread reads a variable."""
        if variable.atomic:
            self.acquire(variable.sync)
            return
        me = self._me()
        if me.busy:
            return
        me.busy = True
        race = None
        with self._guard:
            self.accesses += 1
            seen = variable.last_reads.get(me.number)
            now = me.clock[me.number]
            if seen is None or seen.time != now:
                epoch = _Epoch(me.number, now, _access("read", me))
                race = _race(variable, variable.last_write, epoch, me)
                variable.last_reads[me.number] = epoch
        if race:
            self._report(race)
        me.busy = False

    def write(self, variable: Variable) -> None:
        """Note that the present thread writes a variable."""
        if variable.atomic:
            self.release(variable.sync)
            return
        me = self._me()
        if me.busy:
            return
        me.busy = True
        races = []
        with self._guard:
            self.accesses += 1
            now = me.clock[me.number]
            last = variable.last_write
            again = last is not None and (last.thread, last.time) == (me.number, now)
            if not again or variable.last_reads.keys() - {me.number}:
                epoch = _Epoch(me.number, now, _access("write", me))
                before = (last, *variable.last_reads.values())
                races = [race for old in before if (race := _race(variable, old, epoch, me))]
                variable.last_write = epoch
                variable.last_reads.clear()
        for race in races:
            self._report(race)
        me.busy = False

    def put(self, variable: Variable) -> None:
        """Put what the present thread has done before whatever is taken from this deque later."""
        self.release(variable.sync)

    def taken(self, variable: Variable) -> None:
        """See `put`."""
        self.acquire(variable.sync)

    def looked(self, variable: Variable) -> None:
        """Nothing is ordered by looking, and a deque's length is one step to read."""

    def _report(self, found: Found) -> None:
        with self._guard:
            new = found.key not in self._found
            self._found.setdefault(found.key, found)
        if new and self._on_found is not None:
            self._on_found(found)


def _race(variable: Variable, old: _Epoch | None, new: _Epoch, me: ThreadState) -> DataRace | None:
    if old is None or old.thread == me.number or old.time <= me.clock.get(old.thread, 0):
        return None
    return DataRace(variable.name, new.access, old.access)


def _access(kind: str, me: ThreadState) -> Access:
    return Access(kind, me.name, capture(), tuple(node.made_at for node in me.held))


def _merge(into: Clock, other: Clock) -> None:
    for thread, time in other.items():
        if into.get(thread, 0) < time:
            into[thread] = time


def capture() -> tuple[Frame, ...]:
    """Return the present stack without the detector's own frames, innermost first."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to a cheap stack
    frames: list[Frame] = []
    while frame is not None and len(frames) < _STACK_MAX_FRAMES:
        if is_shown(frame.f_code.co_filename):
            frames.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(frames)


def is_shown(file: str) -> bool:
    """Tell whether a file's frames are part of a stack: those that only run a model are not."""
    return not file.startswith(_HIDDEN) and _SCHEDULER not in file
