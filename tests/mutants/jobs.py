"""Faults below gRPC: of jobs and of their processes."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import CGROUP, INHERITS, JOB, REACTOR, SHORTAGE, SPAWN, WORKER

MUTANTS: Final = (
    # Jobs.
    Mutation(
        "the log is closed before the status is final",
        (
            Edit(
                "job.py",
                "        usage = self._attempt(self._tree.last_usage)\n",
                "        usage = self._attempt(self._tree.last_usage)\n        self.log.close()\n",
            ),
        ),
        JOB + "test_status_is_final_before_the_log_is_closed",
    ),
    Mutation(
        "the final status precedes the end of the output",
        (
            Edit(
                "job.py",
                "if self._exit is not None and not self._output_open and self._tree.is_gone():",
                "if self._exit is not None and self._tree.is_gone():",
            ),
        ),
        JOB + "TestJob::runTest",
    ),
    Mutation(
        "the final status precedes the end of the tree",
        (
            Edit(
                "job.py",
                "not self._output_open and self._tree.is_gone():",
                "not self._output_open:",
            ),
        ),
        JOB + "test_job_is_running_until_its_tree_is_gone",
    ),
    Mutation(
        "a daemon outlives its job",
        (
            Edit(
                "job.py",
                "            self._tree.kill()\n",
                "            self._exit is None and self._tree.kill()\n",
            ),
        ),
        WORKER + "test_daemon_in_the_group_is_killed_with_the_main_process",
    ),
    Mutation(
        "a paused process is not continued by a stop",
        (Edit("tree.py", "        _send(send, signal.SIGCONT)\n", "        pass\n"),),
        WORKER + "test_job_paused_with_sigstop_can_be_stopped",
    ),
    Mutation(
        "a stop leaves no grace",
        (
            Edit(
                "job.py",
                "self._grace_timer = self._scheduler.call_later(grace_s, self._kill)",
                "self._kill()",
            ),
        ),
        WORKER + "test_tree_that_ignores_sigterm_is_killed_after_the_grace",
    ),
    Mutation(
        "a stop kills what the main process leaves within its grace",
        (
            Edit(
                "job.py",
                "        if self._grace_timer is None:\n            self._kill()\n",
                "        self._kill()\n",
            ),
        ),
        JOB + "test_grace_of_a_stop_is_the_whole_trees_not_the_main_processs",
    ),
    Mutation(
        "an outside process holds a stopped job's output open for ever",
        (
            Edit(
                "job.py",
                "if self._exit is not None and self._drain_timer is None:",
                "if self._exit is not None and not self._killed:",
            ),
        ),
        JOB + "test_end_of_the_grace_kills_what_the_main_process_left_and_begins_the_drain",
    ),
    Mutation(
        "a group is not killed before its leader is reaped",
        (Edit("job.py", "            if not self._killed:\n", "            if self._killed:\n"),),
        JOB + "test_grace_of_a_stop_is_the_whole_trees_not_the_main_processs",
    ),
    Mutation(
        "a process that may not be signalled ends the stop",
        (
            Edit(
                "job.py",
                "            self._tree.terminate()\n        except OSError as error:",
                "            self._tree.terminate()\n        except KeyError as error:",
            ),
        ),
        JOB + "test_tree_that_may_not_be_signalled_is_killed_at_the_end_of_the_grace",
    ),
    Mutation(
        "output is not counted",
        (Edit("job.py", "        self._memory.written(self.log)\n", ""),),
        JOB + "test_output_is_counted_while_it_is_written_and_gives_way_once_its_job_has_ended",
    ),
    Mutation(
        "the ends of jobs are not counted",
        (Edit("job.py", "            self._memory.ended(self.log)\n", ""),),
        JOB + "test_output_is_counted_while_it_is_written_and_gives_way_once_its_job_has_ended",
    ),
    Mutation(
        "only a part of the pipe is read at the end of the drain",
        (Edit("job.py", "while left_bytes > 0 and (count", "if left_bytes > 0 and (count"),),
        SHORTAGE + "test_full_pipe_is_kept_at_the_end_of_the_drain",
    ),
    Mutation(
        "a failed kill is not retried",
        (
            Edit(
                "job.py",
                "self._kill_timer = self._scheduler.call_later(KILL_RETRY_S, self._kill)",
                "pass",
            ),
        ),
        SHORTAGE + "test_failed_kill_is_retried_until_it_succeeds",
    ),
    Mutation(
        "a job whose tree cannot be killed does not end",
        (
            Edit(
                "job.py",
                "        except OSError as error:\n            self.kill_failure",
                "        except KeyError as error:\n            self.kill_failure",
            ),
            # Else the failed callback is reported, and ends the job, too.
            Edit("reactor.py", "self._report(error)", "del error"),
        ),
        SHORTAGE + "test_job_ends_although_its_tree_cannot_be_killed[True]",
    ),
    Mutation(
        "a kill opens its file only then",
        (Edit("tree.py", "kill_through(self._kill_fd)", "self._cgroup.kill()"),),
        SHORTAGE + "test_ending_a_job_opens_no_descriptor",
    ),
    Mutation(
        "OOM kills are read by opening a file at the job's end",
        (Edit("tree.py", "self._cgroup.usage(self._memory_events_fd)", "self._cgroup.usage()"),),
        SHORTAGE + "test_ending_a_job_opens_no_descriptor",
    ),
    Mutation(
        "a lack of descriptors counts as a refused limit",
        (
            Edit(
                "hierarchy.py",
                "                if error.errno in NO_DESCRIPTOR:\n                    raise Host",
                "                if error.errno == errno.EPERM:\n                    raise Host",
            ),
        ),
        CGROUP
        + "test_create_without_a_descriptor_is_an_exhausted_host_not_a_refused_limit[cpu.max]",
    ),
    Mutation(
        "a directory that cannot be listed is skipped",
        (Edit("cgroup.py", ", onerror=_raise):", "):"),),
        CGROUP + "test_remove_fails_if_the_directories_inside_cannot_be_listed",
    ),
    Mutation(
        "unreadable counters are not logged",
        (
            Edit(
                "cgroup.py",
                "        if error.errno in NO_DESCRIPTOR:\n            logger",
                "        if error.errno == errno.EPERM:\n            logger",
            ),
        ),
        CGROUP + "test_usage_without_a_descriptor_is_0_and_logged_except_for_oom_kills",
    ),
    Mutation(
        "a descriptor whose callback fails stays watched",
        (
            Edit(
                "reactor.py",
                "if callback is not None and not self._call(callback):",
                "if callback is not None and self._call(callback) is None:",
            ),
        ),
        "tests/impl/test_reactor.py::test_descriptor_whose_callback_fails_is_not_watched_any_more",
    ),
    Mutation(
        "a timer of more than 24 days ends the jobs' thread",
        (Edit("reactor.py", "_POLL_MAX_S: Final = 24 * 3600.0", "_POLL_MAX_S: Final = 1e10"),),
        "tests/impl/test_reactor.py::test_timer_of_ten_years_leaves_the_thread_running",
    ),
    Mutation(
        "a job whose callback fails runs for ever",
        (Edit("job.py", "        self._end_unwatched()\n", ""),),
        JOB + "test_job_whose_callback_fails_is_killed_and_ends[False]",
    ),
    Mutation(
        "a job that cannot be watched is left running",
        (
            Edit(
                "worker.py",
                "            self._reactor.call_soon(partial(job.abandon, error))\n",
                "",
            ),
        ),
        WORKER + "test_start_that_cannot_be_watched_is_refused_and_leaves_nothing[0]",
    ),
    Mutation(
        "a start waits for the jobs' thread",
        (
            Edit(
                "worker.py",
                "            failure = job.begin()\n",
                "            begun = threading.Event()\n"
                "            self._reactor.call_soon(begun.set)\n"
                "            begun.wait(15.0)\n"
                "            failure = job.begin()\n",
            ),
        ),
        WORKER + "test_start_does_not_wait_for_the_jobs_thread",
    ),
    Mutation(
        "an event that fails while a job begins closes what is still to be watched",
        (Edit("job.py", "return  # `begin` finds the error\n", "pass\n"),),
        JOB + "test_event_that_fails_while_the_job_begins_abandons_it_afterwards",
    ),
    Mutation(
        "a job whose event failed while it began runs on",
        (
            Edit(
                "worker.py",
                "            self._reactor.call_soon(partial(job.abandon, failure))\n",
                "            pass\n",
            ),
        ),
        WORKER + "test_job_whose_event_fails_while_it_begins_is_killed_and_ends",
    ),
    Mutation(
        "a descriptor that cannot be watched counts as watched",
        (
            Edit(
                "reactor.py",
                "            self._epoll.register(fd, events)\n"
                "            self._callbacks[fd] = callback\n",
                "            self._callbacks[fd] = callback\n"
                "            self._epoll.register(fd, events)\n",
            ),
        ),
        REACTOR + "test_descriptor_that_cannot_be_watched_is_not_watched",
    ),
    Mutation(
        "only the leader is killed",
        (
            Edit(
                "linux.py",
                "_PIDFD_SIGNAL_PROCESS_GROUP: Final = 1 << 2",
                "_PIDFD_SIGNAL_PROCESS_GROUP: Final = 0",
            ),
        ),
        WORKER + "test_daemon_in_the_group_is_killed_with_the_main_process",
    ),
    Mutation(
        "a failed start leaves its pipe",
        (Edit("worker.py", "        os.close(read_fd)\n        raise", "        raise"),),
        WORKER + "test_failed_start_leaves_no_descriptor_and_no_job",
    ),
    # Processes.
    Mutation(
        "a child inherits descriptors",
        (
            Edit(
                "spawn.py",
                "            LIBC_AT_ONCE.posix_spawn_file_actions_addclosefrom_np(actions, 3),\n",
                "",
            ),
        ),
        INHERITS,
    ),
    Mutation(
        "a child inherits blocked signals",
        (
            Edit(
                "spawn.py",
                "_POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK |",
                "_POSIX_SPAWN_SETSIGDEF |",
            ),
        ),
        INHERITS,
    ),
    Mutation(
        "a child inherits ignored signals",
        (
            Edit(
                "spawn.py",
                "_POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK |",
                "_POSIX_SPAWN_SETSIGMASK |",
            ),
        ),
        SPAWN + "test_child_has_no_blocked_or_ignored_signals",
    ),
    Mutation(
        "a child stays in the server's session",
        (
            Edit(
                "spawn.py",
                "_POSIX_SPAWN_SETSIGMASK | _POSIX_SPAWN_SETSID",
                "_POSIX_SPAWN_SETSIGMASK",
            ),
        ),
        INHERITS,
    ),
    Mutation(
        "a child inherits the server's environment",
        (
            Edit(
                "spawn.py",
                "{key: os.environb[key] for key in INHERITED_VARIABLES if key in os.environb}",
                "dict(os.environb)",
            ),
        ),
        INHERITS,
    ),
    Mutation(
        "standard error is not captured",
        (
            Edit(
                "spawn.py",
                "            LIBC_AT_ONCE.posix_spawn_file_actions_adddup2(actions, output_fd, 2),\n",
                "",
            ),
        ),
        SPAWN + "test_output_and_errors_keep_their_order",
    ),
)
