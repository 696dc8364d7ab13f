"""A gRPC server that passes every call on to another server, through a `Tap`.

A caller is represented by its own certificate: the relay finds it, and its key, among the
identities of the harness. Requests and responses of the API are decoded by its descriptors; calls
of other services pass as bytes. Out of a relay's reach is what the server's own connections show:
its TLS versions, certificates and session tickets, its HTTP/2 limits, and its clients' addresses.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import grpc
from cryptography import x509
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from harness.dialects.channel import open_channel
from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.record.verdict import BrokenError
from harness.wire.tap import Tap

# A stream holds a thread for its whole life.
THREADS: Final = 512
STOP_S: Final = 5.0
_UNLIMITED: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)
_OWN_METADATA: Final = (":", "grpc-", "user-agent", "content-type", "te")


@contextmanager
def open_relay(
    address: str, service: ServiceDescriptor, identities: IdentityStore, tap: Tap
) -> Iterator[str]:
    """Relay calls to the server at an address; yield the relay's own HOST:PORT.

    Raises:
        BrokenError: it cannot listen.
    """
    upstreams = _Upstreams(address, identities)
    server = grpc.server(ThreadPoolExecutor(THREADS), options=_UNLIMITED)
    server.add_generic_rpc_handlers((_Relay(service, upstreams, tap),))
    port = server.add_secure_port("127.0.0.1:0", _credentials(identities.files("server")))
    if not port:
        raise BrokenError("the relay cannot listen on the loopback address")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        upstreams.close()
        server.stop(0).wait(STOP_S)


def _credentials(files: CertFiles) -> grpc.ServerCredentials:
    pair = files.key.read_bytes(), files.cert.read_bytes()
    return grpc.ssl_server_credentials([pair], files.ca.read_bytes(), require_client_auth=True)


class _Upstreams:
    """Connections to the server, one for each caller's certificate.

    Shared state and its guard: `_channels` under `_lock`.
    """

    def __init__(self, address: str, identities: IdentityStore) -> None:
        self._address = address
        self._identities = identities
        self._lock = threading.Lock()
        self._channels: dict[bytes, grpc.Channel] = {}

    def of(self, certificate: bytes) -> grpc.Channel | None:
        """Return the connection of a caller; None if its key is unknown."""
        with self._lock:
            if certificate not in self._channels:
                files = self._files(certificate)
                if files is None:
                    return None
                self._channels[certificate] = open_channel(self._address, files)
            return self._channels[certificate]

    def _files(self, certificate: bytes) -> CertFiles | None:
        wanted = x509.load_pem_x509_certificate(certificate)
        for path in sorted(self._identities.directory.glob("*.crt")):
            if x509.load_pem_x509_certificate(path.read_bytes()) == wanted:
                return self._identities.files(path.stem)
        return None

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()


class _Relay(grpc.GenericRpcHandler):
    """Handles every rpc of every service."""

    def __init__(self, service: ServiceDescriptor, upstreams: _Upstreams, tap: Tap) -> None:
        self._methods = {
            f"/{service.full_name}/{method.name}": method
            for method in service.methods
            if not method.client_streaming
        }
        self._upstreams = upstreams
        self._tap = tap

    def service(self, handler_call_details: Any) -> Any:  # noqa: ANN401 - grpc's types
        """Return the handler of a call."""
        path: str = handler_call_details.method
        method = self._methods.get(path)
        if method is None:
            return grpc.stream_stream_rpc_method_handler(self._bytes_handler(path))
        request = message_factory.GetMessageClass(method.input_type)
        make, handler = (
            (grpc.unary_stream_rpc_method_handler, self._stream_handler(path, method))
            if method.server_streaming
            else (grpc.unary_unary_rpc_method_handler, self._unary_handler(path, method))
        )
        return make(handler, request.FromString, _serialize)

    def _channel(self, context: grpc.ServicerContext) -> grpc.Channel:
        identity: Any = context.auth_context()  # annotated wrongly: names are text
        channel = self._upstreams.of(identity["x509_pem_cert"][0])
        if channel is None:
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "the relay does not hold the key of this caller"
            )
        return channel

    def _bytes_handler(self, path: str) -> Callable[..., Iterator[bytes]]:
        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            remote: Any = self._channel(context).stream_stream(path)
            call = remote(requests, **_like(context))
            _cancel_with(context, call)
            try:
                yield from call
            except grpc.RpcError as error:
                context.abort(error.code(), error.details() or "")

        return relay

    def _unary_handler(self, path: str, method: MethodDescriptor) -> Callable[..., Message]:
        kind = message_factory.GetMessageClass(method.output_type)

        def relay(request: Message, context: grpc.ServicerContext) -> Message:
            self._tap.message(request)
            remote = self._channel(context).unary_unary(path, _serialize, kind.FromString)
            call = remote.future(request, **_like(context))
            _cancel_with(context, call)
            status, details, response = grpc.StatusCode.OK, "", kind()
            try:
                response = call.result()
                self._tap.message(response)
            except grpc.FutureCancelledError:
                status, details = grpc.StatusCode.CANCELLED, "the client has left"
            except grpc.RpcError as error:
                status, details = error.code(), error.details() or ""
            self._end(method, context, status, details)
            return response

        return relay

    def _stream_handler(
        self, path: str, method: MethodDescriptor
    ) -> Callable[..., Iterator[Message]]:
        kind = message_factory.GetMessageClass(method.output_type)

        def relay(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
            self._tap.message(request)
            gone = threading.Event()
            if not context.add_callback(gone.set):
                gone.set()
            remote = self._channel(context).unary_stream(path, _serialize, kind.FromString)
            call = remote(request, **_like(context))
            _cancel_with(context, call)
            status, details = grpc.StatusCode.OK, ""
            try:
                yield from self._tap.stream(method.name, self._tapped(call), gone)
            except grpc.RpcError as error:
                status, details = error.code(), error.details() or ""
            finally:
                call.cancel()
            self._end(method, context, status, details)

        return relay

    def _tapped(self, messages: Iterator[Message]) -> Iterator[Message]:
        for message in messages:
            self._tap.message(message)
            yield message

    def _end(
        self,
        method: MethodDescriptor,
        context: grpc.ServicerContext,
        status: grpc.StatusCode,
        details: str,
    ) -> None:
        """End a call with the status that its client gets."""
        status, details = self._tap.status(method.name, status, details)
        if status is not grpc.StatusCode.OK:
            context.abort(status, details)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _like(context: grpc.ServicerContext) -> dict[str, Any]:
    """Return the deadline and the metadata of a call, for the call that represents it."""
    metadata = [
        (key, value)
        for key, value in context.invocation_metadata()
        if not key.startswith(_OWN_METADATA)
    ]
    return {"timeout": context.time_remaining(), "metadata": metadata}


def _cancel_with(context: grpc.ServicerContext, call: Any) -> None:  # noqa: ANN401 - grpc's types
    """Cancel a call to the server when the client leaves."""
    if not context.add_callback(call.cancel):
        call.cancel()
