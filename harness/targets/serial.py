"""Servers that listen at one fixed address: one at a time, and the shared one makes room.

While a check's own server runs, the one that checks share is ended; then a new one takes its place
at the same address. Such a check runs alone, so no other check's jobs are lost with it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from harness.record.verdict import UnsupportedError
from harness.targets.target import RunningServer

_ONE_ADDRESS: Final = "a second server at the same time (it listens at one fixed address)"


class LentServer:
    """The server that checks share; see `RunningServer`. It belongs to one thread at a time."""

    def __init__(
        self, address: str, start: Callable[[], AbstractContextManager[RunningServer]]
    ) -> None:
        self.address = address
        self._start = start
        self._stack = ExitStack()
        self._server: RunningServer | None = None

    def begin(self) -> None:
        """Start a server.

        Raises:
            BrokenError: it did not start.
        """
        self._server = self._stack.enter_context(self._start())

    def end(self) -> None:
        """End the server, if one runs."""
        self._server = None
        self._stack.close()

    @property
    def pid(self) -> int | None:
        """See `RunningServer`."""
        return self._server.pid if self._server is not None else None

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`."""
        if self._server is not None:
            self._server.signal(number)

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        return self._server.wait_exit(timeout_s) if self._server is not None else 0

    def has_died(self) -> bool:
        """See `RunningServer`."""
        return self._server is not None and self._server.has_died()

    def log_tail(self) -> str:
        """See `RunningServer`."""
        return self._server.log_tail() if self._server is not None else ""


class OneAddress:
    """Lets one server at a time use an address."""

    def __init__(self) -> None:
        self._lent: LentServer | None = None
        self._is_taken = False

    @contextmanager
    def lend(self, server: LentServer) -> Iterator[LentServer]:
        """Start the server that checks share."""
        server.begin()
        self._lent = server
        try:
            yield server
        finally:
            self._lent = None
            server.end()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Make room for a check's own server.

        Raises:
            UnsupportedError: the check has one already.
        """
        if self._is_taken:
            raise UnsupportedError(_ONE_ADDRESS)
        self._is_taken = True
        lent = self._lent
        try:
            if lent is not None:
                lent.end()
            try:
                yield
            finally:
                if lent is not None:
                    lent.begin()
        finally:
            self._is_taken = False
