"""Calls below the client: with their headers and requests sent one by one."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest


@contextmanager
def begin_call(connection: grpc.Channel, method: str, *messages: bytes) -> Iterator[Any]:
    """Begin a call: send its headers and some messages, but not the end of the requests."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for message in messages:
        requests.put(message)
    call: Any = connection.stream_stream(method)(iter(requests.get, None), timeout=30)  # type: ignore[arg-type]
    try:
        yield call
    finally:
        call.cancel()
        requests.put(None)


def refusal(call: Any) -> grpc.RpcError:
    """Return the error of a call that must fail before it sends anything."""
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    return refused.value
