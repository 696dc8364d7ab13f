"""The Linux calls that Python does not offer, through ctypes; the only module that makes them.

Sources: posix_spawn(3), glibc 2.39 NEWS (pidfd_spawn, posix_spawnattr_setcgroup_np),
pidfd_send_signal(2).
"""

import ctypes
import errno
import os
import signal
from typing import Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
# For functions that only fill in memory: releasing the interpreter lock would cost more than they,
# and with other threads that want it a wait.
LIBC_AT_ONCE: Final = ctypes.PyDLL(None)

_SYS_PIDFD_SEND_SIGNAL: Final = 424  # the same number on every architecture
_PIDFD_SIGNAL_PROCESS_GROUP: Final = 1 << 2  # since Linux 6.9

LIBC.syscall.restype = ctypes.c_long


def has_function(name: str) -> bool:
    """Return whether this C library exports a function."""
    return hasattr(LIBC, name)


def signal_process_group(pidfd: int, leader_pid: int, signal_number: signal.Signals) -> None:
    """Signal the whole process group led by a child that has not been reaped yet.

    The caller must not have reaped the child: that keeps its pid, and so the group's id, from being
    reused. It makes the fallback for kernels before 6.9 safe as well.

    Raises:
        ProcessLookupError: the group is empty.
    """
    result = LIBC.syscall(
        ctypes.c_long(_SYS_PIDFD_SEND_SIGNAL),
        ctypes.c_int(pidfd),
        ctypes.c_int(signal_number),
        None,
        ctypes.c_uint(_PIDFD_SIGNAL_PROCESS_GROUP),
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EINVAL:
        os.killpg(leader_pid, signal_number)
        return
    raise OSError(number, os.strerror(number))
