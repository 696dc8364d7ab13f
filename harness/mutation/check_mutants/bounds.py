"""Servers without a bound: on what jobs leave behind, on messages, threads, time, or on a stop."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

DROP_ONE: Final = "        if self._ended:\n            log = next(iter(self._ended))\n"
ARMED: Final = (
    "        # Armed before anything that can fail: then the tree is killed whatever happens.\n"
)

_JOBS: Final = (
    Mutation(
        "keeps a descriptor for each log that outgrows its first segment",
        (
            Edit(
                "log.py",
                "            last = _Segment(self._end_offset, size_bytes)\n",
                "            last = _Segment(self._end_offset, size_bytes)\n"
                "            if len(self._segments) == 1:\n"
                '                os.memfd_create("job-output")\n',
            ),
        ),
        "lifecycle.ended-descriptors",
    ),
    Mutation(
        "kills a stopped job's tree when its main process ends",
        (
            Edit(
                "job.py",
                "        if self._grace_timer is None:\n            self._kill()\n",
                "        self._kill()\n",
            ),
        ),
        "lifecycle.tree-grace",
    ),
    Mutation(
        "sends SIGTERM to paused processes and does not continue them",
        (Edit("tree.py", "        _send(send, signal.SIGCONT)\n", "        pass\n"),),
        "lifecycle.tree-grace",
    ),
    Mutation(
        "forgets the end of the grace period when the main process ends before it",
        (
            Edit(
                "job.py",
                "        if self._grace_timer is None:\n            self._kill()\n",
                "        if self._grace_timer is None:\n            self._kill()\n"
                "        self._cancel(self._grace_timer)\n",
            ),
        ),
        "lifecycle.tree-escalates",
    ),
    Mutation(
        "restarts the grace period with every stop",
        (
            Edit(
                "job.py",
                "if self._grace_timer is not None and self._grace_timer.due_s <=",
                "if self._grace_timer is not None and 0 * self._grace_timer.due_s >=",
            ),
        ),
        "lifecycle.second-grace",
    ),
    Mutation(
        "ignores a second stop while the first one waits",
        (
            Edit(
                "job.py",
                "if self._grace_timer is not None and self._grace_timer.due_s <=",
                "if self._grace_timer is not None and 0 * self._grace_timer.due_s <=",
            ),
        ),
        "lifecycle.second-grace",
    ),
    Mutation(
        "lets users delete jobs",
        (
            Edit(
                "identity.py",
                '"/jobworker.v1.JobWorker/DeleteJob": _ADMINS',
                '"/jobworker.v1.JobWorker/DeleteJob": _ADMINS | {Role.USER}',
            ),
        ),
        "lifecycle.delete",
        ("identity.roles",),
    ),
    Mutation(
        "deletes jobs that run",
        (
            Edit(
                "worker.py",
                "        if status.state is State.RUNNING:\n            raise JobRunningError",
                "        if status is None:\n            raise JobRunningError",
            ),
        ),
        "lifecycle.delete",
    ),
    Mutation(
        "keeps the output of a deleted job in memory",
        (
            Edit(
                "worker.py",
                "        if job is not None:\n            self._reactor.call_soon(partial(",
                "        if job is not None:\n            self._reactor.call_soon(lambda: partial(",
            ),
        ),
        "lifecycle.delete",
    ),
    Mutation(
        "does not report the missed bytes of a log that holds no more",
        (
            Edit(
                "log.py",
                'return Chunk(start, memoryview(b""), start - offset)',
                'return Chunk(start, memoryview(b""))',
            ),
        ),
        "lifecycle.delete",
    ),
    Mutation(
        "forgets an ended job at once if it has a time to live",
        (
            Edit(
                "worker.py",
                "                self._reactor.call_later(ttl_s, self._expire)\n",
                "                self._reactor.call_later(0, self._expire)\n",
            ),
        ),
        "lifecycle.job-ttl",
    ),
    Mutation(
        "forgets only the first of its ended jobs",
        (
            Edit(
                "worker.py",
                "        if self._expiring:\n            wait_s",
                "        if len(self._expiring) > 1:\n            wait_s",
            ),
        ),
        "lifecycle.job-ttl",
    ),
    Mutation(
        "waits until its standard error takes what it logs",
        (Edit("stderr.py", "os.set_blocking(write_fd, False)", "os.set_blocking(write_fd, True)"),),
        "lifecycle.unread-stderr",
    ),
    Mutation(
        "waits at its end until its standard error is read",
        (Edit("stderr.py", "self._thread.join(DRAIN_MAX_S)", "self._thread.join()"),),
        "lifecycle.unread-stderr",
    ),
    Mutation(
        "encodes arguments as its locale does",
        (Edit("spawn.py", 'text.encode("utf-8", "surrogateescape")', "os.fsencode(text)"),),
        "lifecycle.locale",
    ),
)

_SETTINGS: Final = (
    Mutation(
        "accepts a grace period longer than any that a stop may have",
        (Edit("config.py", "_duration(0, _STOP_GRACE_MAX_S), 10.0", "_duration(0, 1e6), 10.0"),),
        "lifecycle.settings",
    ),
    Mutation(
        "does not name the value that it refuses",
        (Edit("config.py", "{source} is {_shown(value)};", "{source} is wrong;"),),
        "lifecycle.settings",
    ),
)

_LISTS: Final = (
    Mutation(
        "puts jobs of any size on one page",
        (
            Edit(
                "service.py",
                "            if full or (page.jobs and page_bytes > _PAGE_MAX_BYTES):\n",
                "            if full:\n",
            ),
        ),
        "lifecycle.list-large",
    ),
    Mutation(
        "repeats the last job of a page on the next one",
        (Edit("worker.py", "jobs[bisect_right(jobs, after", "jobs[bisect_left(jobs, after"),),
        "lifecycle.pages",
    ),
    Mutation(
        "counts pages by position, so that a deletion skips a job",
        (
            Edit(
                "service.py",
                "            last_number = job.number\n",
                "            last_number = (\n"
                "                sum(1 for _ in self._worker.list_jobs(newest_first=True))\n"
                "                - len(page.jobs) if request.newest_first else job.number\n"
                "            )\n",
            ),
        ),
        "lifecycle.pages",
    ),
    Mutation(
        "lists the oldest jobs when the newest are wanted",
        (
            Edit(
                "worker.py",
                "            jobs = jobs[:end][::-1]\n",
                "            jobs = jobs[:end]\n",
            ),
        ),
        "lifecycle.pages",
    ),
    Mutation(
        "lists jobs of every status when one is wanted",
        (
            Edit(
                "worker.py",
                "            if state is None or status.state is state:\n",
                "            if state is None or status:\n",
            ),
        ),
        "lifecycle.pages",
    ),
)

_OUTPUT: Final = (
    Mutation(
        "does not bound the output of all jobs together",
        (
            Edit(
                "output_memory.py",
                "while self._total_bytes > self._limit_bytes:",
                "while self._total_bytes < 0:",
            ),
        ),
        "streams.output-memory",
    ),
    Mutation(
        "drops the output of the job that ended last before that of earlier ones",
        (
            Edit(
                "output_memory.py",
                DROP_ONE,
                DROP_ONE.replace("next(iter(self._ended))", "next(reversed(self._ended))"),
            ),
        ),
        "streams.output-memory",
    ),
    Mutation(
        "drops output of running jobs before that of ended ones",
        (
            Edit(
                "output_memory.py",
                DROP_ONE,
                DROP_ONE.replace("if self._ended:", "if not any(self._running.values()):"),
            ),
        ),
        "streams.output-memory",
    ),
    Mutation(
        "drops output of the smallest of its running jobs",
        (
            Edit(
                "output_memory.py",
                "log = max(self._running, key=self._running.__getitem__)",
                "log = min(filter(self._running.get, self._running), key=self._running.get)",
            ),
        ),
        "streams.output-memory",
    ),
    Mutation(
        "lists jobs as if all of their output were kept",
        (
            Edit(
                "service.py",
                "        log_first_offset=extent.first_offset,\n    )\n",
                "        log_first_offset=0,\n    )\n",
            ),
        ),
        "streams.output-memory",
    ),
    Mutation(
        "holds output back until its retention drops it",
        (Edit("server.py", "min(flush_bytes, settings.log_retention // 2)", "flush_bytes"),),
        "streams.held-output",
    ),
    Mutation(
        "searches a tail to the end for a client that has gone",
        (
            Edit("log.py", " and not cancelled.is_set():", ":"),
            # It would find what the others have counted.
            Edit("log.py", "segment.newlines = newlines", "pass"),
        ),
        "streams.tail-cancel",
    ),
)

_CROWDS: Final = (
    Mutation(
        "keeps the thread of a stop whose client has gone",
        (Edit("service.py", "lambda: not context.is_active())", "lambda: False)"),),
        "abuse.abandoned-stops",
    ),
    Mutation(
        "lets stops take the threads of all other calls",
        (
            Edit(
                "gate.py",
                "kind = self._stops if method == _STOP else self._others",
                "kind = self._others",
            ),
        ),
        "abuse.crowds",
    ),
    Mutation(
        "sends output in messages of 8 MiB",
        (
            Edit(
                "log.py",
                "SEGMENT_MAX_BYTES: Final = 1024 * 1024",
                "SEGMENT_MAX_BYTES: Final = 8 * 1024 * 1024",
            ),
            Edit(
                "server.py",
                "        message_max_bytes=settings.message_size,\n",
                "        message_max_bytes=8 << 20,\n",
            ),
        ),
        "streams.messages",
    ),
    Mutation(
        "does not limit calls other than stops and streams",
        (
            Edit(
                "gate.py",
                'Admission(unary_threads, "other calls run (--unary-threads)")',
                "Admission(1 << 20)",
            ),
        ),
        "lifecycle.busy",
    ),
    Mutation(
        "starts jobs while it shuts down",
        (
            Edit(
                "worker.py",
                "            if self._closing:\n                raise ShuttingDownError(",
                "            if self._closing and self._starting < 0:\n"
                "                raise ShuttingDownError(",
            ),
        ),
        "lifecycle.shutdown",
    ),
)

MUTANTS: Final = (*_JOBS, *_SETTINGS, *_LISTS, *_OUTPUT, *_CROWDS)

# Their checks need a cgroup v2.
GUEST_MUTANTS: Final = (
    Mutation(
        "sends every process of a job SIGTERM again and again",
        (
            Edit(
                "tree.py",
                "[pid for pid in self._cgroup.processes() if pid not in signalled]",
                "list(self._cgroup.processes())",
            ),
        ),
        "limits.tree-grace",
    ),
    Mutation(
        "sends SIGTERM to the process group and not to the whole cgroup",
        (
            Edit(
                "tree.py",
                "        signalled: set[int] = set()\n",
                "        return _terminate_group(self.main)\n        signalled: set[int] = set()\n",
            ),
        ),
        "limits.tree-grace",
    ),
    Mutation(
        "gives up a stop when it may not send SIGTERM",
        (
            Edit(
                "job.py",
                ARMED,
                f"        if first:\n            self._tree.terminate()\n{ARMED}",
            ),
        ),
        "limits.other-user",
    ),
)
