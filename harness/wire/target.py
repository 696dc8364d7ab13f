"""A target whose servers are behind relays with one tap."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from harness.targets.fronted import FrontedTarget
from harness.targets.target import RunningServer, Target
from harness.wire.relay import open_relay
from harness.wire.tap import Tap
from jobworker.v1 import jobworker_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["JobWorker"]


class RelayedServer:
    """A server at the address of its relay; all else is the server's own."""

    def __init__(self, address: str, server: RunningServer) -> None:
        self.address = address
        self._server = server

    @property
    def pid(self) -> int | None:
        """See `RunningServer`."""
        return self._server.pid

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`."""
        self._server.signal(number)

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        return self._server.wait_exit(timeout_s)

    def has_died(self) -> bool:
        """See `RunningServer`."""
        return self._server.has_died()

    def log_tail(self) -> str:
        """See `RunningServer`."""
        return self._server.log_tail()


@contextmanager
def open_target(inner: Target, server: RunningServer, tap: Tap) -> Iterator[Target]:
    """Put a relay in front of a target's running server, and of those that checks start."""

    def front(server: RunningServer) -> AbstractContextManager[RunningServer]:
        return _relayed(inner, server, tap)

    with front(server) as relayed:
        yield FrontedTarget(inner, relayed, front)


@contextmanager
def _relayed(inner: Target, server: RunningServer, tap: Tap) -> Iterator[RelayedServer]:
    with open_relay(server.address, SERVICE, inner.identities, tap) as address:
        yield RelayedServer(address, server)
