"""Take back from a job what may protect the server from the OOM killer.

systemd's OOMScoreAdjust= is inherited by everything that the server starts, and a job so protected
could not be ended for its memory. A process can be adjusted only once it runs, when it may have
forked already, so a cgroup is looked through until nothing in it is left to adjust.
Source: proc(5).
"""

import errno
import logging
import os
from typing import Final

from worker_service.cgroup import Cgroup

# What is adjusted forks nothing that is not, so few turns find all but a fork bomb's last ones.
MAX_TURNS: Final = 20

logger = logging.getLogger(__name__)


def make_killable(pid: int, cgroup: Cgroup | None) -> None:
    """Set the score of a process just started to 0, and of what it forked before that in `cgroup`.

    Without a cgroup nobody knows what it forked: that keeps the server's score.
    """
    if not _adjust(pid) or cgroup is None:
        return
    for _ in range(MAX_TURNS):
        if not sum(_adjust(inside) for inside in cgroup.processes()):  # any() would stop early
            return
    logger.warning("%s forks faster than its OOM scores can be adjusted", cgroup.path)


def _adjust(pid: int) -> bool:
    """Tell whether a process had a score other than 0, which it then has no longer."""
    path = f"/proc/{pid}/oom_score_adj"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.read(fd, 16) == b"0\n":
                return False
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ESRCH}:  # else it has ended
            logger.warning("%s stays the server's: %s", path, error.strerror)
        return False
    return True
