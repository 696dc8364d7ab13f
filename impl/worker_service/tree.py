"""The processes of a job: what can be done to all of them, with a cgroup and without.

Used by the reactor's thread only, but for `usage`.
"""

import errno
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from worker_service.cgroup import NO_DESCRIPTOR, Cgroup, Usage, is_populated, kill_through
from worker_service.reactor import PRIORITY, Callback, Scheduler
from worker_service.spawn import ExitStatus

logger = logging.getLogger(__name__)

# How often `terminate` looks for processes forked meanwhile: a few rounds find all but a fork
# bomb's last ones, which the kill at the end of the grace finds.
TERMINATE_ROUNDS_MAX: Final = 10

# A process that a setuid program made another user's; a server with CAP_KILL may signal all.
NOT_PERMITTED: Final = (
    "the server is forbidden to signal a process of another user (it lacks CAP_KILL)"
)

_PROC: Final = Path("/proc")


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
    """All processes of a job.

    Attributes:
        main: the main process, set before anything but `discard` is called.
    """

    main: Process

    def terminate(self) -> None:
        """Send each of them SIGTERM, once, and SIGCONT, so that a paused one can act.

        Call it once for a tree: to many programs, a second SIGTERM means to hurry.

        Raises:
            PermissionError: the server must not signal one of them; all others got both signals.
        """

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

    main: Process

    def terminate(self) -> None:
        """See `ProcessTree`; those of the group that the server must not signal are left out.

        Raises:
            PermissionError: the server may signal none of the group.
        """
        _terminate_group(self.main)

    def kill(self) -> None:
        """See `ProcessTree`.

        Raises:
            PermissionError: as `terminate`.
        """
        _send(self.main.signal_group, signal.SIGKILL)

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
    """All processes in a cgroup and below it; fork and setsid do not leave it. Owns the cgroup."""

    main: Process

    def __init__(self, cgroup: Cgroup) -> None:
        """Open all descriptors that the end of the job needs: none may be available by then.

        Raises:
            HostExhaustedError: no descriptor is available now; the cgroup is removed.
        """
        self._cgroup = cgroup
        self._fds: list[int] = []
        try:
            for opens in (cgroup.open_events, cgroup.open_kill, cgroup.open_memory_events):
                self._fds.append(opens())
        except BaseException:
            self.discard()
            raise
        self._events_fd, self._kill_fd, self._memory_events_fd = self._fds

    def terminate(self) -> None:
        """See `ProcessTree`. Without a descriptor to find them, the main process's group gets it.

        Raises:
            PermissionError: as `ProcessTree`.
        """
        signalled: set[int] = set()
        refused: PermissionError | None = None
        try:
            for _ in range(TERMINATE_ROUNDS_MAX):
                found = [pid for pid in self._cgroup.processes() if pid not in signalled]
                if not found:
                    break
                for pid in found:
                    try:
                        self._terminate_one(pid)
                    except PermissionError as error:
                        refused = error
                    signalled.add(pid)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            logger.warning(
                "%s: only the main process's group gets SIGTERM: %s", self._cgroup.path, error
            )
            if self.main.pid not in signalled:
                _terminate_group(self.main)
        if refused is not None:
            raise refused

    def _terminate_one(self, pid: int) -> None:
        """Signal a process that was in the cgroup a moment ago, and no other that has its pid now.

        If the process of the descriptor still lives when it is signalled, the pid was its own all
        the time, and so was the cgroup read in between.
        """
        try:
            pidfd = os.pidfd_open(pid)
            try:
                if self._cgroup.path.name in _cgroup_of(pid).split("/"):
                    _terminate(lambda number: signal.pidfd_send_signal(pidfd, number))
            finally:
                os.close(pidfd)
        except (ProcessLookupError, FileNotFoundError):
            return  # it has ended

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


def _terminate_group(main: Process) -> None:
    _terminate(main.signal_group)


def _terminate(send: Callable[[signal.Signals], None]) -> None:
    """Send both signals, the second one even if the first is refused.

    Raises:
        PermissionError: the text says what the server lacks.
    """
    try:
        _send(send, signal.SIGTERM)
    finally:
        _send(send, signal.SIGCONT)


def _send(send: Callable[[signal.Signals], None], number: signal.Signals) -> None:
    try:
        send(number)
    except PermissionError as error:
        raise PermissionError(errno.EPERM, NOT_PERMITTED) from error


def _cgroup_of(pid: int) -> str:
    """Return the path of a process's cgroup v2 (cgroups(7))."""
    for line in (_PROC / f"{pid}/cgroup").read_text(errors="replace").splitlines():
        if line.startswith("0::"):
            return line
    return ""
