"""The courier: who has a stream's reader, whatever comes at once."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

from harness.races.instrumentation import Watch
from harness.races.scenario import Scenario
from tests.races.support import run_threads
from tests.support.log import append
from worker_service import courier as courier_module
from worker_service import log as log_module
from worker_service.courier import Courier, CourierReader
from worker_service.log import LogReader, OutputLog

WORDS = (b"ab", b"cde")


class ModelQueue[Item]:
    """A queue whose waits the scheduler controls."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()

    def put(self, item: Item) -> None:
        """See `queue.SimpleQueue.put`."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def get(self, timeout: float | None = None) -> Item:
        """See `queue.SimpleQueue.get`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items), timeout):
                raise queue.Empty
            return self._items.popleft()

    def empty(self) -> bool:
        """See `queue.SimpleQueue.empty`."""
        with self._changed:
            return not self._items


@contextmanager
def running() -> Iterator[Courier]:
    fake_queue = SimpleNamespace(SimpleQueue=ModelQueue, Empty=queue.Empty)
    with mock.patch.object(courier_module, "queue", fake_queue):
        courier = Courier(lambda chunk: bytes(chunk.data), 0, 1)
        yield courier
        courier.close()


def a_stream_follows() -> None:
    received = bytearray()

    def send(message: bytes, sent: Callable[[], None]) -> bool:
        received.extend(message)
        sent()
        return True

    with running() as courier:
        log = OutputLog()
        reader = courier.reader(log, 0, send)

        def writer() -> None:
            for word in WORDS:
                append(log, word)
            log.close()

        def stream() -> None:
            while True:
                pending_bytes, closed = reader.pending_bytes()
                if pending_bytes:
                    received.extend(reader.read(100).data)
                elif closed:
                    return
                else:
                    reader.wait(1, threading.TIMEOUT_MAX)

        run_threads(writer, stream)
    assert bytes(received) == b"".join(WORDS), bytes(received)


def a_message_ends_beside_a_cancel() -> None:
    received = bytearray()
    ends: ModelQueue[Callable[[], None] | None] = ModelQueue()
    on_its_way: list[bytes] = []

    def send(message: bytes, sent: Callable[[], None]) -> bool:
        received.extend(message)
        on_its_way.append(message)
        ends.put(sent)
        return True

    with running() as courier:
        log = OutputLog()
        reader = courier.reader(log, 0, send)

        def stream() -> None:
            while not received and not reader.cancelled:
                if reader.pending_bytes()[0]:
                    received.extend(reader.read(100).data)
                    ends.put(None)
                else:
                    reader.wait(1, threading.TIMEOUT_MAX)
            assert not on_its_way, "the thread has its reader, but a message is on its way"

        def client() -> None:
            append(log, WORDS[0])
            sent = ends.get()
            threading.Thread(target=reader.cancel, name="cancel").start()
            if sent is not None:
                on_its_way.clear()
                sent()

        run_threads(stream, client)
    assert bytes(received) == WORDS[0], bytes(received)


WATCH = Watch((CourierReader, LogReader, OutputLog))
EXPLORED = (courier_module, log_module)

SCENARIOS = (
    Scenario(
        "courier.follow", "A client gets every byte once, whether thread or courier sends it.",
        a_stream_follows, EXPLORED, WATCH,
    ),
    Scenario(
        "courier.cancel", "A cancelled thread gets its reader once the message is taken.",
        a_message_ends_beside_a_cancel, EXPLORED, WATCH,
    ),
)  # fmt: skip
