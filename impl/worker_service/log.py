"""One job's output: one writer, any number of readers by offset, optional retention.

Guarantees:
  - A reader gets every byte exactly once, in order, at its offset, or the number of bytes missed.
  - The writer never waits for a reader. A waiting reader is woken by the write that it waits for,
    by `close`, or by its own `cancel`; nothing polls.
  - What a reader was given stays as it is, also after the log has dropped it.

A log is a list of segments of anonymous memory: it needs no descriptor, running or ended. The pipe
is read into the unused end of the last segment, which no reader knows of yet; then the new end is
published. Readers get views of the segments, without a copy, and a view keeps its segment alive: so
dropping output is forgetting a segment, and nothing has to be kept from a reader's sight.

Shared state and its guard: everything after `_lock` in `OutputLog.__init__` is written by the
writer only, under `_lock`; `_waiting` and `_Segment.newlines` also by readers, under `_lock`.
"""

import bisect
import mmap
import operator
import os
import threading
from dataclasses import dataclass
from typing import Final

from worker_service.errors import OffsetOutOfRangeError, OutputLostError

# Most jobs print little, so the first segment is small; a large log is made of few segments.
SEGMENT_MIN_BYTES: Final = 64 * 1024
SEGMENT_MAX_BYTES: Final = 1024 * 1024
_NEWLINE: Final = b"\n"
_start_of: Final = operator.attrgetter("start")


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes that a log holds at one moment: `first_offset` up to, excluding, `end_offset`."""

    first_offset: int
    end_offset: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive output. The log had dropped the `missed_bytes` just before `offset`."""

    offset: int
    data: memoryview
    missed_bytes: int = 0


class _Segment:
    """A piece of a log: `memory` holds the bytes from `start`, as far as they are written."""

    __slots__ = ("memory", "newlines", "start")

    def __init__(self, start: int, size_bytes: int) -> None:
        """Map the memory.

        Raises:
            OSError: none is available.
        """
        self.start = start
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = memoryview(mmap.mmap(-1, size_bytes, flags=flags))
        self.newlines: int | None = None  # in all of it, once a reader has counted them


class OutputLog:
    """The output of one job, as one growing sequence of bytes.

    Args:
        retention_bytes: keep this many of the most recent bytes; None keeps all.
    """

    def __init__(self, retention_bytes: int | None = None) -> None:
        if retention_bytes is not None and retention_bytes < 1:
            raise ValueError(f"retention_bytes is {retention_bytes}; it must be at least 1 or None")
        self._retention_bytes = retention_bytes
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._first_offset = 0
        self._end_offset = 0
        self._closed = False
        self._failure: str | None = None
        self._waiting: set[LogReader] = set()

    # -- the writer's side: one thread --------------------------------------------------------

    def read_from(self, pipe_fd: int, max_bytes: int) -> int:
        """Read what a non-blocking pipe holds, or a part of it: at most `max_bytes`.

        Returns:
            The bytes read; 0 at the pipe's end.

        Raises:
            BlockingIOError: the pipe is empty and still open.
            OSError: no memory is available; the log and the pipe are unchanged.
        """
        count = os.readv(pipe_fd, (self._unused_memory()[:max_bytes],))
        with self._lock:
            self._end_offset += count
            dropped = self._take_dropped()
            woken = self._take_ready()
        for reader in woken:
            reader.wake()
        dropped.clear()  # unmapped here, without the lock
        return count

    def close(self, failure: str | None = None) -> None:
        """Mark the output complete, or give the reason why it is not; wake every waiting reader."""
        with self._lock:
            self._closed = True
            self._failure = failure
            self._trim()
            woken = list(self._waiting)
            self._waiting.clear()
        for reader in woken:
            reader.wake()

    def drop_oldest(self) -> None:
        """Forget the oldest segment, if there is one; readers get the number of missed bytes."""
        with self._lock:
            if not self._segments:
                return
            dropped = self._segments.pop(0)
            end_offset = self._segments[0].start if self._segments else self._end_offset
            self._first_offset = max(self._first_offset, end_offset)
        del dropped  # unmapped here, without the lock

    def held_bytes(self) -> int:
        """Return the bytes in memory; with a retention these are more than the extent's."""
        return self._end_offset - self._segments[0].start if self._segments else 0

    def _unused_memory(self) -> memoryview:
        """Return the unused end of the last segment; add a segment if that one is full."""
        last = self._segments[-1] if self._segments else None
        if last is None or self._end_offset == last.start + len(last.memory):
            largest = min(self._retention_bytes or SEGMENT_MAX_BYTES, SEGMENT_MAX_BYTES)
            size_bytes = max(SEGMENT_MIN_BYTES, largest if self._end_offset else 0)
            last = _Segment(self._end_offset, size_bytes)
            with self._lock:
                self._segments.append(last)
        return last.memory[self._end_offset - last.start :]

    def _take_dropped(self) -> list[_Segment]:
        """Apply the retention; return the segments without a kept byte. The caller has the lock."""
        if self._retention_bytes is None:
            return []
        self._first_offset = max(self._first_offset, self._end_offset - self._retention_bytes)
        count = 0
        while count + 1 < len(self._segments) and (
            self._segments[count + 1].start <= self._first_offset
        ):
            count += 1
        dropped = self._segments[:count]
        del self._segments[:count]
        return dropped

    def _trim(self) -> None:
        """Replace the last segment by a copy if it holds little. The caller holds the lock."""
        if self._segments:
            last = self._segments[-1]
            used_bytes = self._end_offset - last.start
            if used_bytes < SEGMENT_MIN_BYTES:
                last.memory = memoryview(bytes(last.memory[:used_bytes]))

    def _take_ready(self) -> list["LogReader"]:
        """Remove and return the readers whose offset is reached. The caller holds the lock."""
        if not self._waiting:
            return []
        ready = [reader for reader in self._waiting if reader.wake_at <= self._end_offset]
        self._waiting.difference_update(ready)
        return ready

    # -- the readers' side: any thread --------------------------------------------------------

    def extent(self) -> Extent:
        """Return the log's extent now."""
        with self._lock:
            return Extent(self._first_offset, self._end_offset, self._closed)

    def failure(self) -> str | None:
        """Return where and why output was lost, or None if the log holds all of the job's."""
        with self._lock:
            if self._failure is None:
                return None
            return f"output after offset {self._end_offset} was lost: {self._failure}"

    def reader_at(self, offset: int) -> "LogReader":
        """Return a reader that starts at an offset, even one that is no longer kept.

        Raises:
            OffsetOutOfRangeError: the offset is beyond the log's end.
        """
        extent = self.extent()
        if offset > extent.end_offset:
            raise OffsetOutOfRangeError(
                f"from_offset is {offset}, but the log ends at {extent.end_offset}; "
                f"use an offset from 0 to {extent.end_offset}"
            )
        return LogReader(self, offset)

    def reader_at_tail_bytes(self, count: int) -> "LogReader":
        """Return a reader of the last `count` bytes, or of all bytes that are kept."""
        extent = self.extent()
        return LogReader(self, max(extent.first_offset, extent.end_offset - count))

    def _read(self, offset: int, max_bytes: int) -> Chunk:
        """Return kept bytes from an offset, at most to their segment's end; none at the log's."""
        with self._lock:
            start = max(offset, self._first_offset)
            if start >= self._end_offset:
                return Chunk(start, memoryview(b""), start - offset)
            segment = self._segment_at(start)
            # A slice ends where the memory does; only of the last segment is a part not written.
            length = min(max_bytes, self._end_offset - start)
            position = start - segment.start
            return Chunk(start, segment.memory[position : position + length], start - offset)

    def _segment_at(self, offset: int) -> _Segment:
        """Return the segment that holds a kept byte. The caller holds the lock."""
        last = self._segments[-1]  # nearly always: readers that keep up are there
        if offset >= last.start:
            return last
        return self._segments[bisect.bisect_right(self._segments, offset, key=_start_of) - 1]

    def _tail_lines_offset(self, count: int, cancelled: threading.Event) -> int:
        """Return where the last `count` lines start, or the first kept offset; see `LogReader`.

        A segment is at most `SEGMENT_MAX_BYTES`: what is read before a cancel is seen.
        """
        extent = self.extent()
        first_offset, position = extent.first_offset, extent.end_offset
        if count == 0:
            return position
        if count >= position - first_offset:  # a line has at least one byte
            return first_offset
        wanted = count
        if bytes(self._read(position - 1, 1).data) == _NEWLINE:
            wanted += 1  # it ends the last line and does not begin another
        while position > first_offset and not cancelled.is_set():
            with self._lock:
                if position <= self._first_offset:
                    return self._first_offset
                segment = self._segment_at(position - 1)
                memory = segment.memory[: position - segment.start]
                whole = len(memory) == len(segment.memory)
                newlines = segment.newlines if whole else None
            if newlines is None:
                newlines = count_newlines(memory)
                if whole:
                    with self._lock:
                        segment.newlines = newlines
            if newlines >= wanted:
                start = segment.start + _after_newline_from_end(bytes(memory), wanted)
                return max(first_offset, start)
            wanted -= newlines
            position = segment.start
        return first_offset

    def _wait(self, reader: "LogReader", wanted_offset: int) -> bool:
        """Queue a reader; return whether it has to wait at all."""
        with self._lock:
            if self._closed or self._end_offset >= wanted_offset:
                return False
            reader.prepare_wait(wanted_offset)
            self._waiting.add(reader)
            return True

    def _forget(self, reader: "LogReader") -> None:
        with self._lock:
            self._waiting.discard(reader)


def count_newlines(memory: memoryview) -> int:
    """Return how many newlines a piece of output has."""
    return bytes(memory).count(_NEWLINE)


def _after_newline_from_end(data: bytes, number: int) -> int:
    """Return the position after a newline, counted from the end; the data has that many.

    Halves are counted, so that the time does not depend on how many newlines there are.
    """
    low, high = 0, len(data)
    while high - low > 1:
        middle = (low + high) // 2
        found = data.count(_NEWLINE, middle, high)
        if found >= number:
            low = middle
        else:
            number -= found
            high = middle
    return high


class LogReader:
    """One reader's place in a log. One thread reads; any thread may `cancel`."""

    def __init__(self, log: OutputLog, offset: int) -> None:
        self._log = log
        self._wakeup = threading.Event()
        self._cancelled = threading.Event()
        self.offset = offset
        self.read_bytes = 0  # in all
        self.sent_at_s = float("-inf")  # when the last message was taken, for batching
        self.wake_at = 0

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def seek_tail_lines(self, count: int) -> None:
        """Move to the start of the last `count` lines, or of all that is kept; a cancel ends it.

        A last line without its newline counts as a line. The newlines of a full segment are counted
        once, for all readers.
        """
        self.offset = self._log._tail_lines_offset(count, self._cancelled)  # noqa: SLF001 - two halves of one class

    def pending_bytes(self) -> tuple[int, bool]:
        """Return how many bytes can be read or were missed, and whether the log is closed."""
        extent = self._log.extent()
        return extent.end_offset - self.offset, extent.closed

    def read(self, max_bytes: int) -> Chunk:
        """Return the next bytes, at most `max_bytes`; none if the log holds no more yet."""
        chunk = self._log._read(self.offset, max_bytes)  # noqa: SLF001 - as above
        self.offset = chunk.offset + len(chunk.data)
        self.read_bytes += len(chunk.data)
        return chunk

    def wait(self, wanted_bytes: int, timeout_s: float | None = None) -> None:
        """Wait until that many bytes are pending, the log is closed, or the reader is cancelled.

        Returns after `timeout_s` seconds at the latest; the caller checks which of these is true.
        """
        if not self._log._wait(self, self.offset + wanted_bytes):  # noqa: SLF001 - as above
            return
        try:
            # Checked after queueing: an earlier cancel is seen here, a later one wakes this thread.
            if not self._cancelled.is_set():
                self._wakeup.wait(timeout_s)
        finally:
            self._log._forget(self)  # noqa: SLF001 - as above

    def raise_if_output_lost(self) -> None:
        """Raise if the log was closed before it held all of the job's output.

        Raises:
            OutputLostError: with the reason.
        """
        failure = self._log.failure()
        if failure is not None:
            raise OutputLostError(failure)

    def cancel(self) -> None:
        """Make the current `wait`, and every later one, return at once."""
        self._cancelled.set()
        self._wakeup.set()

    def prepare_wait(self, wanted_offset: int) -> None:
        """Set the offset to be woken at. Called by the log, with its lock held."""
        self.wake_at = wanted_offset
        self._wakeup.clear()

    def wake(self) -> None:
        """End the current wait. Called by the log."""
        self._wakeup.set()
