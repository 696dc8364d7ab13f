"""One job's output: one writer, any number of readers by offset, optional retention.

Guarantees:
  - A reader gets every byte exactly once, in order, at its offset, or the number of bytes missed.
  - The writer never waits for a reader. A waiting reader is woken by the write that it waits for,
    by `close`, or by its own `cancel`; nothing polls.
  - Retention publishes the new first offset before it frees the memory of the bytes before, so a
    reader never takes a hole for data.

Small logs are kept in a `bytearray`, so that ten thousand short jobs need no descriptors. A log
that outgrows it moves to a memfd: the kernel holds the exact bytes, `splice` fills it from the pipe
without a copy through Python, and `pread` reads any offset without the interpreter lock. It never
moves back: no descriptor that a reader may be using is closed before the log itself is.

Shared state and its guard: everything after `_lock` in `OutputLog.__init__` is written by the
writer only, under `_lock`; `_waiting` also by readers, under `_lock`.
"""

import errno
import os
import threading
import weakref
from dataclasses import dataclass
from typing import Final

from worker_service.errors import OffsetOutOfRangeError, OutputLostError
from worker_service.linux import punch_hole

INLINE_MAX_BYTES: Final = 256 * 1024
# Holes are punched in steps this large, so that a fast job does not cost a system call per page.
PUNCH_STEP_BYTES: Final = 1024 * 1024
_INLINE_READ_BYTES: Final = 64 * 1024  # malloc serves larger buffers by mmap, at a page fault each
_SCAN_BYTES: Final = 64 * 1024
# This process or the host has no descriptor left: unlike a lack of memory, often temporary.
NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes that a log holds at one moment: `first_offset` up to, excluding, `end_offset`."""

    first_offset: int
    end_offset: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive output. Retention dropped the `missed_bytes` just before `offset`."""

    offset: int
    data: bytes
    missed_bytes: int = 0


class OutputLog:
    """The output of one job, as one growing sequence of bytes.

    Args:
        retention_bytes: keep at least this many of the most recent bytes; None keeps all.
    """

    def __init__(self, retention_bytes: int | None = None) -> None:
        if retention_bytes is not None and retention_bytes < 1:
            raise ValueError(f"retention_bytes is {retention_bytes}; it must be at least 1 or None")
        self._retention_bytes = retention_bytes
        self._lock = threading.Lock()
        self._inline: bytearray | None = bytearray()
        self._memfd = -1
        self._first_offset = 0
        self._end_offset = 0
        self._punched_offset = 0
        self._closed = False
        self._failure: str | None = None
        self._waiting: set[LogReader] = set()

    # -- the writer's side: one thread --------------------------------------------------------

    def append(self, data: bytes) -> None:
        """Append bytes that are already in memory.

        While no descriptor is available they stay there, even beyond `INLINE_MAX_BYTES`: they are
        no longer in any pipe.

        Raises:
            OSError: no memory for them is available; the log is unchanged.
        """
        if self._fits_inline(len(data)):
            self._append_inline(data)
            return
        try:
            memfd = self._require_memfd()
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            self._append_inline(data)
            return
        _write_all(memfd, data, self._end_offset)
        self._publish(self._end_offset + len(data))

    def splice_from(self, pipe_fd: int, max_bytes: int) -> int:
        """Move the contents of a non-blocking pipe, at most `max_bytes`, into the log.

        Returns:
            The bytes moved; 0 at the pipe's end.

        Raises:
            BlockingIOError: the pipe is empty and still open.
            OSError: no memory for them is available. With an errno of `NO_DESCRIPTOR` nothing is
                lost: the log and the pipe are unchanged.
        """
        room = INLINE_MAX_BYTES - len(self._inline) if self._inline is not None else 0
        if room > 0:
            data = os.read(pipe_fd, min(max_bytes, room, _INLINE_READ_BYTES))
            self._append_inline(data)
            return len(data)
        memfd = self._require_memfd()
        moved = os.splice(
            pipe_fd,
            memfd,
            max_bytes,
            offset_dst=self._end_offset,
            flags=os.SPLICE_F_NONBLOCK,  # the pipe's own O_NONBLOCK does not count here
        )
        self._publish(self._end_offset + moved)
        return moved

    def close(self, failure: str | None = None) -> None:
        """Mark the output complete, or give the reason why it is not; wake every waiting reader."""
        with self._lock:
            self._closed = True
            self._failure = failure
            woken = list(self._waiting)
            self._waiting.clear()
        for reader in woken:
            reader.wake()

    def _retains_inline(self) -> bool:
        return self._retention_bytes is not None and self._retention_bytes <= INLINE_MAX_BYTES // 2

    def _fits_inline(self, count: int) -> bool:
        if self._inline is None:
            return False
        return self._retains_inline() or len(self._inline) + count <= INLINE_MAX_BYTES

    def _append_inline(self, data: bytes) -> None:
        with self._lock:
            if self._inline is None:  # only the writer moves the log, and the writer is here
                raise AssertionError("an inline append to a log that has moved to a memfd")
            self._inline += data
            end_offset = self._end_offset + len(data)
            if self._retention_bytes is not None:
                first_offset = max(self._first_offset, end_offset - self._retention_bytes)
                del self._inline[: first_offset - self._first_offset]
                self._first_offset = first_offset
            self._end_offset = end_offset
            woken = self._take_ready()
        for reader in woken:
            reader.wake()

    def _require_memfd(self) -> int:
        if self._inline is None:
            return self._memfd
        memfd = os.memfd_create("job-output", os.MFD_CLOEXEC)
        try:
            _write_all(memfd, self._inline, self._first_offset)
        except OSError:
            os.close(memfd)
            raise
        weakref.finalize(self, os.close, memfd)
        with self._lock:
            self._memfd = memfd
            self._inline = None
        return memfd

    def _publish(self, end_offset: int) -> None:
        with self._lock:
            self._end_offset = end_offset
            if self._retention_bytes is not None:
                self._first_offset = max(self._first_offset, end_offset - self._retention_bytes)
            woken = self._take_ready()
        for reader in woken:
            reader.wake()
        dropped = self._first_offset - self._punched_offset
        if dropped >= PUNCH_STEP_BYTES:
            # Only after the new first offset is visible: see the module's third guarantee.
            punch_hole(self._memfd, self._punched_offset, dropped)
            self._punched_offset = self._first_offset

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

    def raise_failure(self) -> None:
        """Raise if the log was closed before it held all output of the job.

        Raises:
            OutputLostError: with the reason.
        """
        with self._lock:
            failure, end_offset = self._failure, self._end_offset
        if failure is not None:
            raise OutputLostError(f"output after offset {end_offset} was lost: {failure}")

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

    def reader_at_tail_lines(self, count: int) -> "LogReader":
        """Return a reader of the last `count` lines, or of all bytes that are kept.

        A last line without its newline counts as a line.
        """
        extent = self.extent()
        position = extent.end_offset
        if count == 0:
            return LogReader(self, position)
        wanted = count
        newest = True
        while position > extent.first_offset:
            block_start = max(extent.first_offset, position - _SCAN_BYTES)
            block, _ = self._read(block_start, position - block_start)
            if block.offset != block_start:  # retention passed it: the rest is the tail
                return LogReader(self, block.offset)
            data = block.data
            end = len(data)
            if newest and data.endswith(b"\n"):
                end -= 1  # it ends the last line and does not begin another
            newest = False
            found = data.count(b"\n", 0, end)
            if found < wanted:
                wanted -= found
                position = block_start
                continue
            while wanted:
                end = data.rfind(b"\n", 0, end)
                wanted -= 1
            return LogReader(self, block_start + end + 1)
        return LogReader(self, extent.first_offset)

    def _read(self, offset: int, max_bytes: int) -> tuple[Chunk, bool]:
        """Read at an offset; the chunk starts later if retention has passed the offset.

        Returns:
            The chunk (empty at the log's end), and whether it ends a closed log.
        """
        with self._lock:
            start = max(offset, self._first_offset)
            length = min(max_bytes, self._end_offset - start)
            at_end = self._closed and start + length == self._end_offset
            if self._inline is not None or length <= 0:
                return Chunk(start, self._inline_bytes(start, length), start - offset), at_end
        data = os.pread(self._memfd, length, start)
        with self._lock:
            if start >= self._first_offset and len(data) == length:
                return Chunk(start, data, start - offset), at_end
            # Overtaken by retention while reading. Read under the lock, which keeps the writer out,
            # so that a reader cannot be overtaken again and again.
            start = max(offset, self._first_offset)
            length = min(max_bytes, self._end_offset - start)
            at_end = self._closed and start + length == self._end_offset
            data = os.pread(self._memfd, length, start)
        if len(data) != length:
            raise OutputLostError(f"read {len(data)} bytes of {length} at offset {start}")
        return Chunk(start, data, start - offset), at_end

    def _inline_bytes(self, start: int, length: int) -> bytes:
        """Copy from the inline buffer. The caller holds the lock."""
        if self._inline is None or length <= 0:
            return b""
        position = start - self._first_offset
        return bytes(self._inline[position : position + length])

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


def _write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, view[done:], offset + done)


class LogReader:
    """One reader's place in a log. One thread reads; any thread may `cancel`."""

    def __init__(self, log: OutputLog, offset: int) -> None:
        self._log = log
        self._wakeup = threading.Event()
        self._cancelled = threading.Event()
        self.offset = offset
        self.wake_at = 0

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def pending_bytes(self) -> tuple[int, bool]:
        """Return how many bytes can be read, and whether the log is closed."""
        extent = self._log.extent()
        return extent.end_offset - max(self.offset, extent.first_offset), extent.closed

    def read(self, max_bytes: int) -> Chunk:
        """Return the next bytes, at most `max_bytes`; empty if the log holds no more yet."""
        chunk, _ = self._log._read(self.offset, max_bytes)  # noqa: SLF001 - two halves of one class
        self.offset = chunk.offset + len(chunk.data)
        return chunk

    def wait(self, wanted_bytes: int, timeout_s: float | None = None) -> None:
        """Wait until that many bytes can be read, the log is closed, or the reader is cancelled.

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
        """Raise `OutputLostError` if the log was closed before it held everything."""
        self._log.raise_failure()

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
