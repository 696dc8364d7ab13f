"""The processes of a job: what can be done to all of them, with a cgroup and without.

Used by the reactor's thread only, but for `usage`.
"""

import logging
import os
import signal
from typing import Protocol

from worker_service.cgroup import Cgroup, Usage, is_populated, kill_through
from worker_service.reactor import PRIORITY, Callback, Scheduler
from worker_service.spawn import ExitStatus

logger = logging.getLogger(__name__)


class Process(Protocol):
    """The main process; `spawn.Child` implements it."""

    pid: int
    pidfd: int

    def signal_group(self, signal_number: signal.Signals) -> None:
        """Signal the process group that the process leads."""

    def peek_exit(self) -> ExitStatus | None:
        """Return how the process ended, or None; do not reap it."""

    def reap(self) -> None:
        """Release its pid."""


class ProcessTree(Protocol):
    """All processes of a job."""

    def kill(self) -> None:
        """Kill them all."""

    def is_gone(self) -> bool:
        """Return whether none is left, as far as this kind of tree can know."""

    def watch(self, scheduler: Scheduler, callback: Callback) -> None:
        """Call back when `is_gone` may have changed."""

    def unwatch(self, scheduler: Scheduler) -> None:
        """End `watch`."""

    def usage(self) -> Usage | None:
        """Return their resource usage, if it is counted. Any thread."""

    def last_usage(self) -> Usage | None:
        """Return their final resource usage, before `discard`."""

    def discard(self) -> None:
        """Release the tree's resources, after its last process."""


class GroupTree:
    """A tree without a cgroup: the process group. A process that leaves it is not followed."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def kill(self) -> None:
        """See `ProcessTree`."""
        self._process.signal_group(signal.SIGKILL)

    def is_gone(self) -> bool:
        """See `ProcessTree`. An empty group raises no event: the end of output decides."""
        return True

    def watch(self, scheduler: Scheduler, callback: Callback) -> None:
        """See `ProcessTree`; there is nothing to watch."""

    def unwatch(self, scheduler: Scheduler) -> None:
        """See `ProcessTree`."""

    def usage(self) -> Usage | None:
        """See `ProcessTree`; nothing counts it."""
        return None

    def last_usage(self) -> Usage | None:
        """See `ProcessTree`; nothing counts it."""
        return None

    def discard(self) -> None:
        """See `ProcessTree`; it holds nothing."""


class CgroupTree:
    """All processes in a cgroup and below it; fork and setsid do not leave it."""

    def __init__(self, cgroup: Cgroup) -> None:
        """Open all descriptors that the end of the job needs: none may be available by then.

        Raises:
            HostExhaustedError: no descriptor is available now.
        """
        self._cgroup = cgroup
        self._fds: list[int] = []
        try:
            for opens in (cgroup.open_events, cgroup.open_kill, cgroup.open_memory_events):
                self._fds.append(opens())
        except BaseException:
            self._close()
            raise
        self._events_fd, self._kill_fd, self._memory_events_fd = self._fds

    def kill(self) -> None:
        """See `ProcessTree`."""
        kill_through(self._kill_fd)

    def is_gone(self) -> bool:
        """See `ProcessTree`."""
        return not is_populated(self._events_fd)

    def watch(self, scheduler: Scheduler, callback: Callback) -> None:
        """See `ProcessTree`."""
        scheduler.watch(self._events_fd, PRIORITY, callback)

    def unwatch(self, scheduler: Scheduler) -> None:
        """See `ProcessTree`."""
        scheduler.unwatch(self._events_fd)

    def usage(self) -> Usage | None:
        """See `ProcessTree`."""
        # Not through the descriptor: if the job ends now, its number may already be reused.
        return self._cgroup.usage()

    def last_usage(self) -> Usage | None:
        """See `ProcessTree`."""
        return self._cgroup.usage(self._memory_events_fd)

    def discard(self) -> None:
        """See `ProcessTree`: remove the directory, or log that the next start must."""
        self._close()
        try:
            self._cgroup.remove()
        except OSError as error:
            logger.error("cgroup %s stays until the next start: %s", self._cgroup.path, error)  # noqa: TRY400 - one line says it, a trace adds nothing

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
