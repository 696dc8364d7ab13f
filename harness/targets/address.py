"""Any server at HOST:PORT that speaks `jobworker.v1`; somebody else started it."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from harness.identities import IdentityStore
from harness.targets.target import DEFAULT, Host, RunningServer, Variant
from harness.verdict import UnsupportedError

_NOT_OURS = "a launch command (--launch), so that the harness can start, pause and kill it"


class GivenServer:
    """A server that the harness can only call."""

    pid = None

    def __init__(self, address: str) -> None:
        self.address = address

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`."""
        del number
        raise UnsupportedError(_NOT_OURS)

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        del timeout_s
        raise UnsupportedError(_NOT_OURS)

    def has_died(self) -> bool:
        """See `RunningServer`. Nobody can tell; an unanswered call will."""
        return False

    def log_tail(self) -> str:
        """See `RunningServer`."""
        return ""


class AddressTarget:
    """See `Target`."""

    emulated = False
    can_launch = False

    def __init__(self, address: str, identities: IdentityStore) -> None:
        self.name = address
        self.identities = identities
        self.flags: dict[str, str] = {}
        self.host: Host | None = None
        self._server = GivenServer(address)

    def describe(self) -> str:
        """See `Target`."""
        return f"a server at {self._server.address} that somebody else started"

    def launched(self, variant: Variant = DEFAULT) -> AbstractContextManager[RunningServer]:
        """See `Target`."""
        del variant
        raise UnsupportedError(_NOT_OURS)

    @contextmanager
    def shared(self) -> Iterator[GivenServer]:
        """See `Target`."""
        yield self._server
