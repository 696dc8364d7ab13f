"""`threading`'s primitives, queues and threads, reporting to a detector what they order.

Each wraps the class that `threading` has when tracing begins: the real one in a running program,
the scheduler's while schedules are explored. Only objects created after that by `threading.X(...)`
are traced; a name bound earlier (`from threading import Lock`) is not.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol

from harness.races.detector import Clock, Detector, Sync, capture
from harness.races.findings import short
from harness.races.lock_order import LockNode

# `Any` below: the wrapped class is either module's, with all of its arguments.


class _LockLike(Protocol):
    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...  # noqa: FBT001 - threading's own signature
    def release(self) -> None: ...
    def locked(self) -> bool: ...


def _made_at() -> str:
    stack = capture()
    return f"{short(stack[0].file)}:{stack[0].line}" if stack else "C code"


class _WithStatement:
    """The `with` statement of a class that has `acquire` and `release`."""

    acquire: Callable[..., bool]
    release: Callable[..., None]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class TracedLock(_WithStatement):
    """A lock: what was done before its release happens before what follows its acquisition."""

    def __init__(self, detector: Detector, inner: _LockLike) -> None:
        self.detector = detector
        self.inner: Any = inner
        self.sync = Sync()
        self.node = LockNode(_made_at())
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - threading's own signature
        """See `threading.Lock.acquire`."""
        if blocking:
            self.detector.request_lock(self.node)
        taken: bool = self.inner.acquire(blocking, timeout)
        if taken:
            self.enter()
        return taken

    def release(self) -> None:
        """See `threading.Lock.release`."""
        self.leave()
        self.inner.release()

    def locked(self) -> bool:
        """See `threading.Lock.locked`."""
        held: bool = self.inner.locked()
        return held

    def enter(self) -> None:
        """Record that the current thread has acquired it."""
        self._depth += 1
        if self._depth == 1:
            self.detector.acquire(self.sync)
            self.detector.hold_lock(self.node)

    def leave(self) -> None:
        """Record that the current thread is about to release it."""
        self._depth -= 1
        if self._depth == 0:
            self.detector.drop_lock(self.node)
            self.detector.release(self.sync)

    # The methods by which `threading.Condition` fully releases and reacquires a lock.

    def _release_save(self) -> object:
        depth, self._depth = self._depth, 1
        self.leave()
        if hasattr(self.inner, "_release_save"):
            return depth, self.inner._release_save()  # noqa: SLF001 - threading's own protocol
        self.inner.release()
        return depth, None

    def _acquire_restore(self, saved: tuple[int, object]) -> None:
        depth, state = saved
        if hasattr(self.inner, "_acquire_restore"):
            self.inner._acquire_restore(state)  # noqa: SLF001 - threading's own protocol
        else:
            self.inner.acquire()
        self.enter()
        self._depth = depth

    def _is_owned(self) -> bool:
        if hasattr(self.inner, "_is_owned"):
            owned: bool = self.inner._is_owned()  # noqa: SLF001 - threading's own protocol
            return owned
        return self.locked()

    def _at_fork_reinit(self) -> None:
        self.inner._at_fork_reinit()  # noqa: SLF001 - threading's own protocol


class TracedCondition(_WithStatement):
    """A condition: it orders by its lock, which `wait` releases and reacquires."""

    def __init__(self, inner: Any, lock: TracedLock) -> None:  # noqa: ANN401 - see the module
        self._inner = inner
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release
        self.notify = inner.notify
        self.notify_all = inner.notify_all

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Condition.wait`."""
        self._lock.leave()
        try:
            notified: bool = self._inner.wait(timeout)
        finally:
            self._lock.enter()
        return notified

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """See `threading.Condition.wait_for`."""
        self._lock.leave()

        def check_with_lock() -> bool:
            self._lock.enter()
            try:
                return predicate()
            finally:
                self._lock.leave()

        try:
            fulfilled: bool = self._inner.wait_for(check_with_lock, timeout)
        finally:
            self._lock.enter()
        return fulfilled


class TracedEvent:
    """An event: what was done before `set` happens before what follows a wait that saw it."""

    def __init__(self, detector: Detector, inner: Any) -> None:  # noqa: ANN401 - see the module
        self._detector = detector
        self._inner = inner
        self._sync = Sync()
        self.clear = inner.clear

    def set(self) -> None:
        """See `threading.Event.set`."""
        self._detector.release(self._sync)
        self._inner.set()

    def is_set(self) -> bool:
        """See `threading.Event.is_set`."""
        return self._seen(self._inner.is_set())

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Event.wait`."""
        return self._seen(self._inner.wait(timeout))

    def _seen(self, flag: bool) -> bool:  # noqa: FBT001 - it is the value that is passed on
        if flag:
            self._detector.acquire(self._sync)
        return flag


class TracedSemaphore(_WithStatement):
    """A semaphore: what was done before a release happens before what follows an acquisition."""

    def __init__(self, detector: Detector, inner: Any) -> None:  # noqa: ANN401 - see the module
        self._detector = detector
        self._inner = inner
        self._sync = Sync()

    def acquire(self, *args: Any, **named: Any) -> bool:  # noqa: ANN401 - see the module
        """See `threading.Semaphore.acquire`."""
        taken: bool = self._inner.acquire(*args, **named)
        if taken:
            self._detector.acquire(self._sync)
        return taken

    def release(self, n: int = 1) -> None:
        """See `threading.Semaphore.release`."""
        self._detector.release(self._sync)
        self._inner.release(n)


class TracedQueue:
    """A `queue.SimpleQueue`: what was done before a put happens before what follows a get."""

    def __init__(self, detector: Detector, inner: Any) -> None:  # noqa: ANN401 - see the module
        self._detector = detector
        self._inner = inner
        self._sync = Sync()
        self.empty = inner.empty
        self.qsize = inner.qsize

    def put(self, item: Any, *args: Any, **named: Any) -> None:  # noqa: ANN401 - see the module
        """See `queue.SimpleQueue.put`."""
        self._detector.release(self._sync)
        self._inner.put(item, *args, **named)

    put_nowait = put

    def get(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - see the module
        """See `queue.SimpleQueue.get`."""
        item = self._inner.get(*args, **named)
        self._detector.acquire(self._sync)
        return item

    def get_nowait(self) -> Any:  # noqa: ANN401 - see the module
        """See `queue.SimpleQueue.get_nowait`."""
        return self.get(block=False)


def _make_thread_class(detector: Detector, base: Any) -> Any:  # noqa: ANN401 - see the module
    """Return a thread class whose start and join order accesses."""

    class TracedThread(base):  # type: ignore[misc]
        _begun_with: Clock
        _ended_with: Clock | None = None

        def start(self) -> None:
            self._begun_with = detector.fork()
            super().start()

        def run(self) -> None:
            detector.begin(self.name, self._begun_with)
            try:
                super().run()
            finally:
                self._ended_with = detector.end()

        def join(self, timeout: float | None = None) -> None:
            super().join(timeout)
            if self._ended_with is not None:
                detector.join(self._ended_with)

    return TracedThread


_PATCHED: Final = (
    (threading, "Lock"),
    (threading, "RLock"),
    (threading, "Condition"),
    (threading, "Event"),
    (threading, "Semaphore"),
    (threading, "BoundedSemaphore"),
    (threading, "Thread"),
    (queue, "SimpleQueue"),
)


@contextmanager
def trace_primitives(detector: Detector) -> Iterator[None]:
    """Replace the classes of `threading` and `queue` by traced ones within the context."""
    before = [(module, name, getattr(module, name)) for module, name in _PATCHED]
    real_rlock = threading.RLock
    for module, name, maker in before:
        setattr(module, name, _make_traced(name, maker, detector, real_rlock))
    try:
        yield
    finally:
        for module, name, maker in before:
            setattr(module, name, maker)


def _make_traced(name: str, maker: Any, detector: Detector, real_rlock: Any) -> Any:  # noqa: ANN401 - see the module
    if name == "Thread":
        return _make_thread_class(detector, maker)
    if name == "Condition":
        return lambda lock=None: _make_condition(
            detector, maker, real_rlock() if lock is None else lock
        )
    if name in {"Lock", "RLock"}:
        return lambda: TracedLock(detector, maker())
    if name == "Event":
        return lambda: TracedEvent(detector, maker())
    if name == "SimpleQueue":
        return lambda: TracedQueue(detector, maker())
    return lambda *args, **named: TracedSemaphore(detector, maker(*args, **named))


def _make_condition(detector: Detector, maker: Any, lock: Any) -> TracedCondition:  # noqa: ANN401 - see the module
    # A lock created before tracing began is traced from here on, as far as the condition uses it.
    own = lock if isinstance(lock, TracedLock) else TracedLock(detector, lock)
    return TracedCondition(maker(own.inner), own)
