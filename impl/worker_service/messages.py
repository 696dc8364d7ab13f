"""Requests and responses between gRPC and the rpcs: reports errors that gRPC would hide."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import DecodeError


class Unreadable:
    """A request that cannot be parsed as a message of the expected type."""


def all_requests(requests: Iterator[object]) -> Iterator[object]:
    """Yield each request; distinguish a call that was reset (raises) from one that ended.

    gRPC reports a reset after the end of the requests that the reset causes. A second iteration
    finds it: its result is delivered after the report.

    Raises:
        grpc.RpcError: the call was reset.
    """
    yield from requests
    yield from requests


def deserializer(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Pass unparsable requests on as `Unreadable`: gRPC itself would answer INTERNAL, unaudited."""
    if deserialize is None:
        return None

    def read(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable()

    return read


def serializer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Allow a handler to return bytes that are already serialized."""
    if serialize is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serialize(response)
