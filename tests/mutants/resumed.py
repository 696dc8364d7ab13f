"""Faults of streams that are resumed."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import RESUME, RESUMED

ADDS: Final = RESUME + "test_each_output_adds_what_follows_and_says_what_is_missing"
PAUSES: Final = RESUME + "test_pauses_double_up_to_a_bound_until_the_patience_ends"
MENDABLE: Final = RESUME + "test_only_what_another_attempt_may_mend_is_tried_again"
ONE_FAULT: Final = RESUMED + "test_stream_through_one_fault_is_exact"
TAIL: Final = RESUMED + "test_tail_stays_where_it_was_when_the_stream_began"
SILENT: Final = RESUMED + "test_silent_job_is_followed_for_longer_than_the_patience"
COMMAND: Final = "tests/integration/test_cli_resume.py::"
CANCELLED: Final = RESUMED + "test_cancel_ends_a_stream_that_waits_and_one_that_pauses"

MUTANTS: Final = (
    Mutation(
        "a stream is resumed one byte late",
        (
            Edit(
                "resume.py",
                "self.next_offset = new.offset + len(new.data)",
                "self.next_offset = new.offset + len(new.data) + 1",
            ),
        ),
        ONE_FAULT + "[reset]",
    ),
    Mutation(
        "a repeated byte is yielded twice",
        (Edit("resume.py", "output.data[repeated_bytes:]", "output.data"),),
        ADDS,
    ),
    Mutation(
        "a gap is reported only if the server does",
        (
            Edit(
                "resume.py",
                "max(0, offset - next_offset))",
                "min(output.missed_bytes, max(0, offset - next_offset)))",
            ),
        ),
        ADDS,
    ),
    Mutation(
        "a gap is not reported",
        (Edit("resume.py", "max(0, offset - next_offset))", "0)"),),
        RESUMED + "test_output_dropped_during_an_interruption_is_counted",
    ),
    Mutation(
        "a permanent error is retried",
        (Edit("resume.py", "if code not in MENDABLE or left_s <= 0:", "if left_s <= 0:"),),
        MENDABLE,
    ),
    Mutation(
        "a pause has no bound",
        (Edit("resume.py", "min(doubled_s, self.longest_pause_s)", "doubled_s"),),
        PAUSES,
    ),
    Mutation(
        "a pause does not grow",
        (Edit("resume.py", "* 2.0 ** min(failures - 1, _DOUBLINGS_MAX)", "* 2"),),
        PAUSES,
    ),
    Mutation(
        "all clients pause for the same time",
        (Edit("resume.py", "* (1 + luck) / 2", ""),),
        PAUSES,
    ),
    Mutation(
        "attempts have no end",
        (Edit("resume.py", "if code not in MENDABLE or left_s <= 0:", "if code not in MENDABLE:"),),
        PAUSES,
    ),
    Mutation(
        "the time without progress begins anew with each failure",
        (Edit("resume.py", "        elif not self.failures:\n", "        else:\n"),),
        RESUMED + "test_stream_gives_up_in_time_and_says_what_it_received",
    ),
    Mutation(
        "a dead connection is taken for a silent job",
        (
            Edit(
                "resume.py",
                "                if error.code in _NO_ANSWER:\n",
                "                if False:\n",
            ),
        ),
        ONE_FAULT + "[stall]",
    ),
    Mutation(
        "an answered query is no progress",
        (Edit("resume.py", "            attempt.answers += 1\n", ""),),
        SILENT,
    ),
    Mutation(
        "a tail begins anew at each attempt",
        (
            Edit(
                "resume.py",
                "        if self.next_offset is not None:\n            return\n",
                "        if True:\n            return\n",
            ),
        ),
        TAIL,
    ),
    Mutation(
        "a job that is gone is only not found",
        (
            Edit(
                "resume.py",
                "grpc.StatusCode.NOT_FOUND and self.retried",
                "grpc.StatusCode.NOT_FOUND and not self.retried",
            ),
        ),
        COMMAND + "test_job_of_a_killed_server_is_reported_as_gone",
    ),
    Mutation(
        "a pause is not ended by a cancel",
        (
            Edit(
                "resume.py",
                "if self._cancelled.wait(pause_s):",
                "if threading.Event().wait(pause_s):",
            ),
        ),
        CANCELLED,
    ),
    Mutation(
        "every failed attempt is reported to the user",
        (Edit("terminal.py", "    if broken.attempts == 1:\n", "    if broken.attempts:\n"),),
        COMMAND + "test_command_gives_up_with_the_offset_to_resume_at",
    ),
)
