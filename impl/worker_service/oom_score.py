"""Remove from a job the server's protection from the OOM killer.

A job's score is the server's, but never below 0. Every process that the server starts inherits
systemd's OOMScoreAdjust=, and the OOM killer could not end a job that is protected by a negative
one. A positive one stays: a lower score would make the server the victim of its jobs' memory.

A process can be adjusted only once it runs, when it may have forked already, so the cgroup is
scanned until no process in it is left to adjust. Source: proc(5).
"""

import errno
import logging
import os
from pathlib import Path
from typing import Final

from worker_service.cgroup import Cgroup

# Children of an adjusted process are adjusted, so a few scans find all but a fork bomb's last ones.
MAX_TURNS: Final = 20

_PROC: Final = Path("/proc")

logger = logging.getLogger(__name__)


def make_killable(pid: int, cgroup: Cgroup | None) -> None:
    """Raise the score of a new process to 0, and of the processes it forked before in `cgroup`.

    Without a cgroup the processes that it forked are unknown: they keep the server's score.
    """
    if not _adjust(pid) or cgroup is None:
        return
    try:
        for _ in range(MAX_TURNS):
            if not sum(_adjust(inside) for inside in cgroup.processes()):  # any() would stop early
                return
    except OSError as error:
        logger.warning("%s: what the job forked keeps its OOM score: %s", cgroup.path, error)
        return
    logger.warning("%s forks faster than its OOM scores can be adjusted", cgroup.path)


def _adjust(pid: int) -> bool:
    """Raise a process's negative score to 0; return whether it was negative."""
    path = f"{_PROC}/{pid}/oom_score_adj"  # a text: making a Path takes longer than the calls
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if int(os.read(fd, 16)) >= 0:
                return False
            os.pwrite(fd, b"0\n", 0)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ESRCH}:  # otherwise the process has ended
            logger.warning("%s keeps the server's value: %s", path, error.strerror)
        return False
    return True
