"""Faults in what the server does to processes: their words, their signals, their users."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import CGROUP, JOB_USER, LOCALE, SHORTAGE, STDERR, TREE

MUTANTS: Final = (
    Mutation(
        "texts are in the encoding of the server's locale",
        (Edit("spawn.py", 'text.encode("utf-8", "surrogateescape")', "os.fsencode(text)"),),
        LOCALE + "[C]",
    ),
    Mutation(
        "a relative path starts at the server's working directory",
        (
            Edit(
                "spawn.py", "_executable(os.path.join(start, candidate))", "_executable(candidate)"
            ),
        ),
        "tests/impl/test_spawn.py::test_relative_path_starts_at_the_jobs_working_directory[tools]",
    ),
    Mutation(
        "a busy cgroup above the root is not named",
        (
            Edit(
                "hierarchy.py",
                "                error.filename = control  # a write does not name it\n",
                "",
            ),
        ),
        CGROUP + "test_busy_cgroup_is_named_and_explained",
    ),
    Mutation(
        "a set clock is noticed when the certificate would have expired",
        (Edit("gate.py", "min(identity.valid_for_s(), CLOCK_LOOK_S)", "identity.valid_for_s()"),),
        "tests/impl/test_doorkeeper.py::test_lease_is_short_enough_to_notice_that_the_clock_was_set",
    ),
    Mutation(
        "the log waits for the reader of standard error",
        (Edit("stderr.py", "os.set_blocking(write_fd, False)", ""),),
        STDERR + "test_calls_and_the_end_do_not_wait_for_a_stderr_that_is_never_read",
    ),
    Mutation(
        "the end waits for the reader of standard error",
        (Edit("stderr.py", "self._thread.join(DRAIN_MAX_S)", "self._thread.join()"),),
        STDERR + "test_calls_and_the_end_do_not_wait_for_a_stderr_that_is_never_read",
    ),
    Mutation(
        "dropped lines are not reported when there is room",
        (
            Edit(
                "stderr.py",
                "            self._report_dropped()\n            self.release",
                "            self.release",
            ),
        ),
        STDERR + "test_dropped_lines_are_counted_exactly_once_there_is_room",
    ),
    Mutation(
        "a line that cannot be formatted is printed by logging, which waits",
        (
            Edit(
                "stderr.py",
                '            text = f"a log line cannot be formatted: {traceback.format_exc()}"\n',
                "            self.handleError(record)\n            return\n",
            ),
        ),
        STDERR + "test_line_that_cannot_be_formatted_is_written_without_waiting",
    ),
    Mutation(
        "lines that did not fit are written torn",
        (Edit("stderr.py", "self._rest = line[os.write(2, line) :]", "os.write(2, line)"),),
        STDERR + "test_line_that_does_not_fit_at_once_is_completed_before_the_next",
    ),
    Mutation(
        "the forwarder allocates the size of the pipe for each line",
        (
            Edit(
                "stderr.py",
                "        while count := os.readv(self._read_fd, [buffer]):\n"
                "            data = bytes(buffer[:count])\n",
                "        while data := os.read(self._read_fd, len(buffer)):\n",
            ),
        ),
        STDERR + "test_forwarding_a_line_allocates_its_bytes_and_not_the_size_of_the_pipe",
    ),
    Mutation(
        "the log stops at a line that cannot be written",
        (
            Edit(
                "stderr.py",
                "    except OSError:  # closed, EPIPE",
                "    except BlockingIOError:  # closed, EPIPE",
            ),
        ),
        STDERR + "test_reader_of_a_full_disk_gets_what_is_written_later",
    ),
    Mutation(
        "a client's variables reach setpriv",
        (
            Edit(
                "spawn.py",
                "user.wrap(words, requested), inherited",
                "user.wrap(words, requested), environment",
            ),
        ),
        JOB_USER + "test_no_requested_variable_reaches_a_program_with_the_servers_rights",
    ),
    Mutation(
        "a job of another user keeps the server's groups",
        (Edit("job_user.py", 'b"--groups=" + groups', 'b"--keep-groups"'),),
        JOB_USER + "test_job_has_the_users_ids_groups_and_home_and_no_privileges",
    ),
    Mutation(
        "a job of another user may gain privileges",
        (Edit("job_user.py", ' b"--no-new-privs",', ""),),
        JOB_USER + "test_job_has_the_users_ids_groups_and_home_and_no_privileges",
    ),
    Mutation(
        "a job of another user has the server's home",
        (Edit("spawn.py", '({b"HOME": user.home} if user is not None else {})', "{}"),),
        JOB_USER + "test_job_has_the_users_ids_groups_and_home_and_no_privileges",
    ),
    Mutation(
        "a job of another user does not own its output",
        (Edit("spawn.py", "os.fchown(output_fd, user.uid, user.gid)", "pass"),),
        JOB_USER + "test_job_can_open_its_standard_output_again",
    ),
    Mutation(
        "whether jobs can be signalled is not tried",
        (Edit("spawn.py", "signal.pidfd_send_signal(child.pidfd, 0)", "pass"),),
        JOB_USER + "test_server_that_may_not_signal_the_user_is_told_so",
    ),
    Mutation(
        "a stop signals only the main process of a cgroup",
        (
            Edit(
                "tree.py",
                "found = [pid for pid in self._cgroup.processes() if pid not in signalled]",
                "found = [pid for pid in self._cgroup.processes()[:1] if pid not in signalled]",
            ),
        ),
        TREE + "test_each_process_of_the_cgroup_and_below_it_is_terminated_once",
    ),
    Mutation(
        "a stop looks for the processes once",
        (Edit("tree.py", "range(TERMINATE_ROUNDS_MAX)", "range(1)"),),
        TREE + "test_process_forked_meanwhile_is_terminated",
    ),
    Mutation(
        "a stop looks for processes without end",
        (Edit("tree.py", "for _ in range(TERMINATE_ROUNDS_MAX):", "while True:"),),
        TREE + "test_fork_bomb_is_given_up_after_some_rounds",
    ),
    Mutation(
        "a stop signals whatever has the pid by now",
        (Edit("tree.py", 'self._cgroup.path.name in _cgroup_of(pid).split("/")', "pid"),),
        TREE + "test_process_that_reuses_a_pid_is_left_alone",
    ),
    Mutation(
        "a forbidden process ends the stop",
        (
            Edit(
                "tree.py",
                "                        refused = error\n",
                "                        raise\n",
            ),
        ),
        TREE + "test_forbidden_process_keeps_no_other_from_being_terminated",
    ),
    Mutation(
        "a forbidden process is not reported",
        (Edit("tree.py", "        if refused is not None:\n            raise refused\n", ""),),
        TREE + "test_forbidden_process_keeps_no_other_from_being_terminated",
    ),
    Mutation(
        "without a descriptor nobody is signalled",
        (
            Edit(
                "tree.py",
                "            if self.main.pid not in signalled:\n",
                "            if False:\n",
            ),
        ),
        TREE + "test_without_a_descriptor_the_main_process_and_its_group_are_terminated",
    ),
    Mutation(
        "a paused process is not continued",
        (Edit("tree.py", "        _send(send, signal.SIGCONT)\n", "        pass\n"),),
        TREE + "test_real_process_that_is_paused_acts_on_its_sigterm",
    ),
    Mutation(
        "a job has the pid -1 when its own cannot be read",
        (Edit("spawn.py", "    if child.pid < 0:", "    if child.pid < -1:"),),
        SHORTAGE + "test_start_whose_pid_cannot_be_read_is_refused_and_leaves_nothing",
    ),
)
