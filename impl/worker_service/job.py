"""One job: a process tree, its output, and one state machine that ends in one final status.

The rule: a job ends with its main process. The rest of its tree is then killed, and the output that
the tree has written is kept. A stop gives the whole tree a grace instead: what the main process
leaves behind may end by itself until the grace is over. The status becomes final only once all
output is in the log; the log is closed after that, so a client that sees the end of a stream finds
the final status.

    running --exit of the main process--> draining --end of output, tree gone--> ended
    in grace --end of output, tree gone, main process exited-------------------> ended
    in grace --end of the grace--> killed --exit of the main process--> draining
       any state --a callback fails, or nothing can be watched--> abandoned ----> ended

Shared state and its guard: `_status` is written by the reactor's thread only, as one reference to a
frozen object; any thread reads it. `_final` is under `_woken`, and so are `_begun`, written by the
starting thread, and `_early_failure`: one of the two threads abandons a job of which an event
failed meanwhile. All else belongs to the reactor's thread.
"""

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from fcntl import F_GETPIPE_SZ, fcntl
from typing import Final

from worker_service.cgroup import Limits, Usage
from worker_service.log import OutputLog
from worker_service.output_memory import OutputMemory
from worker_service.reactor import READABLE, Guarded, Scheduler, Timer
from worker_service.spawn import Command, ExitStatus
from worker_service.tree import Process, ProcessTree

logger = logging.getLogger(__name__)

# What one event moves from a job's pipe to its log: then it is the next job's turn.
READ_MAX_BYTES: Final = 1024 * 1024
# How long the output may stay open after the main process has ended and its tree was killed. Only a
# process outside the tree (possible without a cgroup) or one stuck in the kernel takes this long.
DRAIN_MAX_S: Final = 2.0
# Delays before a failed kill is retried, and before the end of a job that cannot be watched is
# looked for again: long enough for a thousand jobs at once.
KILL_RETRY_S: Final = 1.0
END_RETRY_S: Final = 0.25


class State(StrEnum):
    """A job's status; the texts are the original's."""

    RUNNING = "running"
    EXITED = "exited"
    SIGNALED = "signaled"


class Outcome(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"  # with exit code 0
    FAILED = "failed"  # with another exit code
    SIGNALED = "signaled"
    OOM_KILLED = "oom-killed"  # the OOM killer struck, whatever the main process made of it


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job's state and usage at one moment. Times are seconds since the epoch."""

    job_id: str
    command: Command
    state: State
    pid: int
    started_at_s: float
    ended_at_s: float | None = None
    exit_code: int = 0
    signal: int = 0
    limits: Limits | None = None
    usage: Usage | None = None

    @property
    def oom_killed(self) -> bool:
        """Whether the OOM killer has killed a process of the job."""
        return self.usage is not None and self.usage.oom_kills > 0

    @property
    def outcome(self) -> Outcome:
        """How the job ended, if it has."""
        if self.oom_killed:
            return Outcome.OOM_KILLED
        if self.state is State.SIGNALED:
            return Outcome.SIGNALED
        return Outcome.FAILED if self.exit_code else Outcome.SUCCEEDED


class Job:
    """One process tree.

    `status`, `status_with_usage`, `wait_ended` and `wake`: any thread; `begin`: the starting one;
    the rest: the scheduler's.

    Args:
        on_end: called once with the job, when the status is final and the log closed; it must not
            fail.
    """

    def __init__(
        self,
        status: JobStatus,
        *,
        process: Process,
        tree: ProcessTree,
        output_fd: int,
        log: OutputLog,
        memory: OutputMemory,
        scheduler: Scheduler,
        on_end: Callable[["Job"], None] = lambda _: None,
    ) -> None:
        self.log = log
        self.kill_failure: str | None = None  # why a kill failed; any thread reads it
        self.number = 0  # set by the worker, which counts its starts
        self._status = status
        self._woken = threading.Condition()
        self._final = False
        self._on_end = on_end
        self._process = process
        self._tree = tree
        self._output_fd = output_fd
        self._output_open = True
        self._output_failure: str | None = None
        self._memory = memory
        self._scheduler = Guarded(scheduler, self.abandon)
        self._begun = False
        self._early_failure: Exception | None = None
        self._abandoned = False
        self._exit: ExitStatus | None = None
        self._exited_at_s = 0.0
        self._grace_timer: Timer | None = None  # set from a stop until the kill
        self._killed = False
        self._kill_timer: Timer | None = None  # set after a kill that failed
        self._drain_timer: Timer | None = None

    def status(self) -> JobStatus:
        """Return the current status; of a running job without its usage, which costs reads."""
        return self._status

    def status_with_usage(self) -> JobStatus:
        """Return the current status; of a running job with its usage up to now."""
        status = self._status
        if status.ended_at_s is not None:
            return status
        usage = self._tree.usage()
        # The job may have ended and removed its cgroup since: then its final status is the answer.
        latest = self._status
        return latest if latest.ended_at_s is not None else replace(latest, usage=usage)

    def wait_ended(self, timeout_s: float, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the final status; return whether it is reached.

        Args:
            timeout_s: how long to wait at most.
            given_up: whether to return early; called again at each `wake`.
        """
        with self._woken:
            self._woken.wait_for(lambda: self._final or given_up(), timeout_s)
            return self._final

    def wake(self) -> None:
        """Let every waiting thread see whether its caller has given up."""
        with self._woken:
            self._woken.notify_all()

    def begin(self) -> Exception | None:
        """Start watching the process and its output; on the starting thread.

        Events may be handled before it returns. If that fails, the error is returned, with which
        the job must be abandoned: not earlier, since that closes the descriptors.

        Raises:
            OSError: one cannot be watched; the job must be abandoned.
        """
        try:
            self._scheduler.watch(self._output_fd, READABLE, self._on_output)
            self._scheduler.watch(self._process.pidfd, READABLE, self._on_exit)
        finally:
            with self._woken:
                self._begun = True
                failure = self._early_failure
        return failure

    def abandon(self, error: Exception) -> None:
        """Kill and release the job after an error of the server; otherwise it might never end.

        Nothing of it is watched from here on, so that no event repeats the error; timers find its
        end. Its readers get the error. A lost exit status counts as SIGKILL.
        """
        logger.error("job %s fails in the server", self._status.job_id, exc_info=error)
        with self._woken:
            self._early_failure = error
            if not self._begun:
                return  # `begin` finds the error
        if self._abandoned or self._status.ended_at_s is not None:
            return
        self._abandoned = self._killed = True
        self._output_failure = f"{error!s}; the job was killed"
        self._cancel(self._drain_timer)
        self._attempt(lambda: self._scheduler.unwatch(self._process.pidfd))
        self._attempt(lambda: self._tree.unwatch(self._scheduler))
        if self._output_open:
            self._attempt(lambda: self._scheduler.unwatch(self._output_fd))
            self._attempt(self._take_rest)
        self._end_unwatched()

    def _end_unwatched(self) -> None:
        self._attempt(self._tree.kill)
        if self._exit is None:
            self._exited_at_s = time.time()
            try:
                self._exit = self._process.peek_exit()
            except OSError:
                self._exit = ExitStatus(exit_code=0, signal=signal.SIGKILL)
        if self._exit is None:
            self._drain_timer = self._scheduler.call_later(END_RETRY_S, self._end_unwatched)
        elif self._attempt(self._tree.is_gone):
            self._finish()
        else:
            self._drain_timer = self._scheduler.call_later(DRAIN_MAX_S, self._finish)

    def _attempt[Value](self, step: Callable[[], Value]) -> Value | None:
        """Run one step of the end; an error is logged and must not keep the others from running."""
        try:
            return step()
        except Exception:
            logger.exception("job %s: a step of its end failed", self._status.job_id)
            return None

    def request_stop(self, grace_s: float) -> None:
        """Send the whole tree SIGTERM now, and SIGKILL to what is left of it after a grace.

        A further request can only shorten the grace. An ended job is left alone.
        """
        if self._status.ended_at_s is not None:
            return
        if grace_s <= 0:
            self._kill()
            return
        if self._killed:
            return
        first = self._grace_timer is None
        if self._grace_timer is not None and self._grace_timer.due_s <= time.monotonic() + grace_s:
            return
        self._cancel(self._grace_timer)
        # Armed before anything that can fail: then the tree is killed whatever happens.
        self._grace_timer = self._scheduler.call_later(grace_s, self._kill)
        if first:
            self._terminate()

    def _terminate(self) -> None:
        try:
            self._tree.terminate()
        except OSError as error:
            logger.warning(
                "job %s: SIGTERM did not reach its whole tree: %s", self._status.job_id, error
            )

    def _kill(self) -> None:
        """Kill the tree; after a failure, retry until the job has ended."""
        self._cancel(self._grace_timer)
        self._grace_timer = None
        self._cancel(self._kill_timer)
        self._killed = True
        try:
            self._tree.kill()
        except OSError as error:
            self.kill_failure = error.strerror
            logger.error(  # noqa: TRY400 - as above
                "job %s cannot be killed, will retry: %s", self._status.job_id, error
            )
            self._kill_timer = self._scheduler.call_later(KILL_RETRY_S, self._kill)
        if self._exit is not None and self._drain_timer is None:
            self._drain_timer = self._scheduler.call_later(DRAIN_MAX_S, self._on_drain_timeout)

    def _on_output(self) -> None:
        try:
            count = self._read_output(READ_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail_output(error)
            return
        if count == 0:
            self._close_output()
            self._finish_if_complete()

    def _read_output(self, max_bytes: int) -> int:
        count = self.log.read_from(self._output_fd, max_bytes)
        self._memory.written(self.log)
        return count

    def _fail_output(self, error: OSError) -> None:
        """End the job: silent loss of output is worse than a job that ends with an error."""
        self._output_failure = f"{os.strerror(error.errno or errno.EIO)}; the job was killed"
        logger.error("output of job %s", self._status.job_id, exc_info=error)
        self._close_output()
        self._kill()

    def _take_rest(self) -> None:
        """Read what the pipe holds at this moment: at most its capacity, though more may follow."""
        left_bytes = fcntl(self._output_fd, F_GETPIPE_SZ)
        try:
            while left_bytes > 0 and (count := self._read_output(left_bytes)):
                left_bytes -= count
        except BlockingIOError:
            pass  # the pipe is empty, and a process still has it open
        except OSError as error:
            self._fail_output(error)
            return
        self._close_output()

    def _on_exit(self) -> None:
        self._exit = self._process.peek_exit()
        if self._exit is None:
            return
        self._exited_at_s = time.time()
        self._scheduler.unwatch(self._process.pidfd)
        if self._grace_timer is None:
            self._kill()
        self._tree.watch(self._scheduler, self._finish_if_complete)
        self._finish_if_complete()

    def _on_drain_timeout(self) -> None:
        """Stop waiting for processes that outlive the tree; read what the pipe holds now."""
        logger.warning(
            "job %s: a process outlived its tree (pid %d) by %s s; its output is cut off",
            self._status.job_id, self._status.pid, DRAIN_MAX_S,
        )  # fmt: skip
        if self._output_open:
            self._take_rest()
        self._finish()

    def _finish_if_complete(self) -> None:
        if self._exit is not None and not self._output_open and self._tree.is_gone():
            if not self._killed:
                self._kill()  # a tree without a cgroup does not know of members that are left
            self._finish()

    def _finish(self) -> None:
        if self._exit is None or self._status.ended_at_s is not None:
            return
        self._cancel(self._drain_timer)
        self._cancel(self._kill_timer)
        self._cancel(self._grace_timer)
        if self._output_open:
            self._attempt(self._close_output)
        self._attempt(lambda: self._tree.unwatch(self._scheduler))
        usage = self._attempt(self._tree.last_usage)
        self._attempt(self._process.reap)
        self._attempt(self._tree.discard)
        self._status = replace(
            self._status,
            state=State.SIGNALED if self._exit.signal else State.EXITED,
            ended_at_s=self._exited_at_s,
            exit_code=self._exit.exit_code,
            signal=self._exit.signal,
            usage=usage,
        )
        try:
            self.log.close(self._output_failure)
            self._memory.ended(self.log)
        finally:
            with self._woken:
                self._final = True
                self._woken.notify_all()
            self._on_end(self)

    def _close_output(self) -> None:
        self._output_open = False
        self._scheduler.unwatch(self._output_fd)
        os.close(self._output_fd)

    @staticmethod
    def _cancel(timer: Timer | None) -> None:
        if timer is not None:
            timer.cancel()
