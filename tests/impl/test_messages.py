"""Requests of a call that is reset, distinguished from requests that ended."""

from collections.abc import Iterator

import grpc
import pytest

from worker_service.messages import all_requests


class ResetAfterTheEnd:
    """Requests as gRPC delivers them of a reset call: one request, an end, and then the reset."""

    def __init__(self) -> None:
        self._left: list[object] = ["a request", StopIteration(), grpc.RpcError("reset")]

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        answer = self._left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_all_requests_raises_if_the_call_was_reset_after_its_requests() -> None:
    requests = all_requests(ResetAfterTheEnd())
    assert next(requests) == "a request"
    with pytest.raises(grpc.RpcError, match="reset"):
        next(requests)


def test_all_requests_ends_with_the_requests() -> None:
    assert list(all_requests(iter(["a request"]))) == ["a request"]
