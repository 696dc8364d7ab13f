"""Batches one reader's bytes into messages, within a budget shared by all streams.

Batching adapts to the client: output after a pause is sent at once; under a steady flow a message
is sent when `flush_bytes` are pending or `flush_interval_s` has passed since the last one; a client
with a backlog gets the largest messages that the budget allows.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from worker_service.errors import CapacityReachedError
from worker_service.log import Chunk, LogReader

# Every stream gets this much, so that stalled ones that hold the budget cannot starve it: messages
# of this size still reach half of the full speed (with 16 KiB it is a fifteenth).
MESSAGE_MIN_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Batching:
    """When pending output becomes a message.

    Attributes:
        flush_interval_s: minimum time between two messages smaller than `flush_bytes`.
        flush_bytes: this many pending bytes are sent without waiting.
        message_max_bytes: maximum size of a message.
    """

    flush_interval_s: float = 0.005
    flush_bytes: int = 256 * 1024
    message_max_bytes: int = 512 * 1024


class ByteBudget:
    """Bounds the message bytes that all streams together hold at any time.

    A stream may hold its fair share of the limit, as far as that is free, and `MESSAGE_MIN_BYTES`
    however much the others hold. So together they hold at most the limit plus `MESSAGE_MIN_BYTES`
    for each stream. What the courier sends is not counted: it is less than that, for streams that
    hold nothing else. Shared state and its guard: both counters under `_lock`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._streams = 0
        self._held_bytes = 0

    def join(self) -> None:
        """Count one more stream."""
        with self._lock:
            self._streams += 1

    def leave(self) -> None:
        """Count one stream fewer."""
        with self._lock:
            self._streams -= 1

    def reserve(self, wanted_bytes: int) -> int:
        """Return how many of `wanted_bytes` are granted, at least 1; release them when sent."""
        with self._lock:
            share = self._limit_bytes // max(1, self._streams)
            left = self._limit_bytes - self._held_bytes
            granted = min(wanted_bytes, max(MESSAGE_MIN_BYTES, min(share, left)))
            self._held_bytes += granted
            return granted

    def release(self, granted_bytes: int) -> None:
        """Return what `reserve` granted to the budget."""
        with self._lock:
            self._held_bytes -= granted_bytes

    @property
    def limit_bytes(self) -> int:
        """The limit."""
        return self._limit_bytes

    def held_bytes(self) -> int:
        """Return how many bytes are reserved now."""
        with self._lock:
            return self._held_bytes


@dataclass(frozen=True, slots=True)
class ReaderCounts:
    """What the readers of all streams got, and how far those of open streams are behind.

    Attributes:
        read_bytes: output that was handed to gRPC, also to streams that have ended.
        behind_bytes: output that open streams have still to get, added up.
        behind_max_bytes: the same, of the stream that is behind most.
    """

    read_bytes: int
    behind_bytes: int
    behind_max_bytes: int


class Readers:
    """The readers of all open streams. Costs a stream two locks, and a message nothing.

    Shared state and its guard: `_open` and `_ended_bytes` under `_lock`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[LogReader] = set()
        self._ended_bytes = 0

    def counting[Value](self, reader: LogReader, values: Iterator[Value]) -> Iterator[Value]:
        """Yield what a stream yields; its reader counts as open until then."""
        with self._lock:
            self._open.add(reader)
        try:
            yield from values
        finally:
            with self._lock:
                self._open.remove(reader)
                self._ended_bytes += reader.read_bytes

    def counts(self) -> ReaderCounts:
        """Return the numbers of this moment."""
        with self._lock:
            read_bytes, readers = self._ended_bytes, list(self._open)
        behind = [reader.pending_bytes()[0] for reader in readers]
        read_bytes += sum(reader.read_bytes for reader in readers)
        return ReaderCounts(read_bytes, sum(behind), max(behind, default=0))


class Admission:
    """Limits concurrent calls; one beyond the maximum is refused at once, never queued.

    Args:
        maximum: of calls.
        state: what that many calls do, and which setting allows no more.
    """

    def __init__(self, maximum: int, state: str = "streams are open (--max-streams)") -> None:
        self._maximum = maximum
        self._state = state
        self._lock = threading.Lock()
        self._taken = 0

    def admit(self) -> "Slot":
        """Take a slot.

        Raises:
            CapacityReachedError: no slot is free.
        """
        with self._lock:
            if self._taken >= self._maximum:
                raise CapacityReachedError(
                    f"max capacity reached: {self._maximum} {self._state}; try again later"
                )
            self._taken += 1
        return Slot(self)

    @property
    def maximum(self) -> int:
        """The number of slots."""
        return self._maximum

    def taken(self) -> int:
        """Return how many slots are in use."""
        with self._lock:
            return self._taken

    def give_back(self, slot: "Slot") -> None:
        """Free a slot, once, however often it is released. Called by `Slot.release`."""
        with self._lock:
            if not slot.released:
                slot.released = True
                self._taken -= 1


class Slot:
    """The right to one call, until it is released."""

    __slots__ = ("_admission", "released")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.released = False

    def release(self) -> None:
        """Free the slot; from any thread, any number of times."""
        self._admission.give_back(self)


def follow(
    reader: LogReader,
    batching: Batching,
    budget: ByteBudget,
    *,
    until_offset: int | None = None,
    lease: Callable[[], float],
) -> Iterator[Chunk]:
    """Yield a reader's chunks until its log is closed and read, or the reader is cancelled.

    A chunk without data says how many bytes were missed of a log that holds no more.

    Args:
        reader: where to start; used by this stream only.
        batching: see `Batching`.
        budget: see `ByteBudget`; a chunk's bytes are released when the next chunk is requested.
        until_offset: end there instead of following; output beyond it may be included.
        lease: returns the seconds, at most `threading.TIMEOUT_MAX`, until it must be called again;
            raises to end the stream.

    Raises:
        OutputLostError: the log ended before it held everything.
    """
    due_offset = 0
    budget.join()
    try:
        while not reader.cancelled:
            lease_s = lease()
            pending_bytes, closed = reader.pending_bytes()
            if closed and pending_bytes == 0:
                reader.raise_if_output_lost()
                return
            if until_offset is not None and reader.offset >= until_offset:
                return
            if pending_bytes == 0:
                reader.wait(1, lease_s)
                continue
            hold_s = reader.sent_at_s + batching.flush_interval_s - time.monotonic()
            if reader.offset < due_offset:
                hold_s = 0  # the end of a segment has cut the last message
            live = not closed and until_offset is None
            if live and hold_s > 0 and pending_bytes < batching.flush_bytes:
                reader.wait(batching.flush_bytes, min(hold_s, lease_s))
                continue
            granted_bytes = budget.reserve(min(pending_bytes, batching.message_max_bytes))
            due_offset = reader.offset + granted_bytes
            try:
                yield reader.read(granted_bytes)
            finally:
                budget.release(granted_bytes)
            reader.sent_at_s = time.monotonic()
    finally:
        budget.leave()
