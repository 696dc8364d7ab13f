"""Faults below gRPC: of the log, of jobs and of their processes."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import (
    CGROUP,
    INHERITS,
    JOB,
    LOG,
    SCARCITY,
    SPAWN,
    WORKER,
)

MUTANTS: Final = (
    # The log.
    Mutation(
        "close wakes nobody",
        (Edit("log.py", "woken = list(self._waiting)", "woken: list[LogReader] = []"),),
        LOG + "test_a_waiting_reader_is_woken_by[close]",
    ),
    Mutation(
        "every write wakes every reader",
        (Edit("log.py", "if reader.wake_at <= self._end_offset]", "]"),),
        LOG + "test_a_reader_is_not_woken_before_the_bytes_it_waits_for",
    ),
    Mutation(
        "a cancel wakes nobody",
        (
            Edit(
                "log.py",
                "self._cancelled.set()\n        self._wakeup.set()",
                "self._cancelled.set()",
            ),
        ),
        LOG + "test_a_waiting_reader_is_woken_by[cancel]",
    ),
    Mutation(
        "a cancel before the wait is lost",
        (Edit("log.py", "if not self._cancelled.is_set():", "if self._wakeup is not None:"),),
        LOG + "test_a_cancel_before_the_wait_is_not_lost",
    ),
    Mutation(
        "a hole is taken for data",
        (
            Edit(
                "log.py",
                "if start >= self._first_offset and len(data) == length:",
                "if len(data) == length:",
            ),
        ),
        LOG + "test_a_reader_that_is_overtaken_while_it_reads_gets_no_hole",
    ),
    Mutation(
        "missed bytes are not counted",
        (
            Edit(
                "log.py",
                "return Chunk(start, data, start - offset), at_end\n            # Overtaken",
                "return Chunk(start, data, 0), at_end\n            # Overtaken",
            ),
        ),
        LOG + "test_a_reader_that_falls_behind_is_told_how_many_bytes_it_missed",
    ),
    Mutation(
        "retention keeps the memory",
        (Edit("log.py", "if dropped >= PUNCH_STEP_BYTES:", "if dropped < 0:"),),
        LOG + "test_retention_gives_the_memory_back",
    ),
    Mutation(
        "the end is announced with output missing",
        (
            Edit(
                "log.py",
                "self._end_offset = end_offset\n            woken = self._take_ready()",
                "self._end_offset = end_offset - 1\n            woken = self._take_ready()",
            ),
        ),
        LOG + "TestLog::runTest",
    ),
    Mutation(
        "what is in memory is lost for want of a descriptor",
        (
            Edit(
                "log.py",
                "            if error.errno not in NO_DESCRIPTOR:\n                raise\n",
                "            raise\n",
            ),
        ),
        LOG + "test_what_is_in_memory_already_stays_there_while_no_descriptor_is_left[None]",
    ),
    # Jobs.
    Mutation(
        "the log is closed before the status is final",
        (
            Edit(
                "job.py",
                "usage = self._tree.last_usage()\n        self._process",
                "usage = self._tree.last_usage()\n        self.log.close()\n        self._process",
            ),
        ),
        JOB + "test_the_status_is_final_before_the_log_is_closed",
    ),
    Mutation(
        "the end is told before the output is drained",
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
        "the end is told before the tree is gone",
        (
            Edit(
                "job.py",
                "not self._output_open and self._tree.is_gone():",
                "not self._output_open:",
            ),
        ),
        JOB + "test_a_job_has_not_ended_while_its_tree_lives",
    ),
    Mutation(
        "a daemon outlives its job",
        (
            Edit(
                "job.py",
                "        self._kill()\n        self._drain",
                "        self._cancel(self._kill_timer)\n        self._drain",
            ),
        ),
        WORKER + "test_a_daemon_of_the_group_dies_with_the_main_process_and_frees_the_output",
    ),
    Mutation(
        "a stopped process sleeps through its stop",
        (Edit("job.py", "            self._process.signal_group(signal.SIGCONT)\n", ""),),
        WORKER + "test_a_stopped_process_can_be_stopped",
    ),
    Mutation(
        "a stop leaves no grace",
        (
            Edit(
                "job.py",
                "self._kill_timer = self._scheduler.call_later(grace_s, self._kill)",
                "self._kill()",
            ),
        ),
        WORKER + "test_a_tree_that_ignores_sigterm_is_killed_after_the_grace",
    ),
    Mutation(
        "a job dies for want of a descriptor for its output",
        (Edit("job.py", "if error.errno in NO_DESCRIPTOR:", "if error.errno == errno.EPERM:"),),
        SCARCITY + "test_output_that_no_descriptor_is_left_for_waits_in_its_pipe_and_the_job_lives",
    ),
    Mutation(
        "a pipe that has to wait is asked again at once",
        (
            Edit(
                "job.py",
                "        self._scheduler.unwatch(self._output_fd)\n        self._output_timer",
                "        self._output_timer",
            ),
        ),
        SCARCITY + "test_output_that_no_descriptor_is_left_for_waits_in_its_pipe_and_the_job_lives",
    ),
    Mutation(
        "output that waits is lost at the end of the drain",
        (Edit("job.py", "            self._take_rest()\n", "            self._close_output()\n"),),
        SCARCITY + "test_a_whole_pipe_that_waits_is_kept_when_no_descriptor_comes_back_in_time",
    ),
    Mutation(
        "a kill that fails is not tried again",
        (
            Edit(
                "job.py",
                "self._kill_timer = self._scheduler.call_later(KILL_RETRY_S, self._kill)",
                "pass",
            ),
        ),
        SCARCITY + "test_a_kill_that_fails_is_tried_again",
    ),
    Mutation(
        "a job whose tree cannot be killed does not end",
        (
            Edit(
                "job.py",
                "        except OSError as error:\n            logger.error(  # noqa",
                "        except KeyError as error:\n            logger.error(  # noqa",
            ),
        ),
        SCARCITY + "test_a_job_ends_although_its_tree_cannot_be_killed[True]",
    ),
    Mutation(
        "a kill opens its file when it is needed",
        (Edit("job.py", "kill_through(self._kill_fd)", "self._cgroup.kill()"),),
        SCARCITY + "test_the_end_of_a_job_takes_no_descriptor",
    ),
    Mutation(
        "an OOM kill is looked for when it is too late to open a file",
        (Edit("job.py", "self._cgroup.usage(self._memory_events_fd)", "self._cgroup.usage()"),),
        SCARCITY + "test_the_end_of_a_job_takes_no_descriptor",
    ),
    Mutation(
        "a lack of descriptors is taken for the kernel's refusal",
        (
            Edit(
                "cgroup.py",
                "                if error.errno in _NO_DESCRIPTOR:\n                    raise Host",
                "                if error.errno == errno.EPERM:\n                    raise Host",
            ),
        ),
        CGROUP + "test_limits_that_no_descriptor_is_left_for_are_no_refusal_of_the_kernel[cpu.max]",
    ),
    Mutation(
        "what cannot be listed is passed over",
        (Edit("cgroup.py", ", onerror=_raise):", "):"),),
        CGROUP + "test_what_cannot_be_listed_is_not_passed_over",
    ),
    Mutation(
        "counters that cannot be read are not told",
        (
            Edit(
                "cgroup.py",
                "        if error.errno in _NO_DESCRIPTOR:\n            logger",
                "        if error.errno == errno.EPERM:\n            logger",
            ),
        ),
        CGROUP + "test_counters_without_a_descriptor_are_0_and_told_but_oom_kills_are_known",
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
        WORKER + "test_a_daemon_of_the_group_dies_with_the_main_process_and_frees_the_output",
    ),
    Mutation(
        "a failed start leaves its pipe",
        (Edit("worker.py", "        os.close(read_fd)\n        raise", "        raise"),),
        WORKER + "test_a_failed_start_leaves_nothing",
    ),
    # Processes.
    Mutation(
        "a child inherits descriptors",
        (
            Edit(
                "spawn.py",
                "            LIBC.posix_spawn_file_actions_addclosefrom_np(actions, 3),\n",
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
        SPAWN + "test_ignored_signals_are_back_to_their_defaults",
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
                "{key: os.environ[key] for key in INHERITED_VARIABLES if key in os.environ}",
                "dict(os.environ)",
            ),
        ),
        INHERITS,
    ),
    Mutation(
        "errors go elsewhere",
        (
            Edit(
                "spawn.py",
                "            LIBC.posix_spawn_file_actions_adddup2(actions, output_fd, 2),\n",
                "",
            ),
        ),
        SPAWN + "test_output_and_errors_keep_their_order",
    ),
)
