"""The log: every byte once, in order, at its offset, or an exact count of the bytes missed."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.descriptors import no_descriptor_left, open_descriptors
from tests.support.readers import waiting_event, woken_event
from worker_service.errors import OffsetOutOfRangeError, OutputLostError
from worker_service.log import (
    INLINE_MAX_BYTES,
    NO_DESCRIPTOR,
    PUNCH_STEP_BYTES,
    Extent,
    LogReader,
    OutputLog,
)

# Sizes around every boundary of the log: empty, a byte, the inline limit, the punching step.
SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([INLINE_MAX_BYTES - 1, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1]),
    st.sampled_from([PUNCH_STEP_BYTES, PUNCH_STEP_BYTES + 4096]),
)
RETENTIONS = st.sampled_from(
    [None, 1, 7, 1000, INLINE_MAX_BYTES // 2, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 700_000]
)


def pattern(start: int, size: int) -> bytes:
    """Return bytes that depend on their offset and are never zero: shifts and holes show."""
    block = bytes((offset * 7 + (offset >> 8) * 13) % 255 + 1 for offset in range(4096))
    first = start % 4096
    repeated = block * ((first + size) // 4096 + 1)
    return repeated[first : first + size]


class LogMachine(RuleBasedStateMachine):
    """Any order of writes, reads, and one close, compared with a simple model."""

    @initialize(retention=RETENTIONS)
    def make(self, retention: int | None) -> None:
        self.retention = retention
        self.log = OutputLog(retention)
        self.size = 0
        self.closed = False
        self.readers: list[LogReader] = [self.log.reader_at(0)]
        self.seen = [0]

    @property
    def first(self) -> int:
        return 0 if self.retention is None else max(0, self.size - self.retention)

    @precondition(lambda self: not self.closed)
    @rule(size=SIZES)
    def append(self, size: int) -> None:
        self.log.append(pattern(self.size, size))
        self.size += size

    @precondition(lambda self: not self.closed)
    @rule(size=st.integers(1, 60_000))
    def splice(self, size: int) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        try:
            os.write(write_fd, pattern(self.size, size))
            moved = 0
            while moved < size:
                moved += self.log.splice_from(read_fd, 1024 * 1024)
            with pytest.raises(BlockingIOError):
                self.log.splice_from(read_fd, 1024 * 1024)
            os.close(write_fd)
            write_fd = -1
            assert self.log.splice_from(read_fd, 1024 * 1024) == 0
        finally:
            os.close(read_fd)
            if write_fd >= 0:
                os.close(write_fd)
        self.size += size

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self) -> None:
        self.log.close()
        self.closed = True

    @rule(share=st.floats(0, 1))
    def join(self, share: float) -> None:
        offset = int(self.size * share)
        self.readers.append(self.log.reader_at(offset))
        self.seen.append(offset)

    @rule(count=st.integers(0, 3000))
    def join_at_the_tail(self, count: int) -> None:
        reader = self.log.reader_at_tail_bytes(count)
        assert reader.offset == max(self.first, self.size - count)

    @rule(number=st.integers(0, 100), most=st.integers(1, 2_000_000))
    def read(self, number: int, most: int) -> None:
        number %= len(self.readers)
        chunk = self.readers[number].read(most)
        expected_offset = max(self.seen[number], self.first)
        assert chunk.offset == expected_offset
        assert chunk.missed_bytes == expected_offset - self.seen[number]
        assert chunk.data == pattern(chunk.offset, min(most, self.size - chunk.offset))
        self.seen[number] = chunk.offset + len(chunk.data)

    @invariant()
    def extent_is_exact(self) -> None:
        extent = self.log.extent()
        assert (extent.first_offset, extent.end_offset) == (self.first, self.size)
        assert extent.closed == self.closed

    @rule()
    def beyond_the_end_is_refused(self) -> None:
        with pytest.raises(OffsetOutOfRangeError, match=f"ends at {self.size}"):
            self.log.reader_at(self.size + 1)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=60, stateful_step_count=25)


@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    ended=st.booleans(),
    count=st.integers(0, 35),
)
def test_tail_lines_equal_splitting_at_newlines(
    lines: list[bytes],
    ended: bool,
    count: int,
) -> None:
    text = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    log = OutputLog()
    log.append(text)
    # Not splitlines: it splits at more line ends than the newline.
    parts = [part + b"\n" for part in text.split(b"\n")]
    parts[-1] = parts[-1][:-1]
    parts = [part for part in parts if part]
    expected = b"".join(parts[-count:]) if count else b""
    assert log.reader_at_tail_lines(count).read(len(text) + 1).data == expected


def test_tail_lines_longer_than_the_scan_block_are_found() -> None:
    log = OutputLog()
    text = b"".join(b"%d %s\n" % (number, b"x" * 30_000) for number in range(30))
    log.append(text)
    tail = log.reader_at_tail_lines(12).read(10**7).data
    assert tail.startswith(b"18 xxx")
    assert text.endswith(tail)


def memfd_blocks() -> int:
    """Return the bytes that the kernel holds for all logs of this process."""
    total = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if "memfd:job-output" in str(fd.readlink()):
                total += fd.stat().st_blocks * 512
        except OSError:
            continue
    return total


def test_retention_frees_the_memory_of_dropped_bytes() -> None:
    before = memfd_blocks()
    log = OutputLog(4 * PUNCH_STEP_BYTES)
    for number in range(40):
        log.append(pattern(number * PUNCH_STEP_BYTES, PUNCH_STEP_BYTES))
    assert memfd_blocks() - before <= 6 * PUNCH_STEP_BYTES
    assert log.extent().first_offset == 36 * PUNCH_STEP_BYTES


def test_only_a_large_log_uses_a_descriptor_until_its_last_reader_is_gone() -> None:
    before = open_descriptors()
    small = OutputLog()
    small.append(b"x" * INLINE_MAX_BYTES)
    assert open_descriptors() == before
    large = OutputLog()
    large.append(b"x" * (INLINE_MAX_BYTES + 1))
    assert open_descriptors() == before + 1
    reader = large.reader_at(0)
    del large
    assert len(reader.read(10**6).data) == INLINE_MAX_BYTES + 1
    del reader
    assert open_descriptors() == before


def test_splice_without_a_descriptor_leaves_log_and_pipe_unchanged() -> None:
    log = OutputLog()
    log.append(pattern(0, INLINE_MAX_BYTES))
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    os.write(write_fd, pattern(INLINE_MAX_BYTES, 1000))
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files") as raised:
        log.splice_from(read_fd, 1024 * 1024)
    assert raised.value.errno in NO_DESCRIPTOR
    assert log.extent().end_offset == INLINE_MAX_BYTES
    assert log.splice_from(read_fd, 1024 * 1024) == 1000
    assert log.reader_at(0).read(10**6).data == pattern(0, INLINE_MAX_BYTES + 1000)
    os.close(read_fd)
    os.close(write_fd)


@pytest.mark.parametrize("retention", [None, INLINE_MAX_BYTES])
def test_append_without_a_descriptor_stays_in_memory(
    retention: int | None,
) -> None:
    log = OutputLog(retention)
    log.append(pattern(0, INLINE_MAX_BYTES))
    with no_descriptor_left():
        log.append(pattern(INLINE_MAX_BYTES, 1000))
    kept_from = 0 if retention is None else 1000
    for size in (1000, 2000):  # the second takes it to a memfd
        assert log.extent() == Extent(kept_from, INLINE_MAX_BYTES + size, closed=False)
        chunk = log.reader_at(kept_from).read(10**6)
        assert chunk.data == pattern(kept_from, INLINE_MAX_BYTES + size - kept_from)
        log.append(pattern(INLINE_MAX_BYTES + size, 1000))
        kept_from += 0 if retention is None else 1000


def start_waiting(reader: LogReader, wanted: int) -> threading.Thread:
    """Start a thread that waits, and return once it does."""
    queued = waiting_event(reader)
    # A daemon: one that is never woken must not delay the end of the failing test.
    thread = threading.Thread(target=reader.wait, args=(wanted,), daemon=True)
    thread.start()
    assert queued.wait(10)
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


@pytest.mark.parametrize(
    "wake",
    [
        lambda log, _: log.append(b"12345"),
        lambda log, _: log.close(),
        lambda _, reader: reader.cancel(),
    ],
    ids=["enough bytes", "close", "cancel"],
)
def test_waiting_reader_is_woken_by(wake: Callable[[OutputLog, LogReader], None]) -> None:
    log = OutputLog()
    reader = log.reader_at(0)
    thread = start_waiting(reader, 5)
    wake(log, reader)
    assert ended(thread)


def test_reader_is_not_woken_before_the_bytes_it_waits_for() -> None:
    log = OutputLog()
    reader = log.reader_at(0)
    woken = woken_event(reader)
    thread = start_waiting(reader, 5)
    log.append(b"1234")  # wakes on this thread, if at all
    assert not woken.is_set()
    log.append(b"5")
    assert ended(thread)


def test_wait_ends_at_its_timeout_and_later_writes_do_not_wake_the_reader() -> None:
    log = OutputLog()
    reader = log.reader_at(0)
    woken = woken_event(reader)
    started_s = time.monotonic()
    reader.wait(1, 0.05)
    assert 0.04 < time.monotonic() - started_s < 5
    log.append(b"1")
    assert not woken.is_set()


def test_cancel_before_the_wait_ends_it_at_once() -> None:
    log = OutputLog()
    reader = log.reader_at(0)
    reader.cancel()
    reader.wait(1)  # would otherwise never end


def test_reader_behind_retention_gets_the_number_of_missed_bytes() -> None:
    log = OutputLog(2 * PUNCH_STEP_BYTES)
    reader = log.reader_at(0)
    log.append(pattern(0, 5 * PUNCH_STEP_BYTES))
    chunk = reader.read(1000)
    assert (chunk.offset, chunk.missed_bytes) == (3 * PUNCH_STEP_BYTES, 3 * PUNCH_STEP_BYTES)
    assert chunk.data == pattern(3 * PUNCH_STEP_BYTES, 1000)
    assert reader.read(1000).missed_bytes == 0


def test_reader_overtaken_by_retention_during_a_read_gets_no_hole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep = 2 * PUNCH_STEP_BYTES
    log = OutputLog(keep)
    log.append(pattern(0, keep))
    reader = log.reader_at(0)
    real_pread = os.pread

    def overtaken(fd: int, length: int, offset: int) -> bytes:
        # The race made certain: the writer appends between the reader's check and its read.
        monkeypatch.setattr(os, "pread", real_pread)
        log.append(pattern(keep, PUNCH_STEP_BYTES))
        return real_pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", overtaken)
    chunk = reader.read(1000)
    assert (chunk.offset, chunk.missed_bytes) == (PUNCH_STEP_BYTES, PUNCH_STEP_BYTES)
    assert chunk.data == pattern(PUNCH_STEP_BYTES, 1000)


@pytest.mark.parametrize("retention", [None, 3 * PUNCH_STEP_BYTES])
def test_concurrent_readers_see_the_writers_bytes(retention: int | None) -> None:
    log = OutputLog(retention)
    total = 24 * PUNCH_STEP_BYTES
    whole = pattern(0, total)

    def read(_: int) -> int:
        reader = log.reader_at(0)
        missed = 0
        while True:
            chunk = reader.read(200_000)
            missed += chunk.missed_bytes
            assert chunk.data == whole[chunk.offset : chunk.offset + len(chunk.data)]
            if not chunk.data:
                pending, closed = reader.pending_bytes()
                if closed and not pending:
                    assert reader.offset == total
                    return missed
                reader.wait(1, 10)

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, number) for number in range(6)]
        for start in range(0, total, 300_000):
            log.append(whole[start : start + 300_000])
        log.close()
        missed = [reader.result(60) for reader in readers]
    if retention is None:
        assert missed == [0] * 6


def test_failed_log_reports_the_offset_after_which_output_was_lost() -> None:
    log = OutputLog()
    log.append(b"123")
    log.close("no space left")
    reader = log.reader_at(0)
    assert reader.read(10).data == b"123"
    with pytest.raises(OutputLostError, match="after offset 3 was lost: no space left"):
        reader.raise_if_output_lost()


def test_retention_of_zero_bytes_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OutputLog(0)
