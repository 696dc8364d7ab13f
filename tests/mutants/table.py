"""Servers broken on purpose, each with the test that must notice: proof that the tests can fail.

A new mutant is one row: the file below `impl/worker_service`, the text to replace (it must stand
there once), what to put in its place, and the test.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mutant:
    """One fault, and the test that must fail because of it."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str


LOG: Final = "tests/impl/test_log.py::"
FOLLOW: Final = "tests/impl/test_follow.py::"
JOB: Final = "tests/impl/test_job.py::"
SCARCITY: Final = "tests/impl/test_scarcity.py::"
CGROUP: Final = "tests/impl/test_cgroup.py::"
SPAWN: Final = "tests/impl/test_spawn.py::"
WORKER: Final = "tests/impl/test_worker.py::"
SMALL: Final = "tests/impl/test_small_parts.py::"
SERVICE: Final = "tests/integration/test_service.py::"
STREAMS: Final = "tests/integration/test_streams.py::"
IDENTITIES: Final = "tests/integration/test_identities.py::"
SHUTDOWN: Final = "tests/integration/test_shutdown.py::"
AUDIT: Final = "tests/integration/test_audit.py::"
STALLED: Final = AUDIT + "test_a_client_that_does_not_read_is_cut_off_when_it_may_no_longer_call"
INTEROP: Final = "tests/integration/test_interop.py::"
DESERVES: Final = IDENTITIES + "test_a_client_certificate_gets_the_status_that_it_deserves"
INHERITS: Final = SPAWN + "test_a_child_inherits_nothing_but_its_three_descriptors"
ADMISSION: Final = FOLLOW + "test_admission_refuses_the_next_one_at_once_and_frees_a_slot_once"

MUTANTS: Final = (
    # The log.
    Mutant(
        "close wakes nobody", "log.py",
        "woken = list(self._waiting)", "woken: list[LogReader] = []",
        LOG + "test_a_waiting_reader_is_woken_by[close]",
    ),
    Mutant(
        "every write wakes every reader", "log.py",
        "if reader.wake_at <= self._end_offset]", "]",
        LOG + "test_a_reader_is_not_woken_before_the_bytes_it_waits_for",
    ),
    Mutant(
        "a cancel wakes nobody", "log.py",
        "self._cancelled.set()\n        self._wakeup.set()", "self._cancelled.set()",
        LOG + "test_a_waiting_reader_is_woken_by[cancel]",
    ),
    Mutant(
        "a cancel before the wait is lost", "log.py",
        "if not self._cancelled.is_set():", "if self._wakeup is not None:",
        LOG + "test_a_cancel_before_the_wait_is_not_lost",
    ),
    Mutant(
        "a hole is taken for data", "log.py",
        "if start >= self._first_offset and len(data) == length:", "if len(data) == length:",
        LOG + "test_a_reader_that_is_overtaken_while_it_reads_gets_no_hole",
    ),
    Mutant(
        "missed bytes are not counted", "log.py",
        "return Chunk(start, data, start - offset), at_end\n            # Overtaken",
        "return Chunk(start, data, 0), at_end\n            # Overtaken",
        LOG + "test_a_reader_that_falls_behind_is_told_how_many_bytes_it_missed",
    ),
    Mutant(
        "retention keeps the memory", "log.py",
        "if dropped >= PUNCH_STEP_BYTES:", "if dropped < 0:",
        LOG + "test_retention_gives_the_memory_back",
    ),
    Mutant(
        "the end is announced with output missing", "log.py",
        "self._end_offset = end_offset\n            woken = self._take_ready()",
        "self._end_offset = end_offset - 1\n            woken = self._take_ready()",
        LOG + "TestLog::runTest",
    ),
    Mutant(
        "what is in memory is lost for want of a descriptor", "log.py",
        "            if error.errno not in NO_DESCRIPTOR:\n                raise\n",
        "            raise\n",
        LOG + "test_what_is_in_memory_already_stays_there_while_no_descriptor_is_left[None]",
    ),
    # Streams.
    Mutant(
        "a silent stream never asks its lease again", "follow.py",
        "reader.wait(1, lease_s)", "reader.wait(1)",
        FOLLOW + "test_the_lease_is_asked_again_when_it_says_and_its_refusal_ends_the_stream",
    ),
    Mutant(
        "the budget is never given back", "follow.py",
        "                budget.release(granted_bytes)", "                pass",
        FOLLOW + "test_the_budget_is_given_back_however_a_stream_ends",
    ),
    Mutant(
        "the budget is not shared", "follow.py",
        "min(share, left)", "wanted_bytes",
        FOLLOW + "test_the_budget_is_never_exceeded_by_more_than_the_least_of_each_stream",
    ),
    Mutant(
        "every write is a message", "follow.py",
        "if live and hold_s > 0 and", "if live and hold_s > 1e9 and",
        FOLLOW + "test_small_output_is_held_for_the_interval_and_close_ends_the_hold",
    ),
    Mutant(
        "lost output is not told", "follow.py",
        "                    reader.raise_if_output_lost()\n", "",
        FOLLOW + "test_lost_output_is_told_after_what_there_is",
    ),
    Mutant(
        "a slot is freed twice", "follow.py", "if not slot.released:", "if slot:", ADMISSION
    ),
    Mutant(
        "one stream too many", "follow.py",
        "if self._taken >= self._maximum:", "if self._taken > self._maximum:", ADMISSION,
    ),
    Mutant(
        "a stream goes on after its client has gone", "service.py",
        "if not context.add_callback(reader.cancel):", "if not context.is_active():",
        STREAMS + "test_cancelling_a_silent_stream_frees_its_slot_and_its_thread",
    ),
    Mutant(
        "offsets are wrong on the wire", "wire.py",
        "parts = [_OFFSET_TAG, _varint(chunk.offset)]",
        "parts = [_OFFSET_TAG, _varint(chunk.offset + 1)]",
        SMALL + "test_hand_made_messages_are_what_protobuf_makes",
    ),
    Mutant(
        "no-follow follows", "service.py",
        "if request.no_follow else None", "if request.no_follow and not reader else None",
        STREAMS + "test_no_follow_ends_although_the_job_goes_on_writing",
    ),
    # Jobs.
    Mutant(
        "the log is closed before the status is final", "job.py",
        "usage = self._tree.last_usage()\n        self._process",
        "usage = self._tree.last_usage()\n        self.log.close()\n        self._process",
        JOB + "test_the_status_is_final_before_the_log_is_closed",
    ),
    Mutant(
        "the end is told before the output is drained", "job.py",
        "if self._exit is not None and not self._output_open and self._tree.is_gone():",
        "if self._exit is not None and self._tree.is_gone():",
        JOB + "TestJob::runTest",
    ),
    Mutant(
        "the end is told before the tree is gone", "job.py",
        "not self._output_open and self._tree.is_gone():", "not self._output_open:",
        JOB + "test_a_job_has_not_ended_while_its_tree_lives",
    ),
    Mutant(
        "a daemon outlives its job", "job.py",
        "        self._kill()\n        self._drain",
        "        self._cancel(self._kill_timer)\n        self._drain",
        WORKER + "test_a_daemon_of_the_group_dies_with_the_main_process_and_frees_the_output",
    ),
    Mutant(
        "a stopped process sleeps through its stop", "job.py",
        "            self._process.signal_group(signal.SIGCONT)\n", "",
        WORKER + "test_a_stopped_process_can_be_stopped",
    ),
    Mutant(
        "a stop leaves no grace", "job.py",
        "self._kill_timer = self._scheduler.call_later(grace_s, self._kill)",
        "self._kill()",
        WORKER + "test_a_tree_that_ignores_sigterm_is_killed_after_the_grace",
    ),
    Mutant(
        "a job dies for want of a descriptor for its output", "job.py",
        "if error.errno in NO_DESCRIPTOR:", "if error.errno == errno.EPERM:",
        SCARCITY + "test_output_that_no_descriptor_is_left_for_waits_in_its_pipe_and_the_job_lives",
    ),
    Mutant(
        "a pipe that has to wait is asked again at once", "job.py",
        "        self._scheduler.unwatch(self._output_fd)\n        self._output_timer",
        "        self._output_timer",
        SCARCITY + "test_output_that_no_descriptor_is_left_for_waits_in_its_pipe_and_the_job_lives",
    ),
    Mutant(
        "output that waits is lost at the end of the drain", "job.py",
        "            self._take_rest()\n", "            self._close_output()\n",
        SCARCITY + "test_a_whole_pipe_that_waits_is_kept_when_no_descriptor_comes_back_in_time",
    ),
    Mutant(
        "a kill that fails is not tried again", "job.py",
        "self._kill_timer = self._scheduler.call_later(KILL_RETRY_S, self._kill)", "pass",
        SCARCITY + "test_a_kill_that_fails_is_tried_again",
    ),
    Mutant(
        "a job whose tree cannot be killed does not end", "job.py",
        "        except OSError as error:\n            logger.error(  # noqa",
        "        except KeyError as error:\n            logger.error(  # noqa",
        SCARCITY + "test_a_job_ends_although_its_tree_cannot_be_killed[True]",
    ),
    Mutant(
        "a kill opens its file when it is needed", "job.py",
        "kill_through(self._kill_fd)", "self._cgroup.kill()",
        SCARCITY + "test_the_end_of_a_job_takes_no_descriptor",
    ),
    Mutant(
        "an OOM kill is looked for when it is too late to open a file", "job.py",
        "self._cgroup.usage(self._memory_events_fd)", "self._cgroup.usage()",
        SCARCITY + "test_the_end_of_a_job_takes_no_descriptor",
    ),
    Mutant(
        "a lack of descriptors is taken for the kernel's refusal", "cgroup.py",
        "                if error.errno in _NO_DESCRIPTOR:\n                    raise Host",
        "                if error.errno == errno.EPERM:\n                    raise Host",
        CGROUP + "test_limits_that_no_descriptor_is_left_for_are_no_refusal_of_the_kernel[cpu.max]",
    ),
    Mutant(
        "what cannot be listed is passed over", "cgroup.py", ", onerror=_raise):", "):",
        CGROUP + "test_what_cannot_be_listed_is_not_passed_over",
    ),
    Mutant(
        "counters that cannot be read are not told", "cgroup.py",
        "        if error.errno in _NO_DESCRIPTOR:\n            logger",
        "        if error.errno == errno.EPERM:\n            logger",
        CGROUP + "test_counters_without_a_descriptor_are_0_and_told_but_oom_kills_are_known",
    ),
    Mutant(
        "only the leader is killed", "linux.py",
        "_PIDFD_SIGNAL_PROCESS_GROUP: Final = 1 << 2", "_PIDFD_SIGNAL_PROCESS_GROUP: Final = 0",
        WORKER + "test_a_daemon_of_the_group_dies_with_the_main_process_and_frees_the_output",
    ),
    Mutant(
        "a failed start leaves its pipe", "worker.py",
        "        os.close(read_fd)\n        raise", "        raise",
        WORKER + "test_a_failed_start_leaves_nothing",
    ),
    # Processes.
    Mutant(
        "a child inherits descriptors", "spawn.py",
        "            LIBC.posix_spawn_file_actions_addclosefrom_np(actions, 3),\n", "", INHERITS,
    ),
    Mutant(
        "a child inherits blocked signals", "spawn.py",
        "_POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK |", "_POSIX_SPAWN_SETSIGDEF |", INHERITS,
    ),
    Mutant(
        "a child inherits ignored signals", "spawn.py",
        "_POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK |", "_POSIX_SPAWN_SETSIGMASK |",
        SPAWN + "test_ignored_signals_are_back_to_their_defaults",
    ),
    Mutant(
        "a child stays in the server's session", "spawn.py",
        "_POSIX_SPAWN_SETSIGMASK | _POSIX_SPAWN_SETSID", "_POSIX_SPAWN_SETSIGMASK", INHERITS,
    ),
    Mutant(
        "a child inherits the server's environment", "spawn.py",
        "{key: os.environ[key] for key in INHERITED_VARIABLES if key in os.environ}",
        "dict(os.environ)", INHERITS,
    ),
    Mutant(
        "errors go elsewhere", "spawn.py",
        "            LIBC.posix_spawn_file_actions_adddup2(actions, output_fd, 2),\n", "",
        SPAWN + "test_output_and_errors_keep_their_order",
    ),
    # Identity.
    Mutant(
        "an expired certificate goes on streaming", "identity.py",
        "if now > self.not_after:", "if now < self.not_before:",
        IDENTITIES + "test_25_a_stream_ends_when_its_clients_certificate_expires",
    ),
    Mutant(
        "roles do not count", "identity.py",
        "if identity.role not in PERMISSIONS.get(method, frozenset()):",
        "if identity.role is None:",
        SERVICE + "test_a_user_may_query_and_stream_and_nothing_else",
    ),
    Mutant(
        "what is not listed is allowed", "identity.py",
        "PERMISSIONS.get(method, frozenset())", "PERMISSIONS.get(method, frozenset(Role))",
        SERVICE + "test_a_method_without_permissions_is_refused_to_an_admin",
    ),
    Mutant(
        "the first of two roles counts", "identity.py", "if len(found) > 1:", "if len(found) > 9:",
        DESERVES + "[19-both roles]",
    ),
    Mutant(
        "a weak key will do", "identity.py",
        "key.key_size >= RSA_MIN_BITS", "key.key_size >= RSA_MIN_BITS // 2",
        DESERVES + "[17-RSA of 1024 bits]",
    ),
    Mutant(
        "any certificate is one for clients", "identity.py",
        "if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:", "if usages is None:",
        DESERVES + "[16-no key usage]",
    ),
    Mutant(
        "a role without a text will do", "identity.py",
        "or not _is_text(value.value):", "or value.value is None:", DESERVES + "[20-empty text]",
    ),
    Mutant(
        "TLS 1.2 is accepted", "tls.py",
        "            context.wrap_socket(raw).close()\n",
        "            context.wrap_socket(raw).close()\n            return\n",
        IDENTITIES + "test_a_server_that_accepts_tls_12_does_not_start",
    ),
    Mutant(
        "an exposed key is used", "tls.py", "if mode & 0o077:", "if mode & 0o007:",
        SERVICE + "test_a_key_that_others_may_read_is_refused_at_start",
    ),
    Mutant(
        "an internal error tells its text", "service.py",
        'text = f"internal error; the server\'s log has it under {reference}"',
        "text = __import__('traceback').format_exc()",
        SERVICE + "test_an_unexpected_exception_does_not_leak_its_text",
    ),
    Mutant(
        "an rpc that nobody listed is open", "identity.py",
        "PERMISSIONS.get(method, frozenset())", "PERMISSIONS.get(method, _EVERYBODY)",
        AUDIT + "test_an_rpc_added_tomorrow_is_refused_to_everybody_until_it_is_listed[user]",
    ),
    Mutant(
        "the audit forgets what a call was about", "audit.py",
        'f" {self.subject}" if self.subject else ""', '""',
        AUDIT + "test_each_call_leaves_one_line_that_says_who_what_and_how_it_ended",
    ),
    Mutant(
        "the audit quotes what a client says as it is", "audit.py",
        "else repr(text[:_SHOWN_CHARACTERS])", "else text",
        AUDIT + "test_each_call_leaves_one_line_that_says_who_what_and_how_it_ended",
    ),
    Mutant(
        "a request that cannot be read leaves no line", "messages.py",
        "            return Unreadable()\n", "            raise\n",
        AUDIT + "test_what_is_no_call_of_ours_leaves_a_line_too",
    ),
    Mutant(
        "a request is waited for before its caller is looked at", "service.py",
        "            _admit(call.identity, method, exists=exists)\n            yield call\n",
        "            yield call\n            _admit(call.identity, method, exists=exists)\n",
        AUDIT + "test_who_may_not_call_is_refused_before_anything_of_the_request_has_come"
        "[QueryJob]",
    ),
    Mutant(
        "a request is waited for without end", "service.py",
        "with self._timers.calling(cut, within_s):", "with self._timers.calling(cut, math.inf):",
        AUDIT + "test_a_request_that_does_not_come_ends_its_call_and_others_find_a_thread",
    ),
    Mutant(
        "a crowd waits as long as one does", "service.py",
        "slot, within_s = None, REQUEST_CROWDED_MAX_S", "slot, within_s = None, REQUEST_MAX_S",
        AUDIT + "test_a_request_that_does_not_come_ends_its_call_and_others_find_a_thread",
    ),
    Mutant(
        "who does not read is not cut off", "service.py",
        "                call.cut = refusal\n                context.cancel()\n", "",
        STALLED + "[denied]",
    ),
    Mutant(
        "who does not read is cut off late", "service.py",
        "CUT_AFTER_S: Final = 1.0", "CUT_AFTER_S: Final = 4.0", STALLED + "[expired]",
    ),
    Mutant(
        "a client that does not read is told nothing in the log", "service.py",
        "                call.cut = refusal\n", "", STALLED + "[denied]",
    ),
    Mutant(
        "anybody may watch", "identity.py",
        '    "/grpc.health.v1.Health/Check": _EVERYBODY,\n',
        '    "/grpc.health.v1.Health/Check": _EVERYBODY,\n'
        '    "/grpc.health.v1.Health/Watch": _EVERYBODY,\n',
        AUDIT + "test_health_is_not_watched_and_reflection_counts_as_a_stream",
    ),
    Mutant(
        "a look for a tail has no slot", "service.py",
        "                        responses = behaviour(request, context)\n",
        "                        context.add_callback(slot.release)\n"
        "                        responses = behaviour(request, context)\n",
        STREAMS + "test_a_stream_that_looks_for_its_tail_keeps_its_slot_until_its_thread_is_free",
    ),
    Mutant(
        "a reset passes for the end of the requests", "messages.py",
        "    yield from requests\n    yield from requests\n", "    yield from requests\n",
        SMALL + "test_requests_that_a_reset_ends_do_not_pass_for_requests_that_ended",
    ),
    Mutant(
        "the log has another status than the client", "service.py",
        "call.code = context.code() or call.code", "call.code = call.code",
        AUDIT + "test_the_status_in_a_line_is_the_one_that_the_client_got",
    ),
    Mutant(
        "a client makes a status as long as it likes", "service.py",
        "    if len(whole) > _DETAIL_MAX_BYTES:\n", "    if not whole:\n",
        AUDIT + "test_what_a_client_says_makes_neither_a_line_nor_a_status_long",
    ),
    Mutant(
        "timers know no sooner", "timers.py", "if due_at_s < self._wakes_at_s:",
        "if due_at_s > self._wakes_at_s:",
        FOLLOW + "test_a_timer_whose_block_has_ended_does_not_call_and_a_sooner_one_is_not_late",
    ),
    Mutant(
        "a timer that fails ends them all", "timers.py", "    except Exception:\n",
        "    except KeyError:\n", FOLLOW + "test_a_timer_that_fails_is_told_and_leaves_the_others",
    ),
    Mutant(
        "a bad deny list denies nobody", "deny.py",
        "                    logger.warning(", "                    self._serials = frozenset()\n"
        "                    logger.warning(",
        "tests/impl/test_deny.py::test_a_list_that_has_become_bad_lets_nobody_in_who_was_out[gone]",
    ),
    Mutant(
        "strangers can fill the log with bad certificates of ours", "tls.py",
        "            self._refused = stamp\n", "",
        IDENTITIES + "test_26_renewed_files_that_do_not_fit_are_told_once_and_the_old_ones_stay",
    ),
    # The end, and what is lacking.
    Mutant(
        "a reactor gives its descriptor back", "reactor.py",
        "        self._epoll.close()\n",
        "        self._epoll.close()\n        os.close(self._wakeup_fd)\n",
        SMALL + "test_work_for_a_reactor_that_has_ended_goes_nowhere",
    ),
    Mutant(
        "a thread that the host refuses ends gRPC's own", "server.py",
        "        except RuntimeError as error:\n            if not self._threads:",
        "        except KeyError as error:\n            if not self._threads:",
        SMALL + "test_calls_wait_for_a_thread_where_the_host_gives_no_more",
    ),
    Mutant(
        "jobs that do not end keep the calls", "server.py",
        "        except TimeoutError:\n", "        except KeyError:\n",
        SHUTDOWN + "test_jobs_that_do_not_end_keep_neither_the_calls_nor_the_server",
    ),
    Mutant(
        "a quiet log leaves out the audit", "server.py",
        "    audit.setLevel(logging.INFO)", "    audit.setLevel(logging.NOTSET)",
        SHUTDOWN + "test_a_quiet_server_tells_of_every_call_all_the_same",
    ),
    Mutant(
        "an environment's values are told", "spawn.py",
        "{key.partition('=')[0]!r}", "{key!r}",
        SPAWN + "test_a_value_that_stands_in_a_key_is_not_told",
    ),
    Mutant(
        "what a job forked at once stays protected from the OOM killer", "oom_score.py",
        "    if not _adjust(pid) or cgroup is None:\n", "    if _adjust(pid) or True:\n",
        "tests/impl/test_oom_score.py::test_what_a_job_forked_before_it_was_adjusted_is_adjusted_too",
    ),
    # The client.
    Mutant(
        "an offset that the server ignores is believed", "client.py",
        "skip_bytes = _make_up_for(start, follow=follow)", "_make_up_for(start, follow=follow)",
        INTEROP + "test_our_client_makes_up_for_an_offset_that_the_server_does_not_know",
    ),
)  # fmt: skip
