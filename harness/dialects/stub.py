"""The stub of a gRPC dialect: canonical calls, made with a server's own messages.

The schema is bound when the dialect is loaded; one that the server itself describes, at the first
connection.
"""

import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from harness.dialects.channel import ChannelOptions, open_channel
from harness.dialects.dialect import RPCS, Connection, rpc_of
from harness.dialects.grpcurl import grpcurl
from harness.dialects.schema import Schema, UnfitValueError, reflected
from harness.dialects.tables import GrpcTables
from harness.dialects.translation import Translation, translations
from harness.host.cert_files import CertFiles
from harness.record.terms import NOT_SENT
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb


class DialectError(grpc.RpcError):
    """A call that was not sent, since the dialect cannot express it: it ends with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._code

    def details(self) -> str:
        """Return the reason."""
        return self._details


class GrpcTransport:
    """See `Transport`. The server has an API of its own, over gRPC.

    Shared state and its guard: `_bound`, written once, under `_lock`.

    Args:
        tables: how it is called.
        descriptors: its descriptor set; None: the server describes itself.
        name: of the dialect, for errors.
        unknown_id: a well-formed id of a job that no server has.
        folder: that the paths in the tables begin in.

    Raises:
        BrokenError: the tables do not fit the descriptors, or the id its fields.
    """

    def __init__(
        self,
        tables: GrpcTables,
        descriptors: bytes | None,
        name: str,
        unknown_id: str,
        folder: Path,
    ) -> None:
        self.service = tables.protocol.service
        self._name = name
        self._unknown_id = unknown_id
        self._folder = folder.absolute()
        self._tables = tables
        self._lock = threading.Lock()
        self._bound: dict[str, Translation] | None = None
        if descriptors is not None:
            self._bound = self._bind(descriptors)

    def _bind(self, descriptors: bytes) -> dict[str, Translation]:
        bound = translations(Schema(descriptors, self.service), self._tables)
        job_id = self._unknown_id
        for request in (
            pb.QueryJobRequest(job_id=job_id), pb.StopJobRequest(job_id=job_id),
            pb.StreamLogsRequest(job_id=job_id),
        ):  # fmt: skip
            try:
                bound[rpc_of(request)].request(request)
            except UnfitValueError as error:
                raise BrokenError(
                    f"unknown_id {job_id!r} does not fit: {error}; give a well-formed id that no "
                    "job has, such as unknown_id = '999999999'"
                ) from error
        return bound

    def connect(self, address: str, files: CertFiles, options: ChannelOptions = ()) -> Connection:
        """See `Transport`."""
        channel = open_channel(address, files, options)
        try:
            with self._lock:
                if self._bound is None:
                    self._bound = self._bind(reflected(channel, self.service))
        except BrokenError as error:
            channel.close()
            raise BrokenError(f"{self._name}: {error}") from error
        return Connection(GrpcStub(channel, self._bound), channel.close, channel)

    def path(self, rpc: str) -> str:
        """See `Transport`."""
        names = {
            "StartJob": self._tables.start, "StopJob": self._tables.stop,
            "QueryJob": self._tables.query, "StreamLogs": self._tables.stream,
            "ListJobs": self._tables.list, "DeleteJob": self._tables.delete,
        }  # fmt: skip
        table = names.get(rpc)
        return f"/{self.service}/{table.rpc}" if table is not None else ""

    def encode(self, request: Message) -> bytes:
        """See `Transport`."""
        rpc = rpc_of(request)
        bound = self._bound
        if bound is None or rpc not in bound:
            raise BrokenError(f"{self._name}: no message of {rpc} is known before a connection")
        try:
            return bound[rpc].request(request).SerializeToString()
        except UnfitValueError as error:
            raise BrokenError(f"{self._name}: {error}") from error

    def by_hand(self, request: Message, address: str, files: CertFiles) -> tuple[str, ...]:
        """See `Transport`."""
        rpc, bound = rpc_of(request), self._bound
        if bound is None or rpc not in bound:
            return ()
        try:
            message = bound[rpc].request(request)
        except UnfitValueError:
            return ()
        return grpcurl(address, files, self.path(rpc), message, self._described())

    def setup_by_hand(self, files: CertFiles) -> tuple[tuple[str, ...], ...]:
        """See `Transport`."""
        del files
        return ()

    def _described(self) -> list[str]:
        """Return grpcurl's options that say where the messages are described."""
        protocol = self._tables.protocol
        if protocol.descriptor_set:
            return ["-protoset", str(self._folder / protocol.descriptor_set)]
        if not protocol.proto:
            return []
        proto = self._folder / protocol.proto
        folders = [*(self._folder / each for each in protocol.imports), proto.parent]
        paths = [word for each in folders for word in ("-import-path", str(each))]
        return [*paths, "-proto", proto.name]

    def follow(
        self, channel: grpc.aio.Channel, request: pb.StreamLogsRequest, timeout_s: float
    ) -> "TranslatedAsyncStream":
        """See `Transport`."""
        if self._bound is None:
            raise BrokenError(f"{self._name}: no message is known before a connection")
        translation = self._bound["StreamLogs"]
        call: Any = channel.unary_stream(
            translation.path, translation.serialize, translation.response_class.FromString
        )
        message = _request(translation, request)
        return TranslatedAsyncStream(call(message, timeout=timeout_s), translation)


class GrpcStub:
    """See `Stub`."""

    def __init__(self, channel: grpc.Channel, bound: dict[str, Translation]) -> None:
        calls: dict[str, Callable[..., Any]] = {}
        for rpc in RPCS:
            translation = bound.get(rpc)
            if translation is None:
                calls[rpc] = functools.partial(_missing, rpc)
            elif rpc == "StreamLogs":
                calls[rpc] = _streaming(channel, translation)
            else:
                calls[rpc] = _unary(channel, translation)
        self.StartJob = calls["StartJob"]
        self.StopJob = calls["StopJob"]
        self.QueryJob = calls["QueryJob"]
        self.StreamLogs = calls["StreamLogs"]
        self.ListJobs = calls["ListJobs"]
        self.DeleteJob = calls["DeleteJob"]


def _missing(rpc: str, request: Message, timeout: float | None = None) -> Message:
    del request, timeout
    raise DialectError(grpc.StatusCode.UNIMPLEMENTED, f"the dialect has no {rpc}")


def _request(translation: Translation, canonical: Message) -> Message:
    """Return a request in the server's messages; a value that they cannot have is not sent."""
    try:
        return translation.request(canonical)
    except UnfitValueError as error:
        raise DialectError(grpc.StatusCode.INVALID_ARGUMENT, f"{NOT_SENT}{error}") from error


def _unary(channel: grpc.Channel, translation: Translation) -> Callable[..., Any]:
    call: Any = channel.unary_unary(
        translation.path,
        translation.serialize,
        translation.response_class.FromString,
    )

    def make(request: Message, timeout: float | None = None) -> Message:
        return translation.response(call(_request(translation, request), timeout=timeout))

    return make


def _streaming(channel: grpc.Channel, translation: Translation) -> Callable[..., Any]:
    call: Any = channel.unary_stream(
        translation.path,
        translation.serialize,
        translation.response_class.FromString,
    )

    def make(request: Message, timeout: float | None = None) -> "TranslatedStream":
        return TranslatedStream(call(_request(translation, request), timeout=timeout), translation)

    return make


class TranslatedStream:
    """A stream of canonical messages; failures are those of the stream below."""

    def __init__(self, call: Any, translation: Translation) -> None:  # noqa: ANN401 - grpc's
        self._call = call
        self._translation = translation
        self._skip_first = translation.skip_first

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        if self._skip_first:
            self._skip_first = False
            next(self._call)
        return self._translation.response(next(self._call))

    def cancel(self) -> None:
        """Cancel the stream; any thread may call this."""
        self._call.cancel()


class TranslatedAsyncStream:
    """The same by asyncio."""

    def __init__(self, call: Any, translation: Translation) -> None:  # noqa: ANN401 - grpc's
        self._call = call
        self._translation = translation

    async def __aiter__(self) -> AsyncIterator[pb.StreamLogsResponse]:
        skip = self._translation.skip_first
        async for message in self._call:
            if not skip:
                chunk: Any = self._translation.response(message)
                yield chunk
            skip = False

    def cancel(self) -> None:
        """Cancel the stream."""
        self._call.cancel()
