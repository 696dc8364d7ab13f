"""A target whose shared server runs already, and whose servers may have something in front."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from harness.host.cert_files import CertFiles
from harness.targets.target import DEFAULT, RunningServer, Target, Variant

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
        self.serial = inner.serial
        self.host = inner.host
        self.identities = inner.identities
        self.flags = inner.flags
        self.can_launch = inner.can_launch
        self.dialect = inner.dialect

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


def direct_target(inner: Target, server: RunningServer) -> Target:
    """Return a target with nothing in front of its running server."""
    return FrontedTarget(inner, server, nullcontext)
