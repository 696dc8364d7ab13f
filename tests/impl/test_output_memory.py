"""One bound for all output: which logs give way, in which order, and what readers are told."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.log import append
from worker_service.log import SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES, OutputLog
from worker_service.output_memory import OutputMemory


def write(memory: OutputMemory, log: OutputLog, size: int) -> None:
    """Write as a job does: piece by piece, and room is made after each."""
    while size > 0:
        piece = min(size, SEGMENT_MIN_BYTES)
        append(log, bytes(piece))
        memory.written(log)
        size -= piece


def end(memory: OutputMemory, log: OutputLog) -> None:
    log.close()
    memory.ended(log)


def test_logs_of_ended_jobs_give_way_first_in_the_order_of_their_ends() -> None:
    memory = OutputMemory(100)
    first, second, largest, writing = (OutputLog() for _ in range(4))
    write(memory, second, 10)
    write(memory, largest, 50)
    write(memory, first, 20)
    end(memory, first)
    end(memory, second)
    write(memory, writing, 21)
    assert [log.held_bytes() for log in (first, second, largest, writing)] == [0, 10, 50, 21]
    write(memory, writing, 20)
    assert [log.held_bytes() for log in (first, second, largest, writing)] == [0, 0, 50, 41]
    assert memory.total_bytes() == 91


def test_largest_log_of_a_running_job_gives_way_next() -> None:
    memory = OutputMemory(100)
    small, large, writing = (OutputLog() for _ in range(3))
    write(memory, small, 30)
    write(memory, large, 60)
    write(memory, writing, 11)
    assert [log.held_bytes() for log in (small, large, writing)] == [30, 0, 11]
    write(memory, writing, 200)  # its own only segment, if it is the largest
    assert [log.held_bytes() for log in (small, large, writing)] == [30, 0, 0]
    write(memory, writing, 5)
    assert (writing.extent().first_offset, writing.extent().end_offset) == (211, 216)


def test_large_log_gives_way_segment_by_segment_from_its_oldest() -> None:
    memory = OutputMemory(3 * SEGMENT_MAX_BYTES)
    ended, writing = OutputLog(), OutputLog()
    write(memory, ended, SEGMENT_MIN_BYTES + 2 * SEGMENT_MAX_BYTES)
    end(memory, ended)
    write(memory, writing, SEGMENT_MAX_BYTES)
    assert ended.extent().first_offset == SEGMENT_MIN_BYTES
    write(memory, writing, 1)
    assert ended.extent().first_offset == SEGMENT_MIN_BYTES + SEGMENT_MAX_BYTES
    assert writing.extent().first_offset == 0


def test_forgotten_log_frees_its_memory_and_its_readers_are_told() -> None:
    memory = OutputMemory(100)
    ended, other = OutputLog(), OutputLog()
    for log in (ended, other):
        write(memory, log, 40)
    reader = ended.reader_at(5)
    end(memory, ended)
    memory.forget(ended)
    memory.forget(ended)
    assert memory.total_bytes() == 40
    assert (ended.held_bytes(), ended.extent().first_offset) == (0, 40)
    chunk = reader.read(100)
    assert (chunk.offset, chunk.missed_bytes, len(chunk.data)) == (40, 35, 0)
    write(memory, other, 60)
    assert other.held_bytes() == 100


def test_reaching_the_bound_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    memory = OutputMemory(10)
    with caplog.at_level(logging.WARNING):
        log = OutputLog()
        write(memory, log, 10)
        assert not caplog.text
        for _ in range(5):
            write(memory, log, 10)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--output-memory" in caplog.text


@given(
    limit=st.integers(1, 300_000),
    retention=st.none() | st.integers(1, 200_000),
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["write", "end", "forget"])), max_size=60
    ),
    size=st.integers(1, SEGMENT_MIN_BYTES),
)
def test_total_is_exact_and_within_the_bound(
    limit: int, retention: int | None, steps: list[tuple[int, str]], size: int
) -> None:
    memory = OutputMemory(limit)
    logs = [OutputLog(retention) for _ in range(6)]
    for number, step in steps:
        log = logs[number]
        if step == "forget":
            memory.forget(log)
        elif not log.extent().closed:
            (write(memory, log, size) if step == "write" else end(memory, log))
        assert memory.total_bytes() == sum(each.held_bytes() for each in logs)
        assert memory.total_bytes() <= limit
