"""The log: every byte once, in order, at its offset, or an exact count of the bytes missed."""

import errno
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
from tests.support.log import append
from tests.support.readers import waiting_event, woken_event
from worker_service import log as log_module
from worker_service.errors import OffsetOutOfRangeError, OutputLostError
from worker_service.log import SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES, LogReader, OutputLog

# Sizes around every boundary of the log: empty, a byte, a first segment, and a later one.
SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([SEGMENT_MIN_BYTES - 1, SEGMENT_MIN_BYTES, SEGMENT_MIN_BYTES + 1]),
    st.sampled_from([SEGMENT_MAX_BYTES, SEGMENT_MAX_BYTES + 4096]),
)
RETENTIONS = st.sampled_from(
    [None, 1, 7, 1000, SEGMENT_MIN_BYTES, SEGMENT_MIN_BYTES + 1, 700_000, SEGMENT_MAX_BYTES + 1]
)


def pattern(start: int, size: int) -> bytes:
    """Return bytes that depend on their offset and are never zero: shifts and holes show."""
    block = bytes((offset * 7 + (offset >> 8) * 13) % 255 + 1 for offset in range(4096))
    first = start % 4096
    repeated = block * ((first + size) // 4096 + 1)
    return repeated[first : first + size]


class LogMachine(RuleBasedStateMachine):
    """Any order of writes, reads, drops, and one close, compared with a simple model."""

    @initialize(retention=RETENTIONS)
    def make(self, retention: int | None) -> None:
        self.retention = retention
        self.log = OutputLog(retention)
        self.size = 0
        self.first = 0
        self.closed = False
        self.readers: list[LogReader] = [self.log.reader_at(0)]
        self.seen = [0]

    @precondition(lambda self: not self.closed)
    @rule(size=SIZES)
    def write(self, size: int) -> None:
        append(self.log, pattern(self.size, size))
        self.size += size
        if self.retention is not None:
            self.first = max(self.first, self.size - self.retention)

    @precondition(lambda self: not self.closed)
    @rule()
    def read_an_ended_pipe(self) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        try:
            with pytest.raises(BlockingIOError):
                self.log.read_from(read_fd, 1024 * 1024)
            os.close(write_fd)
            write_fd = -1
            assert self.log.read_from(read_fd, 1024 * 1024) == 0
        finally:
            os.close(read_fd)
            if write_fd >= 0:
                os.close(write_fd)

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self) -> None:
        self.log.close()
        self.closed = True

    @rule()
    def drop(self) -> None:
        held_bytes = self.log.held_bytes()
        self.log.drop_oldest()
        dropped_bytes = held_bytes - self.log.held_bytes()
        assert dropped_bytes <= SEGMENT_MAX_BYTES
        assert (dropped_bytes > 0) == (held_bytes > 0)
        self.first = max(self.first, self.size - self.log.held_bytes())

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
        size = len(chunk.data)
        assert size <= min(most, self.size - chunk.offset)
        assert size > 0 or chunk.offset == self.size
        assert chunk.data == pattern(chunk.offset, size)
        self.seen[number] = chunk.offset + size

    @rule(number=st.integers(0, 100))
    def read_all(self, number: int) -> None:
        """To the end: as many chunks as there are segments, and no more."""
        number %= len(self.readers)
        for _ in range(self.size // SEGMENT_MIN_BYTES + 2):
            self.read(number, 2_000_000)
        assert self.seen[number] == self.size

    @invariant()
    def extent_is_exact(self) -> None:
        extent = self.log.extent()
        assert (extent.first_offset, extent.end_offset) == (self.first, self.size)
        assert extent.closed == self.closed

    @invariant()
    def memory_is_bounded(self) -> None:
        kept_bytes = self.size - self.first
        assert kept_bytes <= self.log.held_bytes() < kept_bytes + SEGMENT_MAX_BYTES

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
    append(log, text)
    # Not splitlines: it splits at more line ends than the newline.
    parts = [part + b"\n" for part in text.split(b"\n")]
    parts[-1] = parts[-1][:-1]
    parts = [part for part in parts if part]
    expected = b"".join(parts[-count:]) if count else b""
    assert tail(log, count) == expected


def tail(log: OutputLog, count: int) -> bytes:
    reader = log.reader_at(0)
    reader.seek_tail_lines(count)
    return rest(reader)


def rest(reader: LogReader) -> bytes:
    """Read all that there is, however many segments it is in."""
    data = b""
    while (chunk := reader.read(10**7)).data:
        data += chunk.data
    return data


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("line_bytes", [1, 2, 700, 30_000, SEGMENT_MAX_BYTES // 2 + 1])
def test_tail_lines_are_found_in_any_segment(line_bytes: int, *, closed: bool) -> None:
    log = OutputLog()
    text = (b"x" * (line_bytes - 1) + b"\n") * (3 * SEGMENT_MAX_BYTES // line_bytes)
    append(log, text)
    if closed:
        log.close()
    lines = len(text) // line_bytes
    for count in (1, 2, lines // 2, lines - 1, lines, lines + 1, 2**63 - 1):
        for _ in range(2):  # the second time the newlines have been counted
            assert tail(log, count) == text[max(0, len(text) - count * line_bytes) :]


def test_tail_lines_of_a_log_that_dropped_output_start_at_its_first_byte_at_the_earliest() -> None:
    log = OutputLog(100)
    append(log, b"123456789\n" * 20)
    for count, kept_bytes in ((3, 30), (10, 100), (11, 100), (10**6, 100)):
        reader = log.reader_at(0)
        reader.seek_tail_lines(count)
        assert reader.offset == 200 - kept_bytes
    while log.held_bytes():
        log.drop_oldest()
    reader.seek_tail_lines(5)
    assert reader.offset == 200


def test_no_byte_is_searched_for_more_lines_than_there_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = OutputLog()
    append(log, b"x" * 3 * SEGMENT_MAX_BYTES)
    reader = log.reader_at(0)
    monkeypatch.delattr(OutputLog, "_segment_at")  # any search needs it
    reader.seek_tail_lines(2**40)
    assert reader.offset == 0


def test_full_segment_is_searched_once_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    log = OutputLog()
    append(log, b"x" * 9 + b"\n")
    append(log, b"x" * (5 * SEGMENT_MAX_BYTES))
    searched: list[int] = []
    count_newlines = log_module.count_newlines

    def count(memory: memoryview) -> int:
        searched.append(len(memory))
        return count_newlines(memory)

    monkeypatch.setattr(log_module, "count_newlines", count)
    for _ in range(3):
        log.reader_at(0).seek_tail_lines(2)
    assert sum(searched) < log.extent().end_offset + 3 * SEGMENT_MAX_BYTES
    assert len(searched) == 6 + 2, "only the last segment, which is not full, is counted again"


def test_cancel_ends_the_search_for_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = OutputLog()
    append(log, b"x" * (3 * SEGMENT_MAX_BYTES))
    reader = log.reader_at(0)
    searched: list[int] = []

    def count(memory: memoryview) -> int:
        searched.append(len(memory))
        reader.cancel()
        return 0

    monkeypatch.setattr(log_module, "count_newlines", count)
    reader.seek_tail_lines(2)
    assert len(searched) == 1


def test_retention_frees_the_memory_of_dropped_bytes() -> None:
    log = OutputLog(4 * SEGMENT_MAX_BYTES)
    before = resident_bytes()
    for number in range(40):
        append(log, pattern(number * SEGMENT_MAX_BYTES, SEGMENT_MAX_BYTES))
    assert resident_bytes() - before <= 8 * SEGMENT_MAX_BYTES
    assert log.extent().first_offset == 36 * SEGMENT_MAX_BYTES


def resident_bytes() -> int:
    """Return this process's anonymous memory that is in use (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def test_small_log_costs_no_more_than_its_bytes_once_it_is_closed() -> None:
    logs = [OutputLog() for _ in range(2000)]
    for log in logs:
        append(log, b"hello\n")
    before = resident_bytes()
    for log in logs:
        log.close()
    assert before - resident_bytes() > 1500 * 4096, "each has kept a page"
    assert all(rest(log.reader_at(0)) == b"hello\n" for log in logs)


def test_log_of_any_size_uses_no_descriptor() -> None:
    log = OutputLog()
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    before = open_descriptors()
    with no_descriptor_left():
        for number in range(40):
            os.write(write_fd, pattern(number * 50_000, 50_000))
            while log.extent().end_offset < (number + 1) * 50_000:
                log.read_from(read_fd, 50_000)
        assert rest(log.reader_at(0)) == pattern(0, 2_000_000)
    assert open_descriptors() == before
    os.close(read_fd)
    os.close(write_fd)


def test_read_without_memory_leaves_log_and_pipe_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    log = OutputLog()
    append(log, pattern(0, SEGMENT_MIN_BYTES))
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    os.write(write_fd, pattern(SEGMENT_MIN_BYTES, 1000))
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        patch.setattr("mmap.mmap", refuse)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            log.read_from(read_fd, 1024 * 1024)
    assert log.extent().end_offset == SEGMENT_MIN_BYTES
    assert log.read_from(read_fd, 1024 * 1024) == 1000
    assert rest(log.reader_at(0)) == pattern(0, SEGMENT_MIN_BYTES + 1000)
    os.close(read_fd)
    os.close(write_fd)


def test_bytes_that_a_reader_holds_outlive_the_log_that_drops_them() -> None:
    log = OutputLog(SEGMENT_MIN_BYTES)
    append(log, pattern(0, SEGMENT_MIN_BYTES))
    chunk = log.reader_at(0).read(10**6)
    append(log, pattern(SEGMENT_MIN_BYTES, 8 * SEGMENT_MAX_BYTES))
    log.drop_oldest()
    log.close()
    del log
    assert chunk.data == pattern(0, SEGMENT_MIN_BYTES)


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
        lambda log, _: append(log, b"12345"),
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
    append(log, b"1234")  # wakes on this thread, if at all
    assert not woken.is_set()
    append(log, b"5")
    assert ended(thread)


def test_wait_ends_at_its_timeout_and_later_writes_do_not_wake_the_reader() -> None:
    log = OutputLog()
    reader = log.reader_at(0)
    woken = woken_event(reader)
    started_s = time.monotonic()
    reader.wait(1, 0.05)
    assert 0.04 < time.monotonic() - started_s < 5
    append(log, b"1")
    assert not woken.is_set()


def test_cancel_before_the_wait_ends_it_at_once() -> None:
    log = OutputLog()
    reader = log.reader_at(0)
    reader.cancel()
    started_s = time.monotonic()
    reader.wait(1, 60)
    assert time.monotonic() - started_s < 50


def test_reader_behind_retention_gets_the_number_of_missed_bytes() -> None:
    log = OutputLog(2 * SEGMENT_MAX_BYTES)
    reader = log.reader_at(0)
    append(log, pattern(0, 5 * SEGMENT_MAX_BYTES))
    chunk = reader.read(1000)
    assert (chunk.offset, chunk.missed_bytes) == (3 * SEGMENT_MAX_BYTES, 3 * SEGMENT_MAX_BYTES)
    assert chunk.data == pattern(3 * SEGMENT_MAX_BYTES, 1000)
    assert reader.read(1000).missed_bytes == 0


@pytest.mark.parametrize("retention", [None, 3 * SEGMENT_MAX_BYTES])
def test_concurrent_readers_see_the_writers_bytes(retention: int | None) -> None:
    log = OutputLog(retention)
    total = 24 * SEGMENT_MAX_BYTES
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
            append(log, whole[start : start + 300_000])
        log.close()
        missed = [reader.result(60) for reader in readers]
    if retention is None:
        assert missed == [0] * 6


def test_failed_log_reports_the_offset_after_which_output_was_lost() -> None:
    log = OutputLog()
    append(log, b"123")
    log.close("no space left")
    reader = log.reader_at(0)
    assert reader.read(10).data.tobytes() == b"123"
    with pytest.raises(OutputLostError, match="after offset 3 was lost: no space left"):
        reader.raise_if_output_lost()


def test_retention_of_zero_bytes_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OutputLog(0)


@pytest.mark.parametrize("count", [5, 6, 10, 11, 2**64 - 1])
def test_tail_of_more_than_is_kept_starts_there_and_misses_nothing(count: int) -> None:
    log = OutputLog(retention_bytes=5)
    append(log, b"0123456789")
    chunk = log.reader_at_tail_bytes(count).read(100)
    assert (chunk.offset, chunk.data.tobytes(), chunk.missed_bytes) == (5, b"56789", 0)
