"""What gRPC for Python does beyond its public interface: a new version may do otherwise."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import pytest

from worker_service.grpc_internals import request_calls, sender

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


class Service:
    """A stream whose first message is its thread's; the test sends all others."""

    def __init__(self) -> None:
        self.sends: Any = None
        self.at_first: bool | None = None
        self.ready, self.end, self.ended = (threading.Event() for _ in range(3))

    def stream(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send one message, and end when the test says so or the client cancels."""
        self.sends = sender(context)
        context.add_callback(self.ended.set)
        context.add_callback(self.end.set)
        self.at_first = self.sends(b"too early", self.ended.set)
        yield b"first"
        self.ready.set()
        self.end.wait(END_MAX_S)


@pytest.fixture
def streaming() -> Iterator[tuple[Service, Any]]:
    service = Service()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        handler: Any = grpc.unary_stream_rpc_method_handler(service.stream)
        server.add_registered_method_handlers("service", {"Stream": handler})
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream: Any = channel.unary_stream("/service/Stream")
            call = stream(b"", timeout=END_MAX_S)
            assert next(call) == b"first"
            assert service.ready.wait(END_MAX_S)
            yield service, call
        assert server.stop(None).wait(END_MAX_S)


def test_this_grpc_sends_messages_for_a_stream_whose_thread_waits(
    streaming: tuple[Service, Any],
) -> None:
    service, call = streaming
    assert service.at_first is False  # gRPC's own first message has the metadata
    for number in range(3):
        sent = threading.Event()
        assert service.sends(b"%d" % number, sent.set) is True
        assert sent.wait(END_MAX_S)
    service.end.set()
    assert list(call) == [b"0", b"1", b"2"]
    assert call.code() is grpc.StatusCode.OK


def test_a_stream_with_a_message_that_is_not_taken_ends_with_its_client(
    streaming: tuple[Service, Any],
) -> None:
    service, call = streaming
    sent = threading.Event()
    assert service.sends(bytes(1 << 21), sent.set) is True  # more than an unread window
    call.cancel()
    assert sent.wait(END_MAX_S)
    assert service.ended.wait(END_MAX_S)
    assert service.sends(b"too late", sent.set) is False


def test_an_error_at_a_messages_end_does_not_end_grpcs_thread(
    streaming: tuple[Service, Any], caplog: pytest.LogCaptureFixture
) -> None:
    service, call = streaming
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise MemoryError

    assert service.sends(b"0", fail) is True
    assert failed.wait(END_MAX_S)
    service.end.set()
    assert list(call) == [b"0"]
    assert service.ended.wait(END_MAX_S)  # on gRPC's thread, after its message's end
    assert "the server goes on" in caplog.text


def test_another_grpc_sends_by_the_streams_own_thread(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert sender(object()) is None  # type: ignore[arg-type] # that is the point
    assert "not as expected" in caplog.text
