"""The output log: one writer, readers, close, cancel, segments, and output that is dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

from harness.races.instrumentation import Watch
from harness.races.linearizability import Model, Operation, OperationHistory
from harness.races.scenario import Scenario
from tests.races.support import run_threads
from tests.support.log import append
from worker_service import log as log_module
from worker_service.log import LogReader, OutputLog, _Segment

WORDS = (b"ab", b"cde", b"f")
MISSING = b"."  # replaces each byte that was reported as missed


def write(log: OutputLog) -> None:
    for word in WORDS:
        append(log, word)
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
        data += MISSING * chunk.missed_bytes
        assert chunk.data or chunk.missed_bytes, "a read returned nothing though bytes were pending"
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


@contextmanager
def segments_of(size_bytes: int) -> Iterator[None]:
    """Make segments so small that the words need several."""
    with (
        mock.patch.object(log_module, "SEGMENT_MIN_BYTES", size_bytes),
        mock.patch.object(log_module, "SEGMENT_MAX_BYTES", size_bytes),
    ):
        yield


def the_log_has_several_segments() -> None:
    with segments_of(2):
        a_reader_follows()


def is_a_view_of_the_words(data: bytes) -> None:
    wanted = b"".join(WORDS)
    assert len(data) == len(wanted), data
    for got, want in zip(data, wanted, strict=True):
        assert got in {want, MISSING[0]}, f"{data!r}: other bytes than the job's"


def retention_passes_a_reader() -> None:
    with segments_of(2):
        log = OutputLog(retention_bytes=2)

        def writer() -> None:
            write(log)

        def reader() -> None:
            is_a_view_of_the_words(read_all(log))

        run_threads(writer, reader)


def a_log_is_dropped_below_a_reader() -> None:
    with segments_of(3):
        log = OutputLog()

        def writer() -> None:
            write(log)
            while log.held_bytes():
                log.drop_oldest()

        def reader() -> None:
            is_a_view_of_the_words(read_all(log))

        run_threads(writer, reader)


def a_reader_searches_the_tail() -> None:
    log = OutputLog(retention_bytes=4)
    with segments_of(2):
        append(log, b"a\nb\n")

        def writer() -> None:
            append(log, b"c\n")

        def searcher() -> None:
            reader = log.reader_at(0)
            reader.seek_tail_lines(1)
            assert reader.offset in {2, 4}, f"no line starts at {reader.offset}"

        run_threads(writer, searcher)


def two_readers_search_the_tail() -> None:
    with segments_of(2):
        log = OutputLog()
        append(log, b"a\nbcd\n")

        def searcher() -> None:
            reader = log.reader_at(0)
            reader.seek_tail_lines(1)
            assert reader.offset == 2, reader.offset

        def second_searcher() -> None:
            searcher()

        run_threads(searcher, second_searcher)


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
            history.call("writer", "append", len(word), partial(append, log, word))
        history.call("writer", "close", None, log.close)

    def reader() -> None:
        for _ in range(3):
            history.call("reader", "extent", None, extent)

    run_threads(writer, reader)
    history.require_linearizable(LogModel())


WATCH = Watch((OutputLog, LogReader, _Segment))


scenario = partial(Scenario, explores=(log_module,), watch=WATCH)


SCENARIOS = (
    scenario("log.follow", "A reader gets every byte once, in order.", a_reader_follows),
    scenario("log.two-readers", "A close wakes every waiting reader.", two_readers_wait),
    scenario("log.cancel", "A cancelled wait returns.", a_wait_is_cancelled),
    scenario(
        "log.cancel-close", "A wait returns on a cancel, on a close, and on both at once.",
        a_wait_is_cancelled_beside_a_close,
    ),
    scenario(
        "log.segments", "A reader gets every byte once, in order, of a log of several segments.",
        the_log_has_several_segments,
    ),
    scenario(
        "log.retention", "Missed bytes are reported exactly; all others are right.",
        retention_passes_a_reader,
    ),
    scenario(
        "log.drop", "A reader of a log that is dropped gets its bytes or the number of them.",
        a_log_is_dropped_below_a_reader,
    ),
    scenario(
        "log.tail", "A search for lines finds a line's start while output is added and dropped.",
        a_reader_searches_the_tail,
    ),
    scenario(
        "log.tails", "Two searches for lines share what each has counted.",
        two_readers_search_the_tail,
    ),
    scenario(
        "log.order", "Appends and extents are linearizable: one order explains every answer.",
        appends_and_extents_have_an_order, linearizable=True,
    ),
)  # fmt: skip
