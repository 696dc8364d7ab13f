"""One program that a call runs: its output as it comes, its end, and nothing left of it.

It has a session of its own, no input, and no shell. The end of its standard error is kept for the
call's details; a program that fills its pipes waits until they are read. It dies with the thread
that started it, so also with a harness that is killed.

Threads: one thread reads; `cancel` and `close` may come from any other, also while it reads.
"""

import contextlib
import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

from harness.host.processes import launch_bound
from harness.record.verdict import BrokenError

CHUNK_BYTES: Final = 256 * 1024
OUTPUT_MAX_BYTES: Final = 64 * 1024 * 1024  # of a unary call, as of a gRPC message
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


class TooLongError(Exception):
    """The program printed more than an answer may have."""


class Program:
    """A running program; a context manager that ends it and its session.

    Shared state and its guard: `_cancelled_s`, `_closed` and the descriptors under `_lock`;
    descriptors are closed under `_reading`, too.

    Raises:
        BrokenError: it cannot be started.
        UnpassableError: the kernel cannot pass its arguments.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._closed = False
        self._cancelled_s: float | None = None
        self._error_end = b""
        self._ended_pipes: set[int] = set()
        self._process = _start(words, environment)
        output, errors = self._process.stdout, self._process.stderr
        assert output is not None  # noqa: S101 - a pipe was requested
        assert errors is not None  # noqa: S101 - likewise
        self._pipes = (output, errors)
        self._output, self._errors = output.fileno(), errors.fileno()
        with contextlib.ExitStack() as undone:  # if no descriptor is free
            undone.callback(output.close)
            undone.callback(errors.close)
            undone.callback(self._process.wait)
            undone.callback(self._signal, signal.SIGKILL)
            os.set_blocking(self._errors, False)
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
            LateError: the deadline is over; also while there is output.
            CancelledError: `cancel` or `close` was called.
        """
        with self._reading:
            while True:
                # Once it is cancelled, its descriptors may be closed.
                ready = set[int]() if self._cancelled_s is not None else self._wait(due_s)
                if self._cancelled_s is not None:
                    raise CancelledError
                if not ready or (due_s is not None and time.monotonic() >= due_s):
                    raise LateError
                if self._errors in ready:
                    self._take_errors()
                # The exit may be seen before output that came first.
                if self._output in ready or self._output in self._wait(0.0):
                    if data := os.read(self._output, CHUNK_BYTES):
                        return data
                    self._ended_pipes.add(self._output)
                elif self._exit in ready:
                    return b""

    def read_all(self, due_s: float | None) -> bytes:
        """Return the rest of its output, once it has exited; see `read`.

        Raises:
            TooLongError: it is more than `OUTPUT_MAX_BYTES`.
        """
        output = bytearray()
        while data := self.read(due_s):
            output += data
            if len(output) > OUTPUT_MAX_BYTES:
                raise TooLongError(f"the program printed more than {OUTPUT_MAX_BYTES} bytes")
        return bytes(output)

    def exit_code(self) -> int:
        """Return the exit code of a program whose output was read to its end; 128+N: signal N."""
        # It stays a zombie, so that `close` can end its group.
        found = os.waitid(os.P_PIDFD, self._exit, os.WEXITED | os.WNOWAIT)
        if found is None:
            return 0
        return found.si_status + (0 if found.si_code == os.CLD_EXITED else _SIGNALED)

    def errors(self) -> str:
        """Return the end of its standard error."""
        self._take_errors()
        return self._error_end.decode("utf-8", "replace")

    def cancel(self) -> None:
        """Wake the reader with CancelledError, and send SIGTERM to the session."""
        with self._lock:
            if not self._closed and self._cancelled_s is None:
                self._cancelled_s = time.monotonic()
                os.eventfd_write(self._wake, 1)
                self._signal(signal.SIGTERM)

    def close(self) -> None:
        """End its session: by SIGTERM, then by SIGKILL. Bounded; may be called again."""
        self.cancel()
        with self._reading, self._lock:
            if self._closed:
                return
            self._closed = True
            since_s = time.monotonic() - (self._cancelled_s or 0.0)
            self._has_exited(max(0.0, TERM_GRACE_S - since_s))
            # As long as the leader is not reaped, its group's id is not another's.
            self._signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_TIMEOUT_S)
            for pipe in self._pipes:
                pipe.close()
            for descriptor in (self._exit, self._wake):
                os.close(descriptor)

    def _take_errors(self) -> None:
        """Take what is ready of its standard error, and keep the end."""
        with self._lock:
            if self._closed or self._errors in self._ended_pipes:
                return
            with contextlib.suppress(BlockingIOError):
                if data := os.read(self._errors, CHUNK_BYTES):
                    self._error_end = (self._error_end + data)[-_STDERR_MAX_BYTES:]
                else:
                    self._ended_pipes.add(self._errors)

    def _wait(self, due_s: float | None) -> set[int]:
        """Return which of output, errors, exit and wake-up are ready, none when it is late."""
        poller = select.poll()
        for descriptor in {self._wake, self._exit, self._output, self._errors} - self._ended_pipes:
            poller.register(descriptor, select.POLLIN)
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


def _start(words: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    if any("\0" in word for word in words):
        raise UnpassableError("a command line cannot pass a NUL")
    try:
        return launch_bound(
            words,
            lambda bound: subprocess.Popen(
                bound,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                start_new_session=True,
                bufsize=0,
            ),
        )
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise UnpassableError("a command line cannot pass so long arguments") from None
        raise BrokenError(f"{words[0]}: {error.strerror}") from error
