"""A happens-before detector: reports unordered accesses of two threads to one variable.

Each thread, each lock, event, queue and each variable carries a vector clock. What one thread does
before it releases a lock (sets an event, starts a thread ...) happens before what another does
after it acquires that lock. Two accesses of one variable, at least one of them a write, race when
neither happens before the other, whether or not this run went wrong. The algorithm is FastTrack's
(Flanagan and Freund, PLDI 2009), but keeps the last read of every thread.

`instrumentation` reports accesses to it, `primitives` synchronisation. Not covered: variables of
classes that are not watched, order that only C code establishes (reported as a race: a false
positive), and faults without a race, such as two correct critical sections that must be one.

Shared state and its guard: all clocks, shadows and findings under `_guard`, a real lock, also while
a schedule is explored. A signal handler that interrupts its thread inside the detector is not
recorded (`busy`), so that the handler does not deadlock with its own thread.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.races.findings import Access, DataRace, Frame, LockCycle, RaceFinding
from harness.races.lock_order import LockNode, LockOrder

if TYPE_CHECKING:
    from types import FrameType

Clock = dict[int, int]
# Variables of objects whose slots have no room for them, by the object's id. The object is kept
# too, so that its id is not reused.
SlotVariables = dict[int, "tuple[dict[str, Variable], object]"]

_STACK_MAX_FRAMES: Final = 12
_OWN_DIRECTORY: Final = str(Path(__file__).parent)
_SCHEDULER: Final = "/interleave_test/"
_HIDDEN: Final = (_OWN_DIRECTORY, str(Path(threading.__file__).parent / "threading.py"))
# The real lock, bound before `threading` is patched.
_RealLock: Final = threading.Lock


@dataclass(slots=True)
class ThreadState:
    """One thread's clock and locks. Written by that thread only."""

    number: int
    name: str
    clock: Clock
    held: list[LockNode] = field(default_factory=list)
    busy: bool = False


@dataclass(slots=True)
class Sync:
    """The clock that a lock, event or queue carries from one thread to the next."""

    clock: Clock = field(default_factory=dict)


@dataclass(slots=True)
class _Epoch:
    thread: int
    time: int
    access: Access


@dataclass(slots=True)
class Variable:
    """One attribute of one object, or the contents of a container.

    Attributes:
        name: its class and attribute, for reports.
        atomic: published without a lock on purpose; then it orders accesses, as a lock does.
        settled: see `instrumentation.Watch`.
        sync: the clock that it carries if it is atomic.
        last_write: the last write.
        last_reads: the last read of each thread since then.
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

    def __init__(self, on_found: Callable[[RaceFinding], None] | None = None) -> None:
        self._guard = _RealLock()
        self._local = threading.local()
        self.threads = 0
        self._found: dict[tuple[object, ...], RaceFinding] = {}
        self._on_found = on_found
        self._order = LockOrder()
        self.accesses = 0
        self.slot_variables: SlotVariables = {}

    @property
    def found(self) -> list[RaceFinding]:
        """The findings so far, each pair of places once."""
        with self._guard:
            return list(self._found.values())

    # -- threads ------------------------------------------------------------------------------

    def fork(self) -> Clock:
        """Return the clock that a thread started now begins with."""
        me = self._me()
        clock = dict(me.clock)
        me.clock[me.number] += 1
        return clock

    def begin(self, name: str, clock: Clock) -> None:
        """Register the current thread, which was started where `fork` returned this clock."""
        # It is registered already if `threading` itself has used a primitive in it.
        me = self._me()
        me.name = name
        _merge(me.clock, clock)

    def end(self) -> Clock:
        """Return the clock that a thread which joins the current thread receives."""
        return self.fork()

    def join(self, clock: Clock) -> None:
        """Merge an ended thread's clock into the current thread's."""
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
        """Order everything the current thread has done before each later `acquire`."""
        me = self._me()
        if me.busy:
            return
        me.busy = True
        with self._guard:
            _merge(sync.clock, me.clock)
            me.clock[me.number] += 1
        me.busy = False

    def acquire(self, sync: Sync) -> None:
        """Order everything released there before all that the current thread does from now on."""
        me = self._me()
        if me.busy:
            return
        me.busy = True
        with self._guard:
            _merge(me.clock, sync.clock)
        me.busy = False

    def request_lock(self, node: LockNode) -> None:
        """Record the order of locks; call it before the current thread may block."""
        me = self._me()
        if me.busy or not me.held:
            return
        me.busy = True
        with self._guard:
            steps = self._order.add_edges(node, me.held, (me.number, me.name), capture)
        if steps:
            self._report(LockCycle(steps))
        me.busy = False

    def hold_lock(self, node: LockNode) -> None:
        """Record that the current thread holds a lock."""
        self._me().held.append(node)

    def drop_lock(self, node: LockNode) -> None:
        """Record that the current thread no longer holds a lock."""
        held = self._me().held
        if node in held:
            held.remove(node)

    # -- accesses -----------------------------------------------------------------------------

    def read(self, variable: Variable) -> None:
        """Record that the current thread reads a variable."""
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
        """Record that the current thread writes a variable."""
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
        """Order everything the current thread has done before each later `get` from this deque."""
        self.release(variable.sync)

    def get(self, variable: Variable) -> None:
        """Order everything put into this deque before what the current thread does from now on."""
        self.acquire(variable.sync)

    def peek(self, variable: Variable) -> None:
        """Do nothing: reading a deque's length is atomic and orders nothing."""

    def _report(self, found: RaceFinding) -> None:
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
    """Return the current stack without the detector's own frames, innermost first."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to a cheap stack
    frames: list[Frame] = []
    while frame is not None and len(frames) < _STACK_MAX_FRAMES:
        if is_shown(frame.f_code.co_filename):
            frames.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(frames)


def is_shown(file: str) -> bool:
    """Return whether a file's frames belong in a stack: frames that only run a model do not."""
    return not file.startswith(_HIDDEN) and _SCHEDULER not in file
