"""What a dialect is: a stub that speaks the canonical messages of `jobworker.v1` to any server.

Checks, readers and loads know `jobworker.v1` alone. A dialect's transport translates each call to
what its kind of server understands, and the answer back. What a dialect does not name is lacking:
an rpc answers UNIMPLEMENTED, a request's field is ignored, a response's field stays unset. The
capabilities are found by calls, as of any other server.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, Self

import grpc
from google.protobuf.message import Message

from harness.dialects.channel import ChannelOptions, open_channel
from harness.dialects.grpcurl import grpcurl
from harness.dialects.identity_scheme import OURS, Scheme
from harness.dialects.launch_recipe import LaunchRecipe
from harness.host.cert_files import CertFiles
from harness.record.terms import OWN_TERMS, Terms
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc

SERVICE: Final = pb.DESCRIPTOR.services_by_name["JobWorker"]
RPCS: Final = tuple(method.name for method in SERVICE.methods)


class Stub(Protocol):
    """The rpcs of `jobworker.v1`, called as those of the generated stub.

    Each takes `(canonical request, timeout=seconds)` and returns the canonical response; StreamLogs
    returns an iterable of them, with `cancel()`. A failure is raised as `grpc.RpcError` with
    `code()` and `details()`, by the iterable while it is read.
    """

    @property
    def StartJob(self) -> Callable[..., Any]: ...  # noqa: D102, N802

    @property
    def StopJob(self) -> Callable[..., Any]: ...  # noqa: D102, N802

    @property
    def QueryJob(self) -> Callable[..., Any]: ...  # noqa: D102, N802

    @property
    def StreamLogs(self) -> Callable[..., Any]: ...  # noqa: D102, N802

    @property
    def ListJobs(self) -> Callable[..., Any]: ...  # noqa: D102, N802

    @property
    def DeleteJob(self) -> Callable[..., Any]: ...  # noqa: D102, N802


class RawCall(NamedTuple):
    """A call for a client that speaks HTTP/2 itself: the path, and the request's bytes."""

    path: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection to a server with one client's certificate; a context manager.

    Attributes:
        stub: the rpcs; threads may share it.
        close: ends the connection and what is left of its calls.
        channel: the gRPC channel below the stub; None: the server is not called by gRPC.
    """

    stub: Stub
    close: Callable[[], None]
    channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(Protocol):
    """A stream of canonical messages of asyncio."""

    def __aiter__(self) -> AsyncIterator[pb.StreamLogsResponse]: ...

    def cancel(self) -> object:
        """Cancel the stream."""


class Transport(Protocol):
    """How the calls of a dialect reach a server.

    Attributes:
        service: full name of the gRPC service; "": the server is not called by gRPC.
    """

    service: str

    def connect(self, address: str, files: CertFiles, options: ChannelOptions = ()) -> Connection:
        """Return a connection of its own to HOST:PORT.

        Raises:
            BrokenError: the dialect does not fit the server.
        """

    def path(self, rpc: str) -> str:
        """Return the HTTP/2 path of a canonical rpc; "" if the dialect has no such rpc."""

    def encode(self, request: Message) -> bytes:
        """Return a canonical request in the server's own bytes."""

    def follow(
        self, channel: grpc.aio.Channel, request: pb.StreamLogsRequest, timeout_s: float
    ) -> "AsyncStream":
        """Stream a job's output by a channel of asyncio, after a first `connect`.

        Raises:
            BrokenError: the server is not called by gRPC.
        """

    def by_hand(self, request: Message, address: str, files: CertFiles) -> tuple[str, ...]:
        """Return the words of a command by which a person makes a call; empty: no such command.

        `NEW_ID` in a word is an id that the caller chooses.
        """

    def setup_by_hand(self, files: CertFiles) -> tuple[tuple[str, ...], ...]:
        """Return the commands that a person runs once before, to set up a client's files."""


class CanonicalTransport:
    """See `Transport`. The server has the API of `jobworker.v1` itself."""

    service = SERVICE.full_name

    def connect(self, address: str, files: CertFiles, options: ChannelOptions = ()) -> Connection:
        """See `Transport`."""
        channel = open_channel(address, files, options)
        return Connection(jobworker_pb2_grpc.JobWorkerStub(channel), channel.close, channel)

    def path(self, rpc: str) -> str:
        """See `Transport`."""
        return f"/{self.service}/{rpc}"

    def encode(self, request: Message) -> bytes:
        """See `Transport`."""
        return request.SerializeToString()

    def follow(
        self, channel: grpc.aio.Channel, request: pb.StreamLogsRequest, timeout_s: float
    ) -> AsyncStream:
        """See `Transport`."""
        stub: Any = jobworker_pb2_grpc.JobWorkerStub(channel)
        stream: AsyncStream = stub.StreamLogs(request, timeout=timeout_s)
        return stream

    def by_hand(self, request: Message, address: str, files: CertFiles) -> tuple[str, ...]:
        """See `Transport`."""
        described = ("-import-path", "proto", "-proto", "jobworker/v1/jobworker.proto")
        return grpcurl(address, files, self.path(rpc_of(request)), request, described)

    def setup_by_hand(self, files: CertFiles) -> tuple[tuple[str, ...], ...]:
        """See `Transport`."""
        del files
        return ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a kind of server is spoken to.

    Attributes:
        name: for reports.
        source: what `load_dialect` takes to make it again, in another process.
        description: one sentence.
        transport: how calls reach the server.
        terms: what the server has promised.
        identities: the certificates that it wants.
        launch: how such a server is started on this host; None: unknown.
    """

    name: str
    source: str
    description: str
    transport: Transport = field(repr=False, hash=False)
    terms: Terms = field(default=OWN_TERMS, hash=False)
    identities: Scheme = field(default=OURS, hash=False)
    launch: LaunchRecipe | None = field(default=None, hash=False)

    @property
    def is_grpc(self) -> bool:
        """Whether the server is called by gRPC, so that checks may speak HTTP/2 to it."""
        return bool(self.transport.service)

    def connect(self, address: str, files: CertFiles, options: ChannelOptions = ()) -> Connection:
        """See `Transport.connect`."""
        return self.transport.connect(address, files, options)

    def raw(self, request: Message) -> RawCall:
        """Return a canonical request as a call below gRPC."""
        rpc = rpc_of(request)
        return RawCall(self.transport.path(rpc), self.transport.encode(request))


def rpc_of(request: Message) -> str:
    """Return the canonical rpc that takes a request."""
    return request.DESCRIPTOR.name.removesuffix("Request")


CANONICAL: Final = Dialect(
    "jobworker.v1", "jobworker.v1", "This project's own API.", CanonicalTransport()
)
