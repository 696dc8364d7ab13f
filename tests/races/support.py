"""The models' environment: real descriptors, fake processes, waits that the scheduler controls."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

from harness.races.exploration import atomic_step
from worker_service import reactor as reactor_module
from worker_service import worker as worker_module
from worker_service.spawn import ExitStatus

JOIN_MAX_S = 1e6  # on the schedule's clock, which does not advance while any thread can run


def run_threads(*functions: Callable[[], None]) -> None:
    """Run functions concurrently until all return; a thread has the name of its function."""
    names = [function.__name__ for function in functions]
    threads = [
        threading.Thread(
            target=function, name=f"{name} {index + 1}" if names.count(name) > 1 else name
        )
        for index, (function, name) in enumerate(zip(functions, names, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Kernel:
    """Real descriptors, polled without waiting; each writer notifies a condition to wait on."""

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def notify(self) -> None:
        """Let waiting threads poll their descriptors again."""
        with self.changed:
            self.changed.notify_all()

    def eventfd_write(self, fd: int, value: int) -> None:
        """See `os.eventfd_write`."""
        with atomic_step():
            os.eventfd_write(fd, value)
            self.notify()

    def epoll(self) -> "Epoll":
        """See `select.epoll`."""
        return Epoll(self)


class Epoll:
    """A real epoll that waits on the kernel's condition."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._real = select.epoll()
        self.register = self._real.register
        self.unregister = self._real.unregister
        self.close = self._real.close

    def poll(self, timeout_s: float | None, max_events: int) -> list[tuple[int, int]]:
        """See `select.epoll.poll`."""
        events: list[tuple[int, int]] = []

        def has_events() -> bool:
            events[:] = self._real.poll(0, max_events)
            return bool(events)

        with atomic_step(), self._kernel.changed:
            self._kernel.changed.wait_for(has_events, timeout_s)
        return events


class FakeProcess:
    """A job's main process, as far as the server can see it.

    Args:
        words: what it writes before it exits by itself.
        last_words: what it writes on SIGTERM.
    """

    def __init__(self, kernel: Kernel, words: bytes = b"", last_words: bytes = b"") -> None:
        self._kernel = kernel
        self._last_words = last_words
        self.words = words
        self.pid = 4711
        self.pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.output_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._exit: ExitStatus | None = None
        self.reaped = 0

    def write_and_exit(self) -> None:
        """Write, and exit with code 0."""
        self._end(ExitStatus(0, 0), self.words)

    def signal_group(self, signal_number: signal.Signals) -> None:
        """See `job.Process`."""
        assert not self.reaped, "signal to a pid that was reaped"
        if signal_number != signal.SIGCONT:
            last_words = self._last_words if signal_number == signal.SIGTERM else b""
            self._end(ExitStatus(0, int(signal_number)), last_words)

    def peek_exit(self) -> ExitStatus | None:
        """See `job.Process`."""
        return self._exit

    def reap(self) -> None:
        """See `job.Process`."""
        self.reaped += 1
        assert self.reaped == 1, "reaped twice: the pid may belong to another process"
        os.close(self.pidfd)

    def discard(self) -> None:
        """Close the descriptors of a process that was never started."""
        for fd in (self.pidfd, self.output_fd, self._write_fd):
            os.close(fd)

    def _end(self, how: ExitStatus, words: bytes) -> None:
        with atomic_step():
            if self._exit is not None:
                return
            if words:
                os.write(self._write_fd, words)
            os.close(self._write_fd)
            self._exit = how
            os.eventfd_write(self.pidfd, 1)
            self._kernel.notify()


@contextmanager
def model_kernel(kernel: Kernel, processes: Iterator[FakeProcess] | None = None) -> Iterator[None]:
    """Let the scheduler control the reactor's waits; let the worker start these processes."""

    def spawn(_command: object, _cgroup: object, _user: object) -> tuple[int, FakeProcess]:
        process = next(processes or iter(()))
        return process.output_fd, process

    fake_os = SimpleNamespace(
        eventfd=os.eventfd, EFD_CLOEXEC=os.EFD_CLOEXEC, EFD_NONBLOCK=os.EFD_NONBLOCK,
        eventfd_write=kernel.eventfd_write, eventfd_read=os.eventfd_read, close=os.close,
    )  # fmt: skip
    with (
        mock.patch.object(reactor_module, "os", fake_os),
        mock.patch.object(reactor_module, "select", SimpleNamespace(epoll=kernel.epoll)),
        mock.patch.object(worker_module, "_spawn_with_pipe", spawn),
    ):
        yield


@contextmanager
def make_call_soon_atomic() -> Iterator[None]:
    """Make `call_soon` one step, for models that do not explore the reactor as reactor.* do."""
    call_soon = reactor_module.Reactor.call_soon

    def at_once(reactor: reactor_module.Reactor, callback: Callable[[], None]) -> None:
        with atomic_step():
            call_soon(reactor, callback)

    with mock.patch.object(reactor_module.Reactor, "call_soon", at_once):
        yield
