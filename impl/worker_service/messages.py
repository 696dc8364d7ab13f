"""Requests and responses between gRPC and the rpcs: what of them gRPC would leave unsaid."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import DecodeError


class Unreadable:
    """Stands for a request that is no message of its kind."""


def all_requests(requests: Iterator[object]) -> Iterator[object]:
    """Pass on each request, and tell a call that was reset (it raises) from one that ended.

    gRPC reports a reset behind the end of the requests that it brings about. Who asks again learns
    of it: the answer to the second question comes behind that report.

    Raises:
        grpc.RpcError: the call was reset.
    """
    yield from requests
    yield from requests


def deserializer(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Let the gate say what is wrong with a request: gRPC would say INTERNAL, and nobody else."""
    if deserialize is None:
        return None

    def read(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable()

    return read


def serializer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Let a handler return bytes that are serialized already."""
    if serialize is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serialize(response)
