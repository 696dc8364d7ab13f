"""Faults of calls: of streams, of who may call, of a server's end, and of the client."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import (
    ADMISSION,
    AUDIT,
    DENY,
    DESERVES,
    FOLLOW,
    IDENTITIES,
    INTEROP,
    POOL,
    SERVICE,
    SHUTDOWN,
    SMALL,
    SPAWN,
    STALLED,
    STREAMS,
)

MUTANTS: Final = (
    # Streams.
    Mutation(
        "a silent stream never asks its lease again",
        (Edit("follow.py", "reader.wait(1, lease_s)", "reader.wait(1)"),),
        FOLLOW + "test_the_lease_is_asked_again_when_it_says_and_its_refusal_ends_the_stream",
    ),
    Mutation(
        "the budget is never given back",
        (
            Edit(
                "follow.py", "                budget.release(granted_bytes)", "                pass"
            ),
        ),
        FOLLOW + "test_the_budget_is_given_back_however_a_stream_ends",
    ),
    Mutation(
        "the budget is not shared",
        (Edit("follow.py", "min(share, left)", "wanted_bytes"),),
        FOLLOW + "test_the_budget_is_never_exceeded_by_more_than_the_least_of_each_stream",
    ),
    Mutation(
        "every write is a message",
        (Edit("follow.py", "if live and hold_s > 0 and", "if live and hold_s > 1e9 and"),),
        FOLLOW + "test_small_output_is_held_for_the_interval_and_close_ends_the_hold",
    ),
    Mutation(
        "lost output is not told",
        (Edit("follow.py", "                    reader.raise_if_output_lost()\n", ""),),
        FOLLOW + "test_lost_output_is_told_after_what_there_is",
    ),
    Mutation(
        "a slot is freed twice",
        (Edit("follow.py", "if not slot.released:", "if slot:"),),
        ADMISSION,
    ),
    Mutation(
        "one stream too many",
        (Edit("follow.py", "if self._taken >= self._maximum:", "if self._taken > self._maximum:"),),
        ADMISSION,
    ),
    Mutation(
        "a stream goes on after its client has gone",
        (
            Edit(
                "service.py",
                "if not context.add_callback(reader.cancel):",
                "if not context.is_active():",
            ),
        ),
        STREAMS + "test_cancelling_a_silent_stream_frees_its_slot_and_its_thread",
    ),
    Mutation(
        "offsets are wrong on the wire",
        (
            Edit(
                "wire.py",
                "parts = [_OFFSET_TAG, _varint(chunk.offset)]",
                "parts = [_OFFSET_TAG, _varint(chunk.offset + 1)]",
            ),
        ),
        SMALL + "test_hand_made_messages_are_what_protobuf_makes",
    ),
    Mutation(
        "no-follow follows",
        (
            Edit(
                "service.py",
                "if request.no_follow else None",
                "if request.no_follow and not reader else None",
            ),
        ),
        STREAMS + "test_no_follow_ends_although_the_job_goes_on_writing",
    ),
    # Identity.
    Mutation(
        "an expired certificate goes on streaming",
        (Edit("identity.py", "if now > self.not_after:", "if now < self.not_before:"),),
        IDENTITIES + "test_25_a_stream_ends_when_its_clients_certificate_expires",
    ),
    Mutation(
        "roles do not count",
        (
            Edit(
                "identity.py",
                "if identity.role not in PERMISSIONS.get(method, frozenset()):",
                "if identity.role is None:",
            ),
        ),
        SERVICE + "test_a_user_may_query_and_stream_and_nothing_else",
    ),
    Mutation(
        "what is not listed is allowed",
        (
            Edit(
                "identity.py",
                "PERMISSIONS.get(method, frozenset())",
                "PERMISSIONS.get(method, frozenset(Role))",
            ),
        ),
        SERVICE + "test_a_method_without_permissions_is_refused_to_an_admin",
    ),
    Mutation(
        "the first of two roles counts",
        (Edit("identity.py", "if len(found) > 1:", "if len(found) > 9:"),),
        DESERVES + "[19-both roles]",
    ),
    Mutation(
        "a weak key will do",
        (Edit("identity.py", "key.key_size >= RSA_MIN_BITS", "key.key_size >= RSA_MIN_BITS // 2"),),
        DESERVES + "[17-RSA of 1024 bits]",
    ),
    Mutation(
        "any certificate is one for clients",
        (
            Edit(
                "identity.py",
                "if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:",
                "if usages is None:",
            ),
        ),
        DESERVES + "[16-no key usage]",
    ),
    Mutation(
        "a role without a text will do",
        (Edit("identity.py", "or not _is_text(value.value):", "or value.value is None:"),),
        DESERVES + "[20-empty text]",
    ),
    Mutation(
        "TLS 1.2 is accepted",
        (
            Edit(
                "tls.py",
                "            context.wrap_socket(raw).close()\n",
                "            context.wrap_socket(raw).close()\n            return\n",
            ),
        ),
        IDENTITIES + "test_a_server_that_accepts_tls_12_does_not_start",
    ),
    Mutation(
        "an exposed key is used",
        (Edit("tls.py", "if mode & 0o077:", "if mode & 0o007:"),),
        SERVICE + "test_a_key_that_others_may_read_is_refused_at_start",
    ),
    Mutation(
        "an internal error tells its text",
        (
            Edit(
                "service.py",
                'text = f"internal error; the server\'s log has it under {reference}"',
                "text = __import__('traceback').format_exc()",
            ),
        ),
        SERVICE + "test_an_unexpected_exception_does_not_leak_its_text",
    ),
    Mutation(
        "an rpc that nobody listed is open",
        (
            Edit(
                "identity.py",
                "PERMISSIONS.get(method, frozenset())",
                "PERMISSIONS.get(method, _EVERYBODY)",
            ),
        ),
        AUDIT + "test_an_rpc_added_tomorrow_is_refused_to_everybody_until_it_is_listed[user]",
    ),
    Mutation(
        "the audit forgets what a call was about",
        (Edit("audit.py", 'f" {self.subject}" if self.subject else ""', '""'),),
        AUDIT + "test_each_call_leaves_one_line_that_says_who_what_and_how_it_ended",
    ),
    Mutation(
        "the audit quotes what a client says as it is",
        (Edit("audit.py", "else repr(text[:_SHOWN_CHARACTERS])", "else text"),),
        AUDIT + "test_each_call_leaves_one_line_that_says_who_what_and_how_it_ended",
    ),
    Mutation(
        "a request that cannot be read leaves no line",
        (Edit("messages.py", "            return Unreadable()\n", "            raise\n"),),
        AUDIT + "test_what_is_no_call_of_ours_leaves_a_line_too",
    ),
    Mutation(
        "a request is waited for before its caller is looked at",
        (
            Edit(
                "service.py",
                "            _admit(call.identity, method, exists=exists)\n            yield call\n",
                "            yield call\n            _admit(call.identity, method, exists=exists)\n",
            ),
        ),
        AUDIT + "test_who_may_not_call_is_refused_before_anything_of_the_request_has_come"
        "[QueryJob]",
    ),
    Mutation(
        "a request is waited for without end",
        (
            Edit(
                "service.py",
                "with self._timers.calling(cut, within_s):",
                "with self._timers.calling(cut, math.inf):",
            ),
        ),
        AUDIT + "test_a_request_that_does_not_come_ends_its_call_and_others_find_a_thread",
    ),
    Mutation(
        "a crowd waits as long as one does",
        (
            Edit(
                "service.py",
                "slot, within_s = None, REQUEST_CROWDED_MAX_S",
                "slot, within_s = None, REQUEST_MAX_S",
            ),
        ),
        AUDIT + "test_a_request_that_does_not_come_ends_its_call_and_others_find_a_thread",
    ),
    Mutation(
        "who does not read is not cut off",
        (
            Edit(
                "service.py",
                "                call.cut = refusal\n                context.cancel()\n",
                "",
            ),
        ),
        STALLED + "[denied]",
    ),
    Mutation(
        "who does not read is cut off late",
        (Edit("service.py", "CUT_AFTER_S: Final = 1.0", "CUT_AFTER_S: Final = 4.0"),),
        STALLED + "[expired]",
    ),
    Mutation(
        "a client that does not read is told nothing in the log",
        (Edit("service.py", "                call.cut = refusal\n", ""),),
        STALLED + "[denied]",
    ),
    Mutation(
        "anybody may watch",
        (
            Edit(
                "identity.py",
                '    "/grpc.health.v1.Health/Check": _EVERYBODY,\n',
                '    "/grpc.health.v1.Health/Check": _EVERYBODY,\n'
                '    "/grpc.health.v1.Health/Watch": _EVERYBODY,\n',
            ),
        ),
        AUDIT + "test_health_is_not_watched_and_reflection_counts_as_a_stream",
    ),
    Mutation(
        "a look for a tail has no slot",
        (
            Edit(
                "service.py",
                "                        responses = behaviour(request, context)\n",
                "                        context.add_callback(slot.release)\n"
                "                        responses = behaviour(request, context)\n",
            ),
        ),
        STREAMS + "test_a_stream_that_looks_for_its_tail_keeps_its_slot_until_its_thread_is_free",
    ),
    Mutation(
        "a reset passes for the end of the requests",
        (
            Edit(
                "messages.py",
                "    yield from requests\n    yield from requests\n",
                "    yield from requests\n",
            ),
        ),
        SMALL + "test_requests_that_a_reset_ends_do_not_pass_for_requests_that_ended",
    ),
    Mutation(
        "the log has another status than the client",
        (Edit("service.py", "call.code = context.code() or call.code", "call.code = call.code"),),
        AUDIT + "test_the_status_in_a_line_is_the_one_that_the_client_got",
    ),
    Mutation(
        "a client makes a status as long as it likes",
        (Edit("service.py", "    if len(whole) > _DETAIL_MAX_BYTES:\n", "    if not whole:\n"),),
        AUDIT + "test_what_a_client_says_makes_neither_a_line_nor_a_status_long",
    ),
    Mutation(
        "timers know no sooner",
        (Edit("timers.py", "if due_at_s < self._wakes_at_s:", "if due_at_s > self._wakes_at_s:"),),
        FOLLOW + "test_a_timer_whose_block_has_ended_does_not_call_and_a_sooner_one_is_not_late",
    ),
    Mutation(
        "a timer that fails ends them all",
        (Edit("timers.py", "    except Exception:\n", "    except KeyError:\n"),),
        FOLLOW + "test_a_timer_that_fails_is_told_and_leaves_the_others",
    ),
    Mutation(
        "a bad deny list denies nobody",
        (
            Edit(
                "deny.py",
                "            level, told = logging.WARNING",
                "            self._serials = frozenset()\n"
                "            level, told = logging.WARNING",
            ),
        ),
        DENY + "test_a_list_that_has_become_bad_lets_nobody_in_who_was_out[gone]",
    ),
    Mutation(
        "strangers can fill the log with bad certificates of ours",
        (Edit("tls.py", "            self._refused = stamp\n", ""),),
        IDENTITIES + "test_26_renewed_files_that_do_not_fit_are_told_once_and_the_old_ones_stay",
    ),
    # The end, and what is lacking.
    Mutation(
        "a reactor gives its descriptor back",
        (
            Edit(
                "reactor.py",
                "        self._epoll.close()\n",
                "        self._epoll.close()\n        os.close(self._wakeup_fd)\n",
            ),
        ),
        SMALL + "test_work_for_a_reactor_that_has_ended_goes_nowhere",
    ),
    Mutation(
        "a thread that the host refuses ends gRPC's own",
        (
            Edit(
                "pool.py",
                "        except RuntimeError as error:\n            if not self._threads:",
                "        except KeyError as error:\n            if not self._threads:",
            ),
        ),
        POOL + "test_calls_wait_for_a_thread_where_the_host_gives_no_more",
    ),
    Mutation(
        "a thread is believed to be idle when it says so",
        (Edit("pool.py", "_NeverIdle()  #", "threading.Semaphore(0)  #"),),
        POOL + "test_a_call_has_a_thread_although_another_thread_told_too_late_that_it_is_busy",
    ),
    Mutation(
        "every call has a thread started",
        (
            Edit(
                "pool.py", "if self._unfinished <= len(self._threads):", "if self._unfinished < 0:"
            ),
        ),
        POOL + "test_a_thread_that_is_free_is_used_before_another_is_started",
    ),
    Mutation(
        "a deny list that could not be read is not tried again",
        (Edit("deny.py", "            self._settled = False  #", "            #"),),
        DENY + "test_a_list_that_could_not_be_read_is_taken_up_when_it_can_be",
    ),
    Mutation(
        "a deny list that was just written is not looked at again",
        (
            Edit(
                "deny.py",
                "if stamp != self._stamp or not self._settled:",
                "if stamp != self._stamp:",
            ),
        ),
        DENY + "test_a_file_changed_again_within_a_tick_of_the_clock_is_taken_up_too",
    ),
    Mutation(
        "jobs that do not end keep the calls",
        (Edit("server.py", "        except TimeoutError:\n", "        except KeyError:\n"),),
        SHUTDOWN + "test_jobs_that_do_not_end_keep_neither_the_calls_nor_the_server",
    ),
    Mutation(
        "a quiet log leaves out the audit",
        (
            Edit(
                "server.py",
                "    audit.setLevel(logging.INFO)",
                "    audit.setLevel(logging.NOTSET)",
            ),
        ),
        SHUTDOWN + "test_a_quiet_server_tells_of_every_call_all_the_same",
    ),
    Mutation(
        "an environment's values are told",
        (Edit("spawn.py", "{key.partition('=')[0]!r}", "{key!r}"),),
        SPAWN + "test_a_value_that_stands_in_a_key_is_not_told",
    ),
    Mutation(
        "what a job forked at once stays protected from the OOM killer",
        (
            Edit(
                "oom_score.py",
                "    if not _adjust(pid) or cgroup is None:\n",
                "    if _adjust(pid) or True:\n",
            ),
        ),
        "tests/impl/test_oom_score.py::test_what_a_job_forked_before_it_was_adjusted_is_adjusted_too",
    ),
    # The client.
    Mutation(
        "an offset that the server ignores is believed",
        (
            Edit(
                "client.py",
                "skip_bytes = _make_up_for(start, follow=follow)",
                "_make_up_for(start, follow=follow)",
            ),
        ),
        INTEROP + "test_our_client_makes_up_for_an_offset_that_the_server_does_not_know",
    ),
)
