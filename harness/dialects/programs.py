"""One program that a call runs: its output as it comes, its end, and nothing left of it.

It has a session of its own, no input, and no shell. Its standard error is kept for the call's
details. It dies with the thread that started it, so also with a harness that is killed.

Threads: one thread reads; `cancel` and `close` may come from any other.
"""

import contextlib
import errno
import functools
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

from harness.record.verdict import BrokenError

CHUNK_BYTES: Final = 256 * 1024
TERM_GRACE_S: Final = 2.0  # from SIGTERM to SIGKILL
_KILL_TIMEOUT_S: Final = 10.0
_SIGNALED: Final = 128  # as shells report it
_STDERR_MAX_BYTES: Final = 64 * 1024


class LateError(Exception):
    """The program did not do it before the deadline."""


class CancelledError(Exception):
    """The program was cancelled."""


class UnpassableError(Exception):
    """The kernel cannot pass such arguments to a program."""


class Program:
    """A running program; a context manager that ends it and its session.

    Shared state and its guard: `_closed` and the descriptors under `_lock`.

    Raises:
        BrokenError: it cannot be started.
        UnpassableError: the kernel cannot pass its arguments.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._cancelled = False
        self._errors = os.memfd_create("stderr")
        try:
            self._process = _start(words, environment, self._errors)
        except BaseException:
            os.close(self._errors)
            raise
        assert self._process.stdout is not None  # noqa: S101 - a pipe was requested
        self._output: int = self._process.stdout.fileno()
        self._output_ended = False
        with contextlib.ExitStack() as undone:  # if no descriptor is free
            undone.callback(os.close, self._errors)
            undone.callback(self._process.stdout.close)
            undone.callback(self._process.wait)
            undone.callback(self._signal, signal.SIGKILL)
            self._exit = os.pidfd_open(self._process.pid)
            undone.callback(os.close, self._exit)
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undone.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, due_s: float | None) -> bytes:
        """Return what comes next of its output; b"" once it has exited.

        Output of processes that it left behind is not waited for.

        Args:
            due_s: on the monotonic clock; None waits for ever.

        Raises:
            LateError: nothing came before the deadline.
            CancelledError: `cancel` was called.
        """
        while True:
            # Once it is cancelled, its descriptors may be closed.
            ready = set[int]() if self._cancelled else self._wait(due_s)
            if self._cancelled or self._wake in ready:
                raise CancelledError
            if not ready:
                raise LateError
            # The exit may be seen before output that came first.
            if self._output in ready or self._output in self._wait(0.0):
                data = os.read(self._output, CHUNK_BYTES)
                if data:
                    return data
                self._output_ended = True
            elif self._exit in ready:
                return b""

    def read_all(self, due_s: float | None) -> bytes:
        """Return the rest of its output, once it has exited; see `read`."""
        return b"".join(iter(lambda: self.read(due_s), b""))

    def exit_code(self) -> int:
        """Return the exit code of a program whose output was read to its end; 128+N: signal N."""
        # It stays a zombie, so that `close` can end its group.
        found = os.waitid(os.P_PIDFD, self._exit, os.WEXITED | os.WNOWAIT)
        if found is None:
            return 0
        return found.si_status + (0 if found.si_code == os.CLD_EXITED else _SIGNALED)

    def errors(self) -> str:
        """Return the end of its standard error."""
        with self._lock:
            if self._closed:
                return ""
            size = os.fstat(self._errors).st_size
            start = max(0, size - _STDERR_MAX_BYTES)
            return os.pread(self._errors, _STDERR_MAX_BYTES, start).decode("utf-8", "replace")

    def cancel(self) -> None:
        """Wake the reader with CancelledError, and send SIGTERM to the session."""
        with self._lock:
            self._cancelled = True
            if not self._closed:
                os.eventfd_write(self._wake, 1)
                self._signal(signal.SIGTERM)

    def close(self) -> None:
        """End its session: by SIGTERM, then by SIGKILL. Bounded; may be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._has_exited(0.0):
                self._signal(signal.SIGTERM)
                self._has_exited(TERM_GRACE_S)
            # As long as the leader is not reaped, its group's id is not another's.
            self._signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_TIMEOUT_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
            for descriptor in (self._exit, self._wake, self._errors):
                os.close(descriptor)

    def _wait(self, due_s: float | None) -> set[int]:
        """Return which of output, exit and wake-up are ready, none when it is late."""
        poller = select.poll()
        for descriptor in (self._wake, self._exit):
            poller.register(descriptor, select.POLLIN)
        if not self._output_ended:
            poller.register(self._output, select.POLLIN)
        left_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        return {each for each, _ in poller.poll(None if left_s is None else left_s * 1000)}

    def _has_exited(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self._exit, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            # PermissionError: a program that changed its user.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _start(
    words: Sequence[str], environment: Mapping[str, str], errors: int
) -> "subprocess.Popen[bytes]":
    if any("\0" in word for word in words):
        raise UnpassableError("a command line cannot pass a NUL")
    try:
        return subprocess.Popen(
            [*_dies_with_us(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise UnpassableError("a command line cannot pass so long arguments") from None
        raise BrokenError(f"{words[0]}: {error.strerror}") from error


@functools.cache
def _dies_with_us() -> tuple[str, ...]:
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL") if setpriv else ()
