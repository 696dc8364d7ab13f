"""The output log: one writer, readers, close, cancel, retention, and the move to a memfd."""

import os
from functools import partial
from unittest import mock

from harness.races.instrumentation import Watch
from harness.races.linearizability import Model, Operation, OperationHistory
from harness.races.scenario import Scenario
from tests.races.support import run_threads
from worker_service import log as log_module
from worker_service.log import LogReader, OutputLog

WORDS = (b"ab", b"cde", b"f")
MISSING = b"."  # replaces each byte that was reported as missed


def write(log: OutputLog) -> None:
    for word in WORDS:
        log.append(word)
    log.close()


def read_all(log: OutputLog, wanted_bytes: int = 1) -> bytes:
    """Follow a log to its end; missed bytes become MISSING, so that offsets show."""
    reader = log.reader_at(0)
    data = b""
    while True:
        pending_bytes, closed = reader.pending_bytes()
        if not pending_bytes:
            if closed:
                return data
            reader.wait(wanted_bytes)
            continue
        chunk = reader.read(4)
        assert chunk.data, "a read returned nothing though bytes were pending"
        data += MISSING * chunk.missed_bytes
        assert chunk.offset == len(data), f"offset {chunk.offset} after {len(data)} bytes"
        data += chunk.data


def exactly(data: bytes) -> None:
    assert data == b"".join(WORDS), data


def a_reader_follows() -> None:
    log = OutputLog()

    def writer() -> None:
        write(log)

    def reader() -> None:
        exactly(read_all(log))

    run_threads(writer, reader)


def two_readers_wait() -> None:
    log = OutputLog()

    def eager() -> None:
        reader = log.reader_at(0)
        reader.wait(1)
        assert reader.pending_bytes() == (0, True)

    def patient() -> None:
        reader = log.reader_at(0)
        reader.wait(1000)
        assert reader.pending_bytes() == (0, True)

    # The order of a set of objects depends on their addresses, which no schedule determines.
    with mock.patch.object(LogReader, "__hash__", return_value=1):
        run_threads(log.close, eager, patient)


def a_wait_is_cancelled() -> None:
    log = OutputLog()
    reader = log.reader_at(0)

    def follower() -> None:
        reader.wait(1)

    run_threads(follower, reader.cancel)


def a_wait_is_cancelled_beside_a_close() -> None:
    log = OutputLog()
    reader = log.reader_at(0)

    def follower() -> None:
        reader.wait(1)

    def writer() -> None:
        log.close()

    run_threads(follower, reader.cancel, writer)


def the_log_moves() -> None:
    with mock.patch.object(log_module, "INLINE_MAX_BYTES", 3):
        a_reader_follows()


def is_a_view_of_the_words(data: bytes) -> None:
    wanted = b"".join(WORDS)
    assert len(data) == len(wanted), data
    for got, want in zip(data, wanted, strict=True):
        assert got in {want, MISSING[0]}, f"{data!r}: a hole was returned as data"


def retention_passes_a_reader() -> None:
    log = OutputLog(retention_bytes=2)

    def writer() -> None:
        write(log)

    def reader() -> None:
        is_a_view_of_the_words(read_all(log))

    run_threads(writer, reader)


class Pages:
    """A stand-in for the memfd's memory, accessed by every read and every punch."""

    def __init__(self) -> None:
        self.content = 0


def retention_punches_below_a_reader() -> None:
    """Punch a memfd, which is read outside the lock; real holes are pages, so it writes zeros."""
    pages = Pages()
    pread = os.pread

    def punch(fd: int, offset: int, length: int) -> None:
        pages.content += 1
        os.pwrite(fd, bytes(length), offset)

    def read(fd: int, length: int, offset: int) -> bytes:
        assert pages.content >= 0
        return pread(fd, length, offset)

    with (
        mock.patch.object(log_module, "INLINE_MAX_BYTES", 1),
        mock.patch.object(log_module, "PUNCH_STEP_BYTES", 1),
        mock.patch.object(log_module, "punch_hole", punch),
        mock.patch.object(os, "pread", read),
    ):
        retention_passes_a_reader()


class LogModel(Model):
    """The sequential model of a log: its end grows by each append; `extent` returns it."""

    name = "log"

    def init(self) -> tuple[int, bool]:
        return 0, False

    def step(self, state: tuple[int, bool], operation: Operation) -> tuple[bool, tuple[int, bool]]:
        end, closed = state
        if operation.f == "append":
            return True, (end + operation.arg, closed)
        if operation.f == "close":
            return True, (end, True)
        return operation.output == (end, closed), state


def appends_and_extents_have_an_order() -> None:
    log = OutputLog(retention_bytes=3)
    history = OperationHistory()

    def extent() -> tuple[int, bool]:
        seen = log.extent()
        assert seen.end_offset - seen.first_offset <= 3, seen
        return seen.end_offset, seen.closed

    def writer() -> None:
        for word in WORDS[:2]:
            history.call("writer", "append", len(word), partial(log.append, word))
        history.call("writer", "close", None, log.close)

    def reader() -> None:
        for _ in range(3):
            history.call("reader", "extent", None, extent)

    run_threads(writer, reader)
    history.require_linearizable(LogModel())


WATCH = Watch(
    (OutputLog, LogReader, Pages),
    atomic={"Pages.content": "the kernel's memory: a read gets bytes before a punch, a hole after"},
)


scenario = partial(Scenario, explores=(log_module,), watch=WATCH)


SCENARIOS = (
    scenario("log.follow", "A reader gets every byte once, in order.", a_reader_follows),
    scenario("log.two-readers", "A close wakes every waiting reader.", two_readers_wait),
    scenario("log.cancel", "A cancelled wait returns.", a_wait_is_cancelled),
    scenario(
        "log.cancel-close", "A wait returns on a cancel, on a close, and on both at once.",
        a_wait_is_cancelled_beside_a_close,
    ),
    scenario("log.move", "No byte is lost while a log moves to a memfd.", the_log_moves),
    scenario(
        "log.retention", "Missed bytes are reported exactly; all others are right.",
        retention_passes_a_reader,
    ),
    scenario(
        "log.punch", "A reader that retention overtakes never gets a hole as data.",
        retention_punches_below_a_reader,
    ),
    scenario(
        "log.order", "Appends and extents are linearizable: one order explains every answer.",
        appends_and_extents_have_an_order, linearizable=True,
    ),
)  # fmt: skip
