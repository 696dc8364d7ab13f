"""What gRPC for Python does beyond its public interface: a new version may do otherwise."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import pytest

from worker_service.grpc_internals import request_calls

METHOD: Final = "/service/Echo"
COUNT: Final = 5
END_MAX_S: Final = 20


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    with ThreadPoolExecutor(2) as pool:
        made = grpc.server(pool)
        handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
        made.add_registered_method_handlers("service", {"Echo": handler})
        yield made
        assert made.stop(None).wait(END_MAX_S)


def answers(server: grpc.Server, count: int) -> list[bytes]:
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    request_calls(server, COUNT)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(METHOD)
        return [call(b"%d" % number, timeout=END_MAX_S) for number in range(count)]


def test_this_grpc_takes_several_calls_at_a_time_and_goes_on_to_after_each(
    server: grpc.Server,
) -> None:
    assert answers(server, 2 * COUNT) == [b"%d" % number for number in range(2 * COUNT)]
    state: Any = server._state  # type: ignore[attr-defined]
    with state.lock:
        assert state.due[METHOD] == COUNT


def test_a_server_that_takes_several_calls_at_a_time_ends(server: grpc.Server) -> None:
    answers(server, 1)
    assert server.stop(None).wait(END_MAX_S)


def test_another_grpc_takes_calls_one_by_one(
    server: grpc.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state: Any = server._state  # type: ignore[attr-defined]
    monkeypatch.setattr(state, "registered_method_handlers", None)
    with caplog.at_level(logging.WARNING):
        assert request_calls(server, COUNT) is False
    assert "calls are accepted one by one" in caplog.text
    monkeypatch.undo()
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(METHOD)
        assert call(b"answered", timeout=END_MAX_S) == b"answered"
