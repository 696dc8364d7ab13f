"""The courier: small output without the stream's thread, and everything else with it."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from harness.host.clock import poll_until
from tests.support.log import append
from worker_service.courier import SMALL_BYTES, Courier, CourierReader
from worker_service.log import Chunk, OutputLog

WAIT_S: Final = 10
LONG_S: Final = 60.0


class Client:
    """Takes messages; each is on its way until `take`, or, with `at_once`, not at all."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.received = b""
        self.count = 0
        self._at_once = at_once
        self._sent: Callable[[], None] | None = None
        self.arrived = threading.Semaphore(0)

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        """See `courier.Send`."""
        assert self._sent is None, "a second message while one is on its way"
        self.received += message
        self.count += 1
        if self._at_once:
            sent()
        else:
            self._sent = sent
        self.arrived.release()
        return True

    def take(self) -> None:
        """Report the message as taken."""
        sent, self._sent = self._sent, None
        assert sent is not None
        sent()


encoded: list[Chunk] = []


def encode(chunk: Chunk) -> bytes:
    encoded.append(chunk)
    return bytes(chunk.data)


@pytest.fixture
def courier() -> Iterator[Courier]:
    encoded.clear()
    made = Courier(encode, 0, 1 << 18)
    yield made
    made.close()


@contextmanager
def waiting(reader: CourierReader, timeout_s: float = LONG_S) -> Iterator[threading.Event]:
    """Let a stream's thread wait for the next byte; yield an event that is set at its return."""
    returned, begun = threading.Event(), threading.Event()
    queued = reader.prepare_wait

    def prepare(wanted_offset: int) -> None:
        queued(wanted_offset)
        begun.set()

    reader.prepare_wait = prepare  # type: ignore[method-assign] # of this one reader only

    def wait() -> None:
        reader.wait(1, timeout_s)
        returned.set()

    # A daemon: where the courier is broken it may wait for ever, and would keep the process.
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        assert begun.wait(WAIT_S)
        yield returned
    finally:
        reader.cancel()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def test_small_output_is_sent_while_the_streams_thread_waits(courier: Courier) -> None:
    log, client = OutputLog(), Client()
    reader = courier.reader(log, 0, client.send)
    with waiting(reader) as returned:
        for word in (b"one", b"two", b"three"):
            append(log, word)
            assert client.arrived.acquire(timeout=WAIT_S)
        assert not returned.is_set()
    assert client.received == b"onetwothree"
    assert (reader.offset, reader.read_bytes) == (11, 11)


def test_readers_at_one_offset_share_one_message(courier: Courier) -> None:
    log = OutputLog()
    clients = [Client() for _ in range(5)]
    readers = [courier.reader(log, 0, client.send) for client in clients]
    hold, held = threading.Event(), threading.Event()

    def busy(_message: bytes, sent: Callable[[], None]) -> bool:
        held.set()
        assert hold.wait(WAIT_S)
        sent()
        return True

    other = OutputLog()
    with (
        waiting(courier.reader(other, 0, busy)),
        waiting(readers[0]), waiting(readers[1]), waiting(readers[2]), waiting(readers[3]),
        waiting(readers[4]),
    ):  # fmt: skip
        append(other, b"first")  # until all five are ready, the courier has something else to do
        assert held.wait(WAIT_S)
        append(log, b"line")
        hold.set()
        assert all(client.arrived.acquire(timeout=WAIT_S) for client in clients)
    assert [client.received for client in clients] == [b"line"] * 5
    assert [bytes(chunk.data) for chunk in encoded] == [b"first", b"line"]


def backlog(log: OutputLog, _reader: CourierReader) -> None:
    append(log, bytes(SMALL_BYTES + 1))


def end(log: OutputLog, _reader: CourierReader) -> None:
    log.close()


def cancel(_log: OutputLog, reader: CourierReader) -> None:
    reader.cancel()


@pytest.mark.parametrize("event", [backlog, end, cancel])
def test_thread_gets_its_reader_back_for(
    event: Callable[[OutputLog, CourierReader], None], courier: Courier
) -> None:
    log, client = OutputLog(), Client()
    reader = courier.reader(log, 0, client.send)
    with waiting(reader) as returned:
        event(log, reader)
        assert returned.wait(WAIT_S)
    assert client.count == 0


def test_thread_gets_its_reader_back_after_its_time(courier: Courier) -> None:
    reader = courier.reader(OutputLog(), 0, Client().send)
    with waiting(reader, timeout_s=0.01) as returned:
        assert returned.wait(WAIT_S)


def test_no_message_is_larger_than_the_setting_allows() -> None:
    courier = Courier(encode, 0, 10, message_max_bytes=10)
    log, client = OutputLog(), Client()
    reader = courier.reader(log, 0, client.send)
    with waiting(reader) as returned:
        append(log, bytes(10))
        assert client.arrived.acquire(timeout=WAIT_S)
        assert not returned.is_set()
        append(log, bytes(11))  # the stream's thread divides it
        assert returned.wait(WAIT_S)
    courier.close()
    assert (client.received, reader.offset) == (bytes(10), 10)


@pytest.mark.parametrize("event", [backlog, end, cancel])
def test_thread_waits_for_the_message_that_is_on_its_way(
    event: Callable[[OutputLog, CourierReader], None], courier: Courier
) -> None:
    log, client = OutputLog(), Client(at_once=False)
    reader = courier.reader(log, 0, client.send)
    with waiting(reader) as returned:
        append(log, b"word")
        assert client.arrived.acquire(timeout=WAIT_S)
        event(log, reader)
        assert not returned.wait(0.05)
        client.take()
        assert returned.wait(WAIT_S)
    assert (client.received, reader.offset) == (b"word", 4)


def test_output_that_comes_while_a_message_is_on_its_way_is_the_next_message(
    courier: Courier,
) -> None:
    log, client = OutputLog(), Client(at_once=False)
    with waiting(courier.reader(log, 0, client.send)):
        append(log, b"one")
        assert client.arrived.acquire(timeout=WAIT_S)
        append(log, b"two")
        append(log, b"three")
        client.take()
        assert client.arrived.acquire(timeout=WAIT_S)
        client.take()
    assert (client.received, client.count) == (b"onetwothree", 2)


def refuse(_message: bytes, _sent: Callable[[], None]) -> bool:
    return False


def fail(_message: bytes, _sent: Callable[[], None]) -> bool:
    raise TypeError("another gRPC")


@pytest.mark.parametrize("send", [refuse, fail])
def test_what_cannot_be_sent_is_left_to_the_thread(
    send: Callable[[bytes, Callable[[], None]], bool], courier: Courier
) -> None:
    log, client = OutputLog(), Client()
    reader = courier.reader(log, 0, send)
    with waiting(reader) as returned:
        append(log, b"word")
        assert returned.wait(WAIT_S)
    assert bytes(reader.read(100).data) == b"word"
    assert reader.read_bytes == 4
    with waiting(courier.reader(log, 4, client.send)):  # the courier still runs
        append(log, b"next")
        assert client.arrived.acquire(timeout=WAIT_S)


def test_second_message_waits_for_the_interval_or_for_enough_output() -> None:
    courier = Courier(encode, LONG_S, 10)
    log, client = OutputLog(), Client()
    with waiting(courier.reader(log, 0, client.send)) as returned:
        append(log, b"one")
        assert client.arrived.acquire(timeout=WAIT_S)
        append(log, b"two")
        assert not client.arrived.acquire(timeout=0.05)
        append(log, b"1234567890")
        assert client.arrived.acquire(timeout=WAIT_S)
        assert not returned.is_set()
    courier.close()
    assert (client.received, client.count) == (b"onetwo1234567890", 2)


def test_second_message_is_sent_after_the_interval() -> None:
    courier = Courier(encode, 0.02, 1000)
    log, client = OutputLog(), Client()
    with waiting(courier.reader(log, 0, client.send)):
        append(log, b"one")
        assert client.arrived.acquire(timeout=WAIT_S)
        append(log, b"two")
        assert client.arrived.acquire(timeout=WAIT_S)
    courier.close()
    assert client.received == b"onetwo"


def test_courier_keeps_no_stream_that_has_ended_within_its_interval() -> None:
    courier = Courier(encode, LONG_S, 1000)
    log, client = OutputLog(), Client()
    reader = courier.reader(log, 0, client.send)
    kept = weakref.ref(reader)
    with waiting(reader):
        append(log, b"one")
        assert client.arrived.acquire(timeout=WAIT_S)
        append(log, b"two")
        poll_until(lambda: courier._held or None, WAIT_S, "a reader that waits for its interval")
    del reader
    gc.collect()
    assert kept() is None
    courier.close()
    assert client.received == b"one"


def test_idle_courier_keeps_no_log(courier: Courier) -> None:
    log, client = OutputLog(), Client()
    kept = weakref.ref(log)
    with waiting(courier.reader(log, 0, client.send)):
        append(log, b"word")
        assert client.arrived.acquire(timeout=WAIT_S)
    other = OutputLog()
    with waiting(courier.reader(other, 0, client.send)):
        append(other, b"word")
        assert client.arrived.acquire(timeout=WAIT_S)
    del log
    gc.collect()
    assert kept() is None
