"""Batching, the budget over all streams, and admission."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.log import append
from tests.support.readers import waiting_event
from worker_service.errors import CapacityReachedError, NotAuthenticatedError, OutputLostError
from worker_service.follow import (
    MESSAGE_MIN_BYTES,
    Admission,
    Batching,
    ByteBudget,
    ReaderCounts,
    Readers,
    follow,
)
from worker_service.log import SEGMENT_MIN_BYTES, Chunk, LogReader, OutputLog

LONG_S = 60.0


def following(
    log: OutputLog,
    batching: Batching | None = None,
    budget: ByteBudget | None = None,
    *,
    until_offset: int | None = None,
) -> tuple[LogReader, Iterator[Chunk]]:
    reader = log.reader_at(0)
    chunks = follow(
        reader,
        batching or Batching(),
        budget or ByteBudget(2**20),
        until_offset=until_offset,
        lease=lambda: LONG_S,
    )
    return reader, chunks


def test_output_after_a_pause_is_sent_at_once() -> None:
    log = OutputLog()
    _, chunks = following(log, Batching(flush_interval_s=LONG_S))
    append(log, b"first")
    assert next(chunks).data.tobytes() == b"first"


def test_small_output_waits_for_the_interval_or_the_logs_end() -> None:
    log = OutputLog()
    reader, chunks = following(log, Batching(flush_interval_s=LONG_S))
    append(log, b"1")
    next(chunks)
    queued = waiting_event(reader)
    append(log, b"2")
    rest: list[bytes] = []
    thread = threading.Thread(
        target=lambda: rest.extend(bytes(chunk.data) for chunk in chunks), daemon=True
    )
    thread.start()
    append(log, b"3")
    assert queued.wait(10)
    assert rest == []  # held: the interval is long
    log.close()
    thread.join(10)
    assert rest == [b"23"]


def test_flush_bytes_are_sent_without_waiting_for_the_interval() -> None:
    log = OutputLog()
    _, chunks = following(log, Batching(flush_interval_s=LONG_S, flush_bytes=100))
    append(log, b"1")
    next(chunks)
    append(log, b"x" * 100)
    assert next(chunks).data == b"x" * 100


def test_output_that_is_due_is_sent_at_once_although_it_is_in_two_segments() -> None:
    log = OutputLog()
    _, chunks = following(log, Batching(flush_interval_s=LONG_S, flush_bytes=100))
    append(log, b"x" * (SEGMENT_MIN_BYTES - 30))
    next(chunks)
    append(log, b"y" * 100)
    assert [len(next(chunks).data), len(next(chunks).data)] == [30, 70]


def test_small_output_is_sent_after_the_interval() -> None:
    log = OutputLog()
    _, chunks = following(log, Batching(flush_interval_s=0.05))
    append(log, b"1")
    next(chunks)
    append(log, b"2")
    started_s = time.monotonic()
    assert next(chunks).data.tobytes() == b"2"
    assert time.monotonic() - started_s < LONG_S


def test_until_offset_ends_the_stream_although_the_log_grows() -> None:
    log = OutputLog()
    append(log, b"12345")
    _, chunks = following(log, until_offset=5)
    assert next(chunks).data.tobytes() == b"12345"
    append(log, b"67890")
    assert list(chunks) == []


def test_messages_are_at_most_message_max_bytes() -> None:
    log = OutputLog()
    append(log, b"x" * 1000)
    log.close()
    _, chunks = following(log, Batching(message_max_bytes=300))
    assert [len(chunk.data) for chunk in chunks] == [300, 300, 300, 100]


def test_cancelled_reader_ends_the_stream() -> None:
    log = OutputLog()
    reader, chunks = following(log)
    done = threading.Event()

    def drain() -> None:
        assert list(chunks) == []
        done.set()

    thread = threading.Thread(target=drain)
    thread.start()
    reader.cancel()
    assert done.wait(10)
    thread.join(10)


def test_lease_is_renewed_when_due_and_its_error_ends_the_stream() -> None:
    log = OutputLog()
    renewals = 0

    def lease() -> float:
        nonlocal renewals
        renewals += 1
        if renewals == 3:
            raise NotAuthenticatedError("expired")
        return 0.02

    chunks = follow(log.reader_at(0), Batching(), ByteBudget(2**20), lease=lease)
    with pytest.raises(NotAuthenticatedError):
        next(chunks)
    assert renewals == 3


def test_lease_is_looked_at_before_each_message_of_output_that_never_pauses() -> None:
    log = OutputLog()
    append(log, b"123")
    answers = iter([LONG_S, LONG_S])

    def lease() -> float:
        for left_s in answers:
            return left_s
        raise NotAuthenticatedError("expired")

    batching = Batching(flush_bytes=1, message_max_bytes=1)
    chunks = follow(log.reader_at(0), batching, ByteBudget(2**20), lease=lease)
    assert [next(chunks).data.tobytes() for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(NotAuthenticatedError):
        next(chunks)


def test_lost_output_is_an_error_after_the_stored_bytes() -> None:
    log = OutputLog()
    append(log, b"123")
    log.close("memory is full")
    _, chunks = following(log)
    assert next(chunks).data.tobytes() == b"123"
    with pytest.raises(OutputLostError, match="memory is full"):
        next(chunks)


def test_lost_output_is_an_error_also_for_a_stream_that_does_not_follow() -> None:
    log = OutputLog()
    append(log, b"123")
    _, chunks = following(log, until_offset=3)
    assert next(chunks).data.tobytes() == b"123"
    log.close("memory is full")
    with pytest.raises(OutputLostError, match="after offset 3 was lost: memory is full"):
        next(chunks)
    _, part = following(log, Batching(message_max_bytes=2), until_offset=2)
    assert [bytes(chunk.data) for chunk in part] == [b"12"]


@pytest.mark.parametrize("until_offset", [None, 5])
def test_reader_of_a_log_that_holds_nothing_any_more_gets_the_number_of_missed_bytes(
    until_offset: int | None,
) -> None:
    log = OutputLog()
    append(log, b"12345")
    log.close()
    log.drop_oldest()
    _, chunks = following(log, until_offset=until_offset)
    assert [(chunk.offset, chunk.missed_bytes, bytes(chunk.data)) for chunk in chunks] == [
        (5, 5, b"")
    ]


def test_reader_of_a_running_job_whose_output_was_dropped_is_told_and_then_waits() -> None:
    log = OutputLog()
    append(log, b"12345")
    log.drop_oldest()
    reader, chunks = following(log)
    chunk = next(chunks)
    assert (chunk.offset, chunk.missed_bytes, bytes(chunk.data)) == (5, 5, b"")
    queued = waiting_event(reader)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(bytes(next(chunks).data)))
    thread.start()
    assert queued.wait(10)
    append(log, b"6")
    thread.join(10)
    assert received == [b"6"]


def test_budget_is_released_when_a_stream_is_closed_or_ends() -> None:
    log = OutputLog()
    append(log, b"x" * 1000)
    budget = ByteBudget(2**20)
    _, closed = following(log, budget=budget)
    next(closed)
    assert budget.held_bytes() == 1000
    closed.close()  # type: ignore[attr-defined]
    _, ended = following(log, budget=budget, until_offset=1000)
    assert len(list(ended)) == 1
    assert budget.held_bytes() == 0
    budget.join()
    assert budget.reserve(2**20) == 2**20  # the whole limit: no other stream is counted


@given(
    limit=st.integers(1, 2**26),
    steps=st.lists(st.tuples(st.integers(1, 2**21), st.booleans()), max_size=60),
)
def test_budget_is_exceeded_by_at_most_the_minimum_of_each_stream(
    limit: int, steps: list[tuple[int, bool]]
) -> None:
    budget = ByteBudget(limit)
    held: list[int] = []
    for wanted, stalls in steps:
        budget.join()
        granted = budget.reserve(wanted)
        assert 1 <= granted <= wanted
        assert granted >= min(wanted, MESSAGE_MIN_BYTES)
        if stalls:
            held.append(granted)
        else:
            budget.release(granted)
            budget.leave()
        assert budget.held_bytes() == sum(held)
        assert sum(held) <= limit + MESSAGE_MIN_BYTES * len(held)


def test_single_stream_gets_the_largest_message_and_many_get_their_share() -> None:
    budget = ByteBudget(2**26)
    budget.join()
    assert budget.reserve(2**20) == 2**20
    for _ in range(1023):
        budget.join()
    assert budget.reserve(2**20) == MESSAGE_MIN_BYTES


def test_admission_refuses_more_than_the_maximum_and_frees_a_slot_once() -> None:
    admission = Admission(2)
    first, _ = admission.admit(), admission.admit()
    with pytest.raises(CapacityReachedError, match="max capacity reached"):
        admission.admit()
    first.release()
    first.release()
    assert admission.taken() == 1
    admission.admit()
    with pytest.raises(CapacityReachedError):
        admission.admit()


def test_concurrent_admissions_do_not_exceed_the_maximum() -> None:
    admission = Admission(10)

    def admit(_: int) -> bool:
        try:
            admission.admit()
        except CapacityReachedError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(admit, range(200))) == 10


def test_readers_counts_what_streams_were_given_and_how_far_the_open_ones_are_behind() -> None:
    log, readers = OutputLog(), Readers()
    append(log, b"x" * 100)
    reader, chunks = following(log)
    fast = readers.counting(reader, chunks)
    late = log.reader_at(30)
    slow = readers.counting(late, iter([1, 2]))
    assert readers.counts() == ReaderCounts(0, 0, 0)  # neither has begun
    next(fast)
    next(slow)
    assert readers.counts() == ReaderCounts(100, 70, 70)
    append(log, b"y" * 5)
    assert readers.counts() == ReaderCounts(100, 80, 75)
    late.read(50)
    assert list(slow) == [2]
    assert readers.counts() == ReaderCounts(150, 5, 5)
    log.close()
    assert [bytes(chunk.data) for chunk in fast] == [b"yyyyy"]
    assert readers.counts() == ReaderCounts(155, 0, 0)
