"""Faults of the rpcs and the table of jobs: pages, deletion, expiry, and kinds of calls."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import CALLS, JOBS, WORKER, WORKER_JOBS

OWN_KIND: Final = CALLS + "test_stops_leave_threads_and_abandoned_ones_free_theirs_at_once"
BETWEEN_PAGES: Final = JOBS + "test_deletions_and_starts_between_pages_skip_and_repeat_no_other_job"
EXPIRY: Final = WORKER_JOBS + "test_ended_jobs_are_forgotten_after_their_ttl"

MUTANTS: Final = (
    # The kinds of calls.
    Mutation(
        "an abandoned stop keeps its thread",
        (
            Edit(
                "service.py",
                "        context.add_callback(self._worker.find(request.job_id).wake)\n",
                "",
            ),
        ),
        OWN_KIND,
    ),
    Mutation(
        "a stop whose client is gone waits on",
        (Edit("service.py", "lambda: not context.is_active()", "lambda: False"),),
        OWN_KIND,
    ),
    Mutation(
        "a given-up stop reports that it timed out",
        (Edit("worker.py", "if not ended and not given_up():", "if not ended:"),),
        WORKER + "test_stop_that_is_given_up_returns_the_running_status_at_once",
    ),
    Mutation(
        "stops take the threads of other calls",
        (
            Edit(
                "gate.py",
                "kind = self._stops if method == _STOP else self._others",
                "kind = self._others",
            ),
        ),
        OWN_KIND,
    ),
    Mutation(
        "streams take the threads of other calls",
        (
            Edit(
                "gate.py",
                "self._call(method, context, self._streams)",
                "self._call(method, context, self._others)",
            ),
        ),
        CALLS + "test_streams_leave_threads_for_other_calls",
    ),
    Mutation(
        "an ended call keeps its slot",
        (
            Edit(
                "gate.py",
                "                slot.release()\n            audit",
                "                pass\n            audit",
            ),
        ),
        CALLS + "test_other_calls_that_wait_leave_threads_for_stops_and_streams",
    ),
    # Pages.
    Mutation(
        "a page repeats the last job of the one before",
        (Edit("worker.py", "bisect_right(jobs, after", "bisect_left(jobs, after"),),
        WORKER_JOBS + "test_list_continues_after_any_number_in_both_orders",
    ),
    Mutation(
        "a token counts jobs",
        (
            Edit("worker.py", "bisect_right(jobs, after, key=number)", "after"),
            Edit(
                "service.py",
                "            last_number = job.number\n",
                "            last_number += 1\n",
            ),
        ),
        BETWEEN_PAGES + "[False]",
    ),
    Mutation(
        "a page has any size",
        (Edit("service.py", "page_bytes > _PAGE_MAX_BYTES", "page_bytes > 2**40"),),
        JOBS + "test_page_ends_before_its_size_does_not_fit_a_message",
    ),
    Mutation(
        "a job that is larger than a page ends the list",
        (Edit("service.py", "(page.jobs and page_bytes >", "(page_bytes >"),),
        JOBS + "test_page_ends_before_its_size_does_not_fit_a_message",
    ),
    Mutation(
        "every page names a next one",
        (
            Edit(
                "service.py",
                "        return page\n",
                '        page.next_page_token = f"{self._page_prefix}{last_number}"\n'
                "        return page\n",
            ),
        ),
        JOBS + "test_only_the_last_page_has_no_token",
    ),
    Mutation(
        "another server's token is accepted",
        (Edit("service.py", 'f"{secrets.token_hex(4)}-"', '"00000000-"'),),
        JOBS + "test_token_of_another_answer_is_an_invalid_argument[00000000-1]",
    ),
    Mutation(
        "a list ignores the status that is asked for",
        (Edit("worker.py", "if state is None or status.state is state:", "if True:"),),
        WORKER_JOBS + "test_list_has_only_jobs_in_the_state",
    ),
    Mutation(
        "a list reads each running job's usage",
        (
            Edit(
                "worker.py",
                "            status = job.status()\n            if state",
                "            status = job.status_with_usage()\n            if state",
            ),
        ),
        WORKER_JOBS + "test_list_reads_no_usage_and_query_does",
    ),
    # Deletion and expiry.
    Mutation(
        "a running job can be deleted",
        (
            Edit(
                "worker.py",
                "        if status.state is State.RUNNING:\n            raise JobRunning",
                "        if not status:\n            raise JobRunning",
            ),
        ),
        WORKER_JOBS + "test_delete_of_a_running_job_is_refused",
    ),
    Mutation(
        "a deleted job's output stays in memory",
        (
            Edit(
                "worker.py",
                "        if job is not None:\n            self._reactor.call_soon(partial(",
                "        if job is None:\n            self._reactor.call_soon(partial(",
            ),
        ),
        WORKER_JOBS + "test_delete_forgets_an_ended_job_and_frees_its_output",
    ),
    Mutation(
        "a job cannot be deleted until its readers are woken",
        (
            Edit(
                "worker.py",
                "        if status.state is State.RUNNING:\n            raise JobRunningError(f",
                "        if not self.find(job_id).wait_ended(0):\n"
                "            raise JobRunningError(f",
            ),
        ),
        WORKER_JOBS + "test_job_that_a_query_reports_as_ended_can_be_deleted",
    ),
    Mutation(
        "the output of a job that cannot be watched stays in memory",
        (
            Edit(
                "worker.py",
                "            self._reactor.call_soon(partial(self._memory.forget, job.log))\n"
                "            raise HostExhaustedError(",
                "            raise HostExhaustedError(",
            ),
        ),
        WORKER + "test_start_that_cannot_be_watched_is_refused_and_leaves_nothing",
    ),
    Mutation(
        "users may delete jobs",
        (
            Edit(
                "identity.py",
                '"/jobworker.v1.JobWorker/DeleteJob": _ADMINS',
                '"/jobworker.v1.JobWorker/DeleteJob": _EVERYBODY',
            ),
        ),
        JOBS + "test_delete_forgets_an_ended_job_only",
    ),
    Mutation(
        "only the first job expires",
        (Edit("worker.py", "        if self._expiring:\n", "        if not self._expiring:\n"),),
        EXPIRY,
    ),
    Mutation(
        "jobs expire at once",
        (Edit("worker.py", "self._reactor.call_later(ttl_s, self._expire)", "self._expire()"),),
        EXPIRY,
    ),
    Mutation(
        "a job that ends during its start never expires",
        (
            Edit(
                "worker.py",
                "            job.number = next(self._numbers)\n"
                "            self._jobs[job_id] = job\n",
                "            pass\n",
            ),
            Edit(
                "worker.py",
                "            self._begin(job)\n        finally:\n",
                """\
            self._begin(job)
            with self._lock:
                job.number = next(self._numbers)
                self._jobs[status.job_id] = job
        finally:
""",
            ),
        ),
        WORKER_JOBS + "test_job_that_expires_before_its_start_has_returned_is_forgotten",
    ),
    Mutation(
        "a query does not report lost output",
        (Edit("service.py", "            output_error=output_error,\n", ""),),
        JOBS + "test_query_reports_lost_output",
    ),
)
