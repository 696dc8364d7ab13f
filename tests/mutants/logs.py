"""Faults of the log, of the memory of all logs, and of what streams read from them."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import FOLLOW, LOG, MEMORY

MUTANTS: Final = (
    # The log.
    Mutation(
        "close wakes no reader",
        (Edit("log.py", "woken = list(self._waiting)", "woken: list[LogReader] = []"),),
        LOG + "test_waiting_reader_is_woken_by[close]",
    ),
    Mutation(
        "every write wakes every reader",
        (Edit("log.py", "if reader.wake_at <= self._end_offset]", "]"),),
        LOG + "test_reader_is_not_woken_before_the_bytes_it_waits_for",
    ),
    Mutation(
        "a cancel does not wake its reader",
        (
            Edit(
                "log.py",
                "self._cancelled.set()\n        self._wakeup.set()",
                "self._cancelled.set()",
            ),
        ),
        LOG + "test_waiting_reader_is_woken_by[cancel]",
    ),
    Mutation(
        "a cancel before the wait is lost",
        (Edit("log.py", "if not self._cancelled.is_set():", "if self._wakeup is not None:"),),
        LOG + "test_cancel_before_the_wait_ends_it_at_once",
    ),
    Mutation(
        "a stream whose output never pauses does not look at its lease",
        (
            Edit(
                "follow.py",
                "            lease_s = lease()\n"
                "            pending_bytes, closed = reader.pending_bytes()\n",
                "            pending_bytes, closed = reader.pending_bytes()\n"
                "            lease_s = 1.0 if pending_bytes else lease()\n",
            ),
        ),
        FOLLOW + "test_lease_is_looked_at_before_each_message_of_output_that_never_pauses",
    ),
    Mutation(
        "a tail of more than is kept starts at dropped output",
        (
            Edit(
                "log.py",
                "max(extent.first_offset, extent.end_offset - count)",
                "max(0, extent.end_offset - count)",
            ),
        ),
        LOG + "test_tail_of_more_than_is_kept_starts_there_and_misses_nothing[6]",
    ),
    Mutation(
        "missed bytes are not counted",
        (
            Edit(
                "log.py",
                "segment.memory[position : position + length], start - offset)",
                "segment.memory[position : position + length], 0)",
            ),
        ),
        LOG + "test_reader_behind_retention_gets_the_number_of_missed_bytes",
    ),
    Mutation(
        "retention does not free memory",
        (Edit("log.py", "        del self._segments[:count]\n", ""),),
        LOG + "test_retention_frees_the_memory_of_dropped_bytes",
    ),
    Mutation(
        "a small log keeps its whole segment",
        (Edit("log.py", "            self._trim()\n", ""),),
        LOG + "test_small_log_costs_no_more_than_its_bytes_once_it_is_closed",
    ),
    Mutation(
        "a search for lines does not end with its client",
        (
            Edit(
                "log.py",
                "while position > first_offset and not cancelled.is_set():",
                "while position > first_offset:",
            ),
        ),
        LOG + "test_cancel_ends_the_search_for_lines",
    ),
    Mutation(
        "each search for lines counts all newlines again",
        (Edit("log.py", "newlines = segment.newlines if whole else None", "newlines = None"),),
        LOG + "test_full_segment_is_searched_once_for_all_readers",
    ),
    Mutation(
        "more lines than bytes are searched for",
        (Edit("log.py", "if count >= position - first_offset:", "if count < 0:"),),
        LOG + "test_no_byte_is_searched_for_more_lines_than_there_can_be",
    ),
    # The memory of all logs.
    Mutation(
        "the output memory has no bound",
        (
            Edit(
                "output_memory.py",
                "while self._total_bytes > self._limit_bytes:",
                "while self._total_bytes < 0:",
            ),
        ),
        MEMORY + "test_logs_of_ended_jobs_give_way_first_in_the_order_of_their_ends",
    ),
    Mutation(
        "running jobs lose their output first",
        (
            Edit(
                "output_memory.py",
                "        if self._ended:\n",
                "        if self._ended and not self._running:\n",
            ),
        ),
        MEMORY + "test_logs_of_ended_jobs_give_way_first_in_the_order_of_their_ends",
    ),
    Mutation(
        "the smallest log of a running job gives way",
        (Edit("output_memory.py", "log = max(self._running", "log = min(self._running"),),
        MEMORY + "test_largest_log_of_a_running_job_gives_way_next",
    ),
    Mutation(
        "a forgotten log still counts",
        (Edit("output_memory.py", "self._total_bytes -= logs.pop(log, 0)", "logs.pop(log, 0)"),),
        MEMORY + "test_forgotten_log_frees_its_memory_and_its_readers_are_told",
    ),
    Mutation(
        "a reader of a dropped log is told nothing",
        (
            Edit(
                "log.py",
                "return extent.end_offset - self.offset, extent.closed",
                "return extent.end_offset - max(self.offset, extent.first_offset), extent.closed",
            ),
        ),
        FOLLOW
        + "test_reader_of_a_log_that_holds_nothing_any_more_gets_the_number_of_missed_bytes[None]",
    ),
    Mutation(
        "a stream that does not follow hides lost output",
        (
            Edit(
                "follow.py",
                "            if closed and pending_bytes == 0:\n",
                "            if closed and pending_bytes == 0 and until_offset is None:\n",
            ),
        ),
        FOLLOW + "test_lost_output_is_an_error_also_for_a_stream_that_does_not_follow",
    ),
    Mutation(
        "output behind the end of a segment is held back",
        (
            Edit(
                "follow.py",
                "                hold_s = 0  # the end",
                "                pass  # the end",
            ),
        ),
        FOLLOW + "test_output_that_is_due_is_sent_at_once_although_it_is_in_two_segments",
    ),
    Mutation(
        "a container's memory limit is not seen",
        (Edit("host_memory.py", "smallest_bytes = min(smallest_bytes, int(text))", "pass"),),
        "tests/impl/test_host_memory.py::test_smallest_limit_of_any_cgroup_counts",
    ),
    Mutation(
        "the end of output is announced one byte short",
        (
            Edit(
                "log.py",
                "            self._end_offset += count\n",
                "            self._end_offset += max(0, count - 1)\n",
            ),
        ),
        LOG + "TestLog::runTest",
    ),
)
