"""Servers that start, stop or report jobs wrongly."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

LIFECYCLE: Final = "lifecycle."
STOP: Final = "status = self._worker.stop(request.job_id, grace_s, lambda: not context.is_active())"

MUTANTS: Final = (
    Mutation(
        "reports only seven bits of an exit code",
        (
            Edit(
                "spawn.py",
                "ExitStatus(exit_code=result.si_status, signal=0)",
                "ExitStatus(exit_code=result.si_status & 0x7F, signal=0)",
            ),
        ),
        LIFECYCLE + "exit-codes",
    ),
    Mutation(
        "reports only the low five bits of a signal",
        (
            Edit(
                "spawn.py",
                "ExitStatus(exit_code=0, signal=result.si_status)",
                "ExitStatus(exit_code=0, signal=result.si_status & 0x1F)",
            ),
        ),
        LIFECYCLE + "signals",
    ),
    Mutation(
        "reports an end with a core dump as an exit",
        (
            Edit(
                "spawn.py",
                "if result.si_code == os.CLD_EXITED:",
                "if result.si_code != os.CLD_KILLED:",
            ),
        ),
        LIFECYCLE + "signals",
    ),
    Mutation(
        "leaks a pipe when a start fails",
        (
            Edit(
                "worker.py",
                "    except BaseException:\n        os.close(read_fd)\n        raise\n",
                "    except BaseException:\n        raise\n",
            ),
        ),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "answers NOT_FOUND for a file that exists and cannot be run",
        (
            Edit(
                "gate.py",
                "errors.CannotExecuteError: grpc.StatusCode.FAILED_PRECONDITION",
                "errors.CannotExecuteError: grpc.StatusCode.NOT_FOUND",
            ),
        ),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "gives no reason why a program cannot be run",
        (
            Edit(
                "spawn.py",
                "        raise CannotExecuteError(text)\n",
                '        raise CannotExecuteError("it cannot be run")\n',
            ),
        ),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "answers UNKNOWN for a missing program",
        (
            Edit(
                "gate.py",
                "errors.CommandNotFoundError: grpc.StatusCode.NOT_FOUND",
                "errors.CommandNotFoundError: grpc.StatusCode.UNKNOWN",
            ),
        ),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "accepts a NUL in commands and arguments",
        (Edit("spawn.py", '        if "\\0" in text:', '        if "\\0\\0" in text:'),),
        LIFECYCLE + "bad-commands",
    ),
    Mutation(
        "starts jobs in its own working directory",
        (
            Edit(
                "spawn.py",
                "        if working_directory is not None:\n            directory = _encoded",
                "        if working_directory is None:\n            directory = _encoded",
            ),
            Edit("spawn.py", "_encoded(working_directory)", "_encoded(working_directory or '.')"),
        ),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "accepts any key for an environment variable",
        (Edit("spawn.py", 'if not key or "=" in key:', 'if key == "=":'),),
        LIFECYCLE + "surroundings",
    ),
    Mutation(
        "expands variables in arguments",
        (
            Edit(
                "spawn.py",
                "_encoded(word) for word in (command.name",
                "os.path.expandvars(_encoded(word)) for word in (command.name",
            ),
        ),
        LIFECYCLE + "literal",
    ),
    Mutation(
        "answers UNKNOWN for an unknown job",
        (
            Edit(
                "gate.py",
                "errors.JobNotFoundError: grpc.StatusCode.NOT_FOUND",
                "errors.JobNotFoundError: grpc.StatusCode.UNKNOWN",
            ),
        ),
        LIFECYCLE + "ids",
        ("identity.certificates", "identity.strangers"),
    ),
    Mutation(
        "answers NOT_FOUND for a malformed id",
        (
            Edit(
                "worker.py",
                'raise InvalidRequestError(\n                f"job_id is',
                'raise JobNotFoundError(\n                f"job_id is',
            ),
        ),
        LIFECYCLE + "ids",
    ),
    Mutation(
        "assigns guessable ids",
        (Edit("worker.py", "job_id = str(uuid.uuid4())", "job_id = str(uuid.uuid1())"),),
        LIFECYCLE + "ids",
    ),
    Mutation(
        "gives jobs its own environment",
        (
            Edit(
                "spawn.py",
                "{key: os.environb[key] for key in INHERITED_VARIABLES if key in os.environb}",
                "dict(os.environb)",
            ),
        ),
        LIFECYCLE + "inheritance",
    ),
    Mutation(
        "starts jobs with signals ignored",
        (
            Edit(
                "spawn.py",
                "flags = _POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK",
                "flags = _POSIX_SPAWN_SETSIGMASK",
            ),
        ),
        LIFECYCLE + "inheritance",
    ),
    Mutation(
        "starts jobs with its own signal mask",
        (
            Edit(
                "spawn.py",
                "_POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK",
                "_POSIX_SPAWN_SETSIGDEF",
            ),
        ),
        LIFECYCLE + "inheritance",
    ),
    Mutation(
        "leaks inherited descriptors into jobs",
        (
            Edit(
                "spawn.py",
                "            LIBC_AT_ONCE.posix_spawn_file_actions_addclosefrom_np(actions, 3),\n",
                "",
            ),
        ),
        LIFECYCLE + "inheritance",
    ),
    Mutation(
        "makes itself the OOM killer's first victim, before its jobs",
        (Edit("oom_score.py", "if int(os.read(fd, 16)) >= 0:", 'if os.read(fd, 16) == b"0\\n":'),),
        LIFECYCLE + "oom-score",
    ),
    Mutation(
        "keeps jobs in its own session",
        (
            Edit(
                "spawn.py",
                "_POSIX_SPAWN_SETSIGMASK | _POSIX_SPAWN_SETSID",
                "_POSIX_SPAWN_SETSIGMASK",
            ),
        ),
        LIFECYCLE + "inheritance",
        ("identity.roles",),  # that check stops a job, which has no process group of its own then
    ),
    Mutation(
        "leaves an ended job's children alive",
        (
            Edit(
                "job.py",
                "            self._tree.kill()\n",
                "            self._exit is None and self._tree.kill()\n",
            ),
        ),
        LIFECYCLE + "background",
    ),
    Mutation(
        "ends each job two seconds after its main process",
        (
            Edit(
                "job.py",
                "if self._exit is not None and not self._output_open and self._tree.is_gone():",
                "if self._exit is not None and self._status.ended_at_s is not None:",
            ),
        ),
        LIFECYCLE + "background",
    ),
    Mutation(
        "waits for an ended job's children before it kills them",
        (
            Edit(
                "job.py",
                "        if self._grace_timer is None:\n            self._kill()\n",
                "",
            ),
        ),
        LIFECYCLE + "background",
    ),
    Mutation(
        "reaps a job before its output is read",
        (
            Edit(
                "job.py",
                "        self._tree.watch(self._scheduler, self._finish_if_complete)\n",
                "        self._tree.watch(self._scheduler, self._finish_if_complete)\n"
                "        if self._output_open:\n            self._close_output()\n",
            ),
            Edit("job.py", "MAX_BYTES: Final = 1024 * 1024", "MAX_BYTES: Final = 4096"),
        ),
        LIFECYCLE + "short-jobs",
        ("streams.after-end",),  # its job's last burst may be lost too
    ),
    Mutation(
        "never closes a job's pidfd",
        (
            Edit(
                "spawn.py",
                "        finally:\n            os.close(self.pidfd)\n",
                "        finally:\n            pass\n",
            ),
        ),
        LIFECYCLE + "short-jobs",
    ),
    Mutation(
        "never reaps a job",
        (
            Edit(
                "spawn.py",
                "            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)\n        finally:\n",
                "            pass\n        finally:\n",
            ),
        ),
        LIFECYCLE + "short-jobs",
    ),
    Mutation(
        "kills 15 s after the end of the grace period",
        (
            Edit(
                "job.py",
                "self._grace_timer = self._scheduler.call_later(grace_s, self._kill)",
                "self._grace_timer = self._scheduler.call_later(grace_s + 15, self._kill)",
            ),
        ),
        LIFECYCLE + "escalates",
    ),
    Mutation(
        "kills without a grace period",
        (
            Edit(
                "job.py",
                "self._grace_timer = self._scheduler.call_later(grace_s, self._kill)",
                "self._kill()",
            ),
        ),
        LIFECYCLE + "last-words",
    ),
    Mutation(
        "sends a job another SIGTERM with every stop",
        (
            Edit(
                "job.py",
                "self._grace_timer.due_s <= time.monotonic() + grace_s:\n",
                "self._grace_timer.due_s <= time.monotonic() + grace_s:\n"
                "            self._terminate()\n",
            ),
        ),
        LIFECYCLE + "concurrent-stops",
    ),
    Mutation(
        "rewrites an ended job's status when it is stopped",
        (
            Edit(
                "job.py",
                "        if self._status.ended_at_s is not None:\n            return\n"
                "        if grace_s <= 0:",
                "        if self._status.ended_at_s is not None:\n"
                "            self._status = replace(self._status, state=State.SIGNALED, signal=15)\n"
                "            return\n        if grace_s <= 0:",
            ),
        ),
        LIFECYCLE + "stop-race",
    ),
    Mutation(
        "answers every stop with an error",
        (Edit("service.py", STOP, "raise RuntimeError"),),
        LIFECYCLE + "stop-twice",
        ("identity.roles",),
    ),
    Mutation(
        "says that it stopped a job and lets it run",
        (Edit("service.py", STOP, "status = self._worker.query(request.job_id)"),),
        LIFECYCLE + "stop-twice",
        ("identity.roles",),  # it deletes the job that it stopped
    ),
    Mutation(
        "answers NOT_FOUND when an ended job is stopped",
        (
            Edit(
                "worker.py",
                "        self._reactor.call_soon(lambda: job.request_stop(grace_s))\n",
                '        if job.wait_ended(0):\n            raise JobNotFoundError("it has ended")\n'
                "        self._reactor.call_soon(lambda: job.request_stop(grace_s))\n",
            ),
        ),
        LIFECYCLE + "stop-twice",
    ),
    Mutation(
        "cannot stop a job paused with SIGSTOP",
        (
            Edit("tree.py", "        _send(send, signal.SIGCONT)\n", "        pass\n"),
            Edit(
                "job.py",
                "self._grace_timer = self._scheduler.call_later(grace_s, self._kill)",
                "self._grace_timer = self._scheduler.call_later(grace_s + 90, self._kill)",
            ),
        ),
        LIFECYCLE + "stopped-job",
    ),
    Mutation(
        "stops the main process only",
        (
            Edit(
                "linux.py",
                "_PIDFD_SIGNAL_PROCESS_GROUP: Final = 1 << 2",
                "_PIDFD_SIGNAL_PROCESS_GROUP: Final = 0",
            ),
        ),
        LIFECYCLE + "stop-tree",
    ),
    Mutation(
        "leaves its jobs running when it gets SIGTERM",
        (
            Edit(
                "server.py", "            self.worker.close(grace_s)\n", "            del grace_s\n"
            ),
        ),
        LIFECYCLE + "shutdown",
    ),
    Mutation(
        "keeps SIGCHLD ignored if it inherits that",
        (Edit("server.py", "    signal.signal(signal.SIGCHLD, signal.SIG_DFL)\n", ""),),
        LIFECYCLE + "inherited-signals",
    ),
    Mutation(
        "ends at a SIGHUP that it inherits as ignored",
        (
            Edit(
                "server.py",
                "if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN",
                "if number in signal.Signals",
            ),
        ),
        LIFECYCLE + "inherited-signals",
    ),
    Mutation(
        "dies of the signals of a terminal, and leaves its jobs running",
        (Edit("server.py", ", signal.SIGHUP, signal.SIGQUIT)\n", ")\n"),),
        LIFECYCLE + "terminal-signals",
    ),
    Mutation(
        "reports the start of a job as its end",
        (Edit("job.py", "ended_at_s=self._exited_at_s,", "ended_at_s=self._status.started_at_s,"),),
        LIFECYCLE + "times",
    ),
    Mutation(
        "lists a job without its arguments",
        (Edit("service.py", "        command_args=status.command.arguments,\n", ""),),
        LIFECYCLE + "record",
    ),
    Mutation(
        "answers a stop that succeeded without saying so",
        (Edit("service.py", "success=True", "success=False"),),
        LIFECYCLE + "record",
    ),
)
