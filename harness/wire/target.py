"""A target whose servers are behind relays with one tap."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


class RelayTarget:
    """See `Target`. `open_target` puts a relay in front of the server that checks share."""

    def __init__(self, inner: Target, tap: Tap, shared: RelayedServer) -> None:
        self._inner = inner
        self._tap = tap
        self._shared = shared
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
        return f"{self._inner.describe()}, behind a relay"

    @contextmanager
    def launch(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        wrapper: Sequence[str] = (),
    ) -> Iterator[RelayedServer]:
        """See `Target`."""
        with (
            self._inner.launch(
                variant, files=files, descriptors=descriptors, wrapper=wrapper
            ) as server,
            _relayed(self._inner, server, self._tap) as relayed,
        ):
            yield relayed

    @contextmanager
    def shared(self) -> Iterator[RelayedServer]:
        """See `Target`."""
        yield self._shared


@contextmanager
def open_target(inner: Target, server: RunningServer, tap: Tap) -> Iterator[RelayTarget]:
    """Put a relay in front of a target's running server, and of those that checks start."""
    with _relayed(inner, server, tap) as relayed:
        yield RelayTarget(inner, tap, relayed)


@contextmanager
def _relayed(inner: Target, server: RunningServer, tap: Tap) -> Iterator[RelayedServer]:
    with open_relay(server.address, SERVICE, inner.identities, tap) as address:
        yield RelayedServer(address, server)
