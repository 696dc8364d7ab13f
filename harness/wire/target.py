"""A target whose servers are behind relays with one tap."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from harness.drive.identities import CertFiles
from harness.targets.target import DEFAULT, RunningServer, Target, Variant
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


Front = Callable[[RunningServer], AbstractContextManager[RunningServer]]


class FrontedTarget:
    """See `Target`. Its servers have something in front of them, such as a relay.

    Args:
        inner: launches the servers.
        shared: the server that checks share, with its front.
        front: puts something in front of a launched server.
    """

    def __init__(self, inner: Target, shared: RunningServer, front: Front) -> None:
        self._inner = inner
        self._shared = shared
        self._front = front
        self.name = inner.name
        self.emulated = inner.emulated
        self.disposable_host = inner.disposable_host
        self.has_data_disk = inner.has_data_disk
        self.host = inner.host
        self.identities = inner.identities
        self.flags = inner.flags
        self.can_launch = inner.can_launch

    def describe(self) -> str:
        """See `Target`."""
        return self._inner.describe()

    @contextmanager
    def launch(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        wrapper: Sequence[str] = (),
    ) -> Iterator[RunningServer]:
        """See `Target`."""
        with (
            self._inner.launch(
                variant, files=files, descriptors=descriptors, wrapper=wrapper
            ) as server,
            self._front(server) as fronted,
        ):
            yield fronted

    @contextmanager
    def shared(self) -> Iterator[RunningServer]:
        """See `Target`."""
        yield self._shared


@contextmanager
def open_target(inner: Target, server: RunningServer, tap: Tap) -> Iterator[Target]:
    """Put a relay in front of a target's running server, and of those that checks start."""

    def front(server: RunningServer) -> AbstractContextManager[RunningServer]:
        return _relayed(inner, server, tap)

    with front(server) as relayed:
        yield FrontedTarget(inner, relayed, front)


def direct_target(inner: Target, server: RunningServer) -> Target:
    """Return a target with nothing in front of its running server."""
    return FrontedTarget(inner, server, nullcontext)


@contextmanager
def _relayed(inner: Target, server: RunningServer, tap: Tap) -> Iterator[RelayedServer]:
    with open_relay(server.address, SERVICE, inner.identities, tap) as address:
        yield RelayedServer(address, server)
