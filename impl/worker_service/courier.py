"""Sends small output to streams that wait for it, without waking a thread for each.

A stream's own thread costs two wake-ups for each message: one for the output, one when gRPC has
taken it. So while a stream waits, one thread for all streams, the courier, sends what is small, and
the stream's thread sleeps on. It is woken for all else: the first message, a backlog, the log's
end, a cancel, its lease.

Guarantees:
  - A reader belongs to its own thread, to its log (which wakes it), or to the courier (until a
    message that it sends is taken). Only the owner moves its offset; one message is sent at a time.
  - A thread that wants its reader back gets it once the message is taken, or the call has ended.
  - What could not be sent is read again by the stream's thread: no byte is lost or repeated.

Shared state and its guard: `_owner` and `_recalled` of each reader under its `_turn`. `offset` and
`sent_at_s` are the owner's. The courier's queue is thread-safe; `_held` is its thread's alone.
"""

import enum
import heapq
import itertools
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final, override

from worker_service.log import Chunk, LogReader, OutputLog

logger = logging.getLogger(__name__)

# More is sent by the stream's own thread: to encrypt it here would keep all others waiting.
SMALL_BYTES: Final = 16 * 1024
CLOSE_MAX_S: Final = 2.0

# Begins to send a message and returns whether it could; calls back, from any thread, at its end.
type Send = Callable[[bytes, Callable[[], None]], bool]


class _Owner(enum.Enum):
    THREAD = enum.auto()
    LOG = enum.auto()
    COURIER = enum.auto()


class _Message:
    """What all readers of a log at one offset get."""

    __slots__ = ("data_bytes", "encoded", "log", "next_offset", "offset")

    def __init__(self, log: OutputLog, offset: int, chunk: Chunk, encoded: bytes) -> None:
        self.log = log
        self.offset = offset
        self.data_bytes = len(chunk.data)
        self.next_offset = chunk.offset + len(chunk.data)
        self.encoded = encoded


class Courier:
    """The thread that sends for all streams. `close` it after use.

    Args:
        encode: a chunk as a message.
        flush_interval_s, flush_bytes, message_max_bytes: see `follow.Batching`.
    """

    def __init__(
        self,
        encode: Callable[[Chunk], bytes],
        flush_interval_s: float,
        flush_bytes: int,
        message_max_bytes: int = SMALL_BYTES,
    ) -> None:
        self._encode = encode
        self.flush_interval_s = flush_interval_s
        self.flush_bytes = flush_bytes
        self.small_bytes = min(SMALL_BYTES, message_max_bytes)
        self._ready: queue.SimpleQueue[CourierReader | None] = queue.SimpleQueue()
        # Until their interval is over, which may be longer than a stream: its thread keeps it.
        self._held: list[tuple[float, int, weakref.ref[CourierReader]]] = []
        self._numbers = itertools.count()
        # Readers that keep up all have the same offset: their message is encoded once.
        self._last: _Message | None = None
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def reader(self, log: OutputLog, offset: int, send: Send) -> "CourierReader":
        """Return a reader of a log for which the courier sends."""
        return CourierReader(log, offset, self, send)

    def put(self, reader: "CourierReader") -> None:
        """Send what a reader has pending; from any thread, which hands the reader over."""
        self._ready.put(reader)

    def close(self) -> None:
        """End the thread, after the last stream."""
        self._ready.put(None)
        self._thread.join(CLOSE_MAX_S)

    def _run(self) -> None:
        while (reader := self._next()) is not None:
            try:
                self._deliver(reader)
            except Exception:
                # The thread is shared: one stream's error must not keep all others waiting.
                logger.exception("a message could not be sent; its stream tries by itself")
                reader.fail()
            del reader
            if self._ready.empty():
                self._last = None  # a log that is deleted must not be kept from here

    def _next(self) -> "CourierReader | None":
        """Wait for the next reader that is ready, or whose interval is over; None at the end."""
        while True:
            timeout_s = self._held[0][0] - time.monotonic() if self._held else None
            if timeout_s is None or timeout_s > 0:
                with suppress(queue.Empty):
                    return self._ready.get(timeout=timeout_s)
                continue
            reader = heapq.heappop(self._held)[2]()
            if reader is not None:
                reader.held = False
                if reader.take_from_log():
                    return reader
            del reader

    def _deliver(self, reader: "CourierReader") -> None:
        due_s = reader.sent_at_s + self.flush_interval_s
        if due_s > time.monotonic() and reader.queue_until_due():
            if not reader.held:
                reader.held = True
                heapq.heappush(self._held, (due_s, next(self._numbers), weakref.ref(reader)))
            return
        last = self._last
        if last is None or last.log is not reader.log or last.offset != reader.offset:
            chunk = reader.next_small()
            if chunk is None:
                return
            last = self._last = _Message(reader.log, reader.offset, chunk, self._encode(chunk))
        reader.send(last)


class CourierReader(LogReader):
    """A reader whose thread sleeps while the courier sends for it."""

    def __init__(self, log: OutputLog, offset: int, courier: Courier, send: Send) -> None:
        super().__init__(log, offset)
        self.log = log
        self.held = False  # the courier's thread's alone
        self._courier = courier
        self._send = send
        self._turn = threading.Lock()
        self._owner = _Owner.THREAD
        self._recalled = False
        self._failed = False

    # -- the stream's thread ------------------------------------------------------------------

    @override
    def wait(self, wanted_bytes: int, timeout_s: float | None = None) -> None:
        """See `LogReader.wait`. While the next byte is awaited, the courier may send it, and more.

        Then it returns only for what the courier does not do, or after the time.
        """
        if wanted_bytes > 1 or self._failed:
            super().wait(wanted_bytes, timeout_s)
            return
        with self._turn:
            self._recalled = False
            if not self._queue(1):
                return
        self._wakeup.wait(timeout_s)
        while not self._take_back():
            self._wakeup.wait()

    def _take_back(self) -> bool:
        with self._turn:
            if self._owner is _Owner.LOG:
                self._log._forget(self)  # noqa: SLF001 - a subclass of the other half
                self._owner = _Owner.THREAD
            self._recalled = True
            self._wakeup.clear()
            return self._owner is _Owner.THREAD

    # -- the writer ---------------------------------------------------------------------------

    @override
    def wake(self) -> None:
        """See `LogReader.wake`. If the courier has the reader, it looks for more by itself."""
        with self._turn:
            if self._owner is _Owner.LOG:
                pending_bytes, closed = self.pending_bytes()
                if closed or pending_bytes > self._courier.small_bytes:
                    self._give_back()
                else:
                    self._owner = _Owner.COURIER
                    self._courier.put(self)
            elif self._owner is _Owner.THREAD:
                self._wakeup.set()

    # -- the courier, and whoever reports the end of its message ------------------------------

    def take_from_log(self) -> bool:
        """Take the reader, if its log has it."""
        with self._turn:
            if self._owner is not _Owner.LOG:
                return False
            self._log._forget(self)  # noqa: SLF001 - as above
            self._owner = _Owner.COURIER
            return True

    def queue_until_due(self) -> bool:
        """Let the log wake the reader if so much is written that it is sent before its interval.

        Returns:
            False if so much is pending already.
        """
        with self._turn:
            return self._is_recalled() or self._queue(self._courier.flush_bytes)

    def next_small(self) -> Chunk | None:
        """Return the next chunk, which stays unread; None if the reader is not the courier's now.

        The thread gets it for all that is not small.
        """
        with self._turn:
            if self._is_recalled():
                return None
            pending_bytes, closed = self.pending_bytes()
            if closed or pending_bytes > self._courier.small_bytes:
                self._give_back()
                return None
            if pending_bytes == 0:
                if not self._queue(1):
                    self._courier.put(self)
                return None
            return self._log._read(self.offset, pending_bytes)  # noqa: SLF001 - as above

    def send(self, message: "_Message") -> None:
        """Send the message for this reader's offset. If that fails, the thread has to."""
        # Set before: it may be taken, and the next one be sent, before `_send` returns.
        self.offset = message.next_offset
        self.read_bytes += message.data_bytes
        begun = False
        try:
            begun = self._send(message.encoded, self._on_sent)
        finally:
            if not begun:
                self.offset = message.offset
                self.read_bytes -= message.data_bytes
                with self._turn:
                    self._give_back()

    def fail(self) -> None:
        """Leave all further messages to the thread."""
        with self._turn:
            self._failed = True
            self._give_back()

    def _on_sent(self) -> None:
        self.sent_at_s = time.monotonic()
        with self._turn:
            if not self._is_recalled() and not self._queue(1):
                self._courier.put(self)

    # -- the caller has `_turn` ---------------------------------------------------------------

    def _queue(self, wanted_bytes: int) -> bool:
        """Let the log wake the reader; return False if so much is pending already."""
        if not self._log._wait(self, self.offset + wanted_bytes):  # noqa: SLF001 - as above
            return False
        self._owner = _Owner.LOG
        if self.cancelled:  # before it was queued, which has cleared the wake-up
            self._wakeup.set()
        return True

    def _is_recalled(self) -> bool:
        if self._recalled or self.cancelled:
            self._give_back()
            return True
        return False

    def _give_back(self) -> None:
        self._owner = _Owner.THREAD
        self._wakeup.set()
