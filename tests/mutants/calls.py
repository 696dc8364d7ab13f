"""Faults of calls: streams, auditing, shutdown, and the client."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import (
    ADMISSION,
    AUDIT,
    CLI,
    FOLLOW,
    INTEROP,
    MESSAGES,
    POOL,
    REACTOR,
    SERVICE,
    SHUTDOWN,
    SPAWN,
    STALLED,
    STREAMS,
    THREADS,
    TIMERS,
    WIRE,
)

ADMITTED: Final = """\
            slot = self._admit(call.identity, method, kind)
            if kind is self._streams:
                context.add_callback(slot.release)
"""

MUTANTS: Final = (
    Mutation(
        "calls that wait to be taken are cancelled from 1000 on",
        (Edit("server.py", "max(_WAITING_CALLS_MIN, 2 * _calls_max(settings))", "1000"),),
        "tests/integration/test_announced_settings.py::"
        "test_crowd_that_begins_at_once_is_answered_or_refused_and_never_cancelled",
    ),
    # Streams.
    Mutation(
        "a silent stream does not renew its lease",
        (Edit("follow.py", "reader.wait(1, lease_s)", "reader.wait(1)"),),
        FOLLOW + "test_lease_is_renewed_when_due_and_its_error_ends_the_stream",
    ),
    Mutation(
        "the budget is not released",
        (
            Edit(
                "follow.py", "                budget.release(granted_bytes)", "                pass"
            ),
        ),
        FOLLOW + "test_budget_is_released_when_a_stream_is_closed_or_ends",
    ),
    Mutation(
        "the budget is not shared",
        (Edit("follow.py", "min(share, left)", "wanted_bytes"),),
        FOLLOW + "test_budget_is_exceeded_by_at_most_the_minimum_of_each_stream",
    ),
    Mutation(
        "every write is sent as its own message",
        (Edit("follow.py", "if live and hold_s > 0 and", "if live and hold_s > 1e9 and"),),
        FOLLOW + "test_small_output_waits_for_the_interval_or_the_logs_end",
    ),
    Mutation(
        "lost output is not reported",
        (Edit("follow.py", "                reader.raise_if_output_lost()\n", ""),),
        FOLLOW + "test_lost_output_is_an_error_after_the_stored_bytes",
    ),
    Mutation(
        "a slot is freed twice",
        (Edit("follow.py", "if not slot.released:", "if slot:"),),
        ADMISSION,
    ),
    Mutation(
        "one stream beyond the maximum is admitted",
        (Edit("follow.py", "if self._taken >= self._maximum:", "if self._taken > self._maximum:"),),
        ADMISSION,
    ),
    Mutation(
        "a stream continues after its client's cancel",
        (
            Edit(
                "service.py",
                "if not context.add_callback(reader.cancel):",
                "if not context.is_active():",
            ),
        ),
        STREAMS + "test_cancelled_silent_stream_frees_its_slot_and_its_thread",
    ),
    Mutation(
        "offsets are wrong on the wire",
        (
            Edit(
                "wire.py",
                " = [_OFFSET_TAG, _varint(chunk.offset)]",
                " = [_OFFSET_TAG, _varint(chunk.offset + 1)]",
            ),
        ),
        WIRE + "test_encode_output_equals_protobufs_encoding",
    ),
    Mutation(
        "a stream without follow follows",
        (
            Edit(
                "service.py",
                "if request.no_follow else None",
                "if request.no_follow and not reader else None",
            ),
        ),
        CLI + "test_stream_starts_at_tail_or_offset_and_ends_without_follow",
    ),
    # Auditing.
    Mutation(
        "an internal error shows its traceback",
        (
            Edit(
                "gate.py",
                'text = f"internal error; see {reference} in the server\'s log"',
                "text = __import__('traceback').format_exc()",
            ),
        ),
        SERVICE + "test_unexpected_exception_is_internal_and_its_text_only_in_the_log",
    ),
    Mutation(
        "the audit line omits a call's job",
        (Edit("audit.py", 'f" {self.subject}" if self.subject else ""', '""'),),
        AUDIT + "test_audit_line_reports_caller_subject_and_status",
    ),
    Mutation(
        "the audit line does not escape a client's text",
        (Edit("audit.py", "else repr(text[:_SHOWN_CHARACTERS])", "else text"),),
        AUDIT + "test_audit_line_reports_caller_subject_and_status",
    ),
    Mutation(
        "an unreadable request is not audited",
        (Edit("messages.py", "            return Unreadable()\n", "            raise\n"),),
        AUDIT + "test_unknown_rpc_and_unreadable_request_are_audited",
    ),
    Mutation(
        "a request is awaited before its caller is authorized",
        (
            Edit(
                "gate.py",
                f"{ADMITTED}            yield call\n",
                f"            yield call\n{ADMITTED}",
            ),
        ),
        AUDIT + "test_forbidden_caller_is_refused_before_the_request_arrives[QueryJob]",
    ),
    Mutation(
        "a request is awaited without a bound",
        (
            Edit(
                "gate.py",
                "with self._timers.calling(cut, within_s):",
                "with self._timers.calling(cut, math.inf):",
            ),
        ),
        AUDIT + "test_call_without_a_request_is_cancelled_in_time_and_frees_its_thread",
    ),
    Mutation(
        "calls beyond the first ones wait for requests as long",
        (
            Edit(
                "gate.py",
                "slot, within_s = None, REQUEST_CROWDED_MAX_S",
                "slot, within_s = None, REQUEST_MAX_S",
            ),
        ),
        AUDIT + "test_call_without_a_request_is_cancelled_in_time_and_frees_its_thread",
    ),
    Mutation(
        "a stalled stream is not cancelled",
        (
            Edit(
                "gate.py",
                "                call.cut = refusal\n                context.cancel()\n",
                "",
            ),
        ),
        STALLED + "[denied]",
    ),
    Mutation(
        "a stalled stream is cancelled late",
        (Edit("gate.py", "CUT_AFTER_S: Final = 1.0", "CUT_AFTER_S: Final = 4.0"),),
        STALLED + "[expired]",
    ),
    Mutation(
        "the audit line of a cancelled stalled stream has no reason",
        (Edit("gate.py", "                call.cut = refusal\n", ""),),
        STALLED + "[denied]",
    ),
    Mutation(
        "a cancelled stream keeps its slot until its thread is free",
        (
            Edit(
                "gate.py",
                "                context.add_callback(slot.release)\n",
                "                pass\n",
            ),
        ),
        STREAMS
        + "test_cancel_frees_the_slot_of_a_stream_that_searches_its_tail_and_ends_the_search",
    ),
    Mutation(
        "a reset is taken for the end of the requests",
        (
            Edit(
                "messages.py",
                "    yield from requests\n    yield from requests\n",
                "    yield from requests\n",
            ),
        ),
        MESSAGES + "test_all_requests_raises_if_the_call_was_reset_after_its_requests",
    ),
    Mutation(
        "the audit line has another status than the client",
        (Edit("gate.py", "call.code = context.code() or call.code", "call.code = call.code"),),
        AUDIT + "test_status_in_the_audit_line_is_the_clients",
    ),
    Mutation(
        "a status text is not truncated",
        (Edit("gate.py", "    if len(whole) > _DETAIL_MAX_BYTES:\n", "    if not whole:\n"),),
        AUDIT + "test_long_text_of_a_client_is_truncated_in_status_and_audit_line",
    ),
    Mutation(
        "a sooner timer does not wake the thread",
        (Edit("timers.py", "if due_at_s < self._wakes_at_s:", "if due_at_s > self._wakes_at_s:"),),
        TIMERS + "test_timer_fires_before_a_later_one_and_not_after_its_block",
    ),
    Mutation(
        "a failing timer ends the thread",
        (Edit("timers.py", "    except Exception:\n", "    except KeyError:\n"),),
        TIMERS + "test_failing_timer_is_logged_and_other_timers_fire",
    ),
    Mutation(
        "the end waits for a timer that hangs",
        (Edit("timers.py", "self._thread.join(CLOSE_MAX_S)", "self._thread.join()"),),
        TIMERS + "test_close_does_not_wait_for_a_callback_that_never_returns",
    ),
    # Shutdown, and missing resources.
    Mutation(
        "a stopped reactor closes its descriptor",
        (
            Edit(
                "reactor.py",
                "        self._epoll.close()\n",
                "        self._epoll.close()\n        os.close(self._wakeup_fd)\n",
            ),
        ),
        REACTOR + "test_call_soon_after_stop_writes_to_no_other_descriptor",
    ),
    Mutation(
        "a thread that cannot be started ends gRPC's own",
        (
            Edit(
                "pool.py",
                "        except RuntimeError as error:\n            if not self._threads:",
                "        except KeyError as error:\n            if not self._threads:",
            ),
        ),
        POOL + "test_calls_wait_if_the_host_allows_no_more_threads",
    ),
    Mutation(
        "a busy thread counts as idle",
        (
            Edit(
                "pool.py",
                "max(1, self._unfinished + self._spare_threads)",
                "max(1, self._unfinished - 1 + self._spare_threads)",
            ),
        ),
        POOL + "test_every_call_below_the_maximum_gets_a_thread_at_once",
    ),
    Mutation(
        "every call starts a thread",
        (
            Edit(
                "pool.py",
                "min(max(1, self._unfinished + self._spare_threads), self._threads_max)",
                "self._threads_max",
            ),
        ),
        POOL + "test_free_thread_is_reused_before_another_is_started",
    ),
    Mutation(
        "streams take the last threads that the host allows",
        (
            Edit(
                "gate.py",
                "idle is not None and idle < needed:",
                "idle is None:",
            ),
        ),
        THREADS + "test_streams_beyond_the_threads_are_refused_and_other_calls_are_answered",
    ),
    Mutation(
        "no thread is spare",
        (Edit("server.py", "Pool(self._calls_max, _SPARE_THREADS)", "Pool(self._calls_max)"),),
        THREADS + "test_streams_beyond_the_threads_are_refused_and_other_calls_are_answered",
    ),
    Mutation(
        "a shortage of threads lasts for ever",
        (Edit("pool.py", "        self._short = False\n        while", "        while"),),
        THREADS + "test_streams_beyond_the_threads_are_refused_and_other_calls_are_answered",
    ),
    Mutation(
        "a host without a free process is taken for a program that cannot run",
        (Edit("spawn.py", "if number in {errno.EAGAIN, ", "if number in {"),),
        THREADS + "test_start_without_a_free_process_is_refused_and_leaves_nothing",
    ),
    Mutation(
        "a server starts although the host allows no threads",
        (Edit("server.py", "    _require_threads(_THREADS_MIN)\n", ""),),
        THREADS + "test_server_does_not_start_without_room_for_its_threads",
    ),
    Mutation(
        "a server without a free thread does not stop",
        (
            Edit(
                "server.py",
                '            logger.exception("the host allows no thread that waits',
                '            raise\n            logger.exception("the host allows no thread that waits',
            ),
        ),
        THREADS + "test_server_stops_orderly_without_a_thread",
    ),
    Mutation(
        "an error of a call ends its thread",
        (Edit("pool.py", "except BaseException as error:", "except Exception as error:"),),
        POOL + "test_errors_of_calls_are_in_their_futures_and_end_no_thread",
    ),
    Mutation(
        "an idle thread keeps the last call's request",
        (Edit("pool.py", "            del call  # it holds the request and the response\n", ""),),
        POOL + "test_finished_call_is_not_kept",
    ),
    Mutation(
        "calls that wait at the shutdown run",
        (
            Edit(
                "pool.py",
                "            if cancel_futures:\n",
                "            if cancel_futures and wait:\n",
            ),
        ),
        POOL + "test_shutdown_runs_or_cancels_the_calls_that_wait[True]",
    ),
    Mutation(
        "jobs that do not end keep the calls running",
        (
            Edit(
                "server.py",
                "        except TimeoutError:\n            logger.exception(",
                "        except KeyError:\n            logger.exception(",
            ),
        ),
        SHUTDOWN + "test_stop_ends_the_calls_although_jobs_do_not_end",
    ),
    Mutation(
        "the log level disables the audit",
        (
            Edit(
                "server.py",
                "    audit.setLevel(logging.INFO)",
                "    audit.setLevel(logging.NOTSET)",
            ),
        ),
        SHUTDOWN + "test_audit_lines_are_written_at_log_level_error",
    ),
    Mutation(
        "an environment's values are shown in an error",
        (Edit("spawn.py", "{key.partition('=')[0]!r}", "{key!r}"),),
        SPAWN + "test_error_for_a_key_with_a_value_does_not_show_the_value",
    ),
    Mutation(
        "processes forked at once stay protected from the OOM killer",
        (
            Edit(
                "oom_score.py",
                "    if not _adjust(pid) or cgroup is None:\n",
                "    if _adjust(pid) or True:\n",
            ),
        ),
        "tests/impl/test_oom_score.py::test_processes_forked_before_the_adjustment_are_adjusted",
    ),
    # The client.
    Mutation(
        "an offset that the server ignored is taken as met",
        (
            Edit(
                "client.py",
                "skip_bytes = _bytes_to_skip(start, follow=follow)",
                "_bytes_to_skip(start, follow=follow)",
            ),
        ),
        INTEROP + "test_our_client_skips_to_an_offset_that_the_server_ignored",
    ),
)
