"""A job whose process, tree and scheduler are controlled by the test: no real process runs."""

import errno
import os
import signal

from worker_service.cgroup import Usage
from worker_service.job import Job, JobStatus, State
from worker_service.log import OutputLog
from worker_service.output_memory import OutputMemory
from worker_service.reactor import Callback, Scheduler, Timer
from worker_service.spawn import Command, ExitStatus
from worker_service.tree import Process, ProcessTree

PIDFD = 1_000_001
TREE_FD = 1_000_002


class MisuseError(BaseException):
    """A job misused its process or its tree. No Exception: a job survives those."""


def require(holds: bool, promise: str) -> None:
    if not holds:
        raise MisuseError(promise)


class FakeScheduler:
    """Calls back when the test says so."""

    def __init__(self) -> None:
        self.watched: dict[int, Callback] = {}
        self.timers: list[tuple[Timer, float]] = []  # with their delays
        self.unwatchable: set[int] = set()

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        del events
        require(fd not in self.watched, "a descriptor is watched once")
        if fd in self.unwatchable:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        timer = Timer(0.0, callback)
        timer.due_s = float("inf")  # so that a later, shorter request replaces it
        self.timers.append((timer, delay_s))
        return timer

    def ready(self, fd: int) -> None:
        """Report an event of a descriptor, if it is watched."""
        if fd in self.watched:
            self.watched[fd]()

    def live_timers(self) -> list[Timer]:
        return [timer for timer, _ in self.timers if timer.callback is not None]

    def fire(self, number: int) -> None:
        """Call one of the live timers back, if there is any."""
        live = self.live_timers()
        if live:
            _fire(live[number % len(live)])

    def fire_after(self, delay_s: float) -> None:
        """Call back every live timer of a delay."""
        for timer, delay in list(self.timers):
            if delay == delay_s and timer.callback is not None:
                _fire(timer)


def _fire(timer: Timer) -> None:
    callback, timer.callback = timer.callback, None
    assert callback is not None
    callback()


class FakeProcess:
    pid = 4711
    pidfd = PIDFD

    def __init__(self) -> None:
        self.exit: ExitStatus | None = None
        self.status_lost = False
        self.signals: list[signal.Signals] = []
        self.reaped = 0

    def signal_group(self, signal_number: signal.Signals) -> None:
        require(not self.reaped, "a signal after the pid was released may reach another process")
        self.signals.append(signal_number)

    def peek_exit(self) -> ExitStatus | None:
        if self.status_lost:
            raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
        return self.exit

    def reap(self) -> None:
        self.reaped += 1
        self.peek_exit()


class FakeTree:
    def __init__(self, process: FakeProcess) -> None:
        self.main: Process = process
        self.process = process
        self.kills = 0
        self.terminations = 0
        self.refuses = False
        self.refuses_terms = False
        self.gone = False
        self.discarded = 0

    def terminate(self) -> None:
        require(not self.discarded, "a removed cgroup is not signalled")
        require(not self.process.reaped, "a tree is signalled while its leader keeps the pid")
        self.terminations += 1
        require(self.terminations == 1, "a second SIGTERM means to hurry")
        if self.refuses_terms:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def kill(self) -> None:
        require(not self.discarded, "a removed cgroup is not killed")
        require(not self.process.reaped, "a tree is killed while its leader keeps the pid")
        self.kills += 1
        if self.refuses:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def is_gone(self) -> bool:
        return self.gone

    def watch(self, scheduler: Scheduler, callback: Callback) -> None:
        scheduler.watch(TREE_FD, 0, callback)

    def unwatch(self, scheduler: Scheduler) -> None:
        scheduler.unwatch(TREE_FD)

    def usage(self) -> Usage | None:
        require(not self.discarded, "a removed cgroup has no counters")
        return Usage(oom_kills=1)

    def last_usage(self) -> Usage | None:
        return self.usage()

    def discard(self) -> None:
        require(
            self.process.exit is not None or self.process.status_lost,
            "a tree is discarded after its main process",
        )
        self.discarded += 1


class JobRig:
    """A job that has begun, unless `begins` is false, and its controls."""

    def __init__(
        self,
        log: OutputLog | None = None,
        tree: ProcessTree | None = None,
        *,
        memory: OutputMemory | None = None,
        begins: bool = True,
    ) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)
        self.log = log or OutputLog()
        self.scheduler = FakeScheduler()
        self.process = FakeProcess()
        self.tree = FakeTree(self.process)
        self.job = Job(
            JobStatus("id", Command("true"), State.RUNNING, 4711, 1.0),
            process=self.process,
            tree=tree or self.tree,
            output_fd=self.read_fd,
            log=self.log,
            memory=memory or OutputMemory(2**40),
            scheduler=self.scheduler,
        )
        if begins:
            self.job.begin()

    def output_ready(self) -> None:
        """Report that the pipe can be read."""
        self.scheduler.ready(self.read_fd)

    def close_output(self) -> None:
        """Close the write end of the pipe, if it is open."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def end_output(self) -> None:
        """Close the write end of the pipe and report it."""
        self.close_output()
        self.output_ready()

    def exit(self, code: int = 0, number: int = 0, *, gone: bool = True) -> None:
        """End the main process, with its tree or not, and report it."""
        self.process.exit = ExitStatus(code, number)
        self.tree.gone = gone
        self.scheduler.ready(PIDFD)
