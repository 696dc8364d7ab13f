"""Starts a `sleep` that has a given pid. Arguments: the pid and the seconds. Needs root.

The process leads a session and a process group of its own, so its pid is also its group's id.
Prints `taken`, or the errno. Source: clone3(2), set_tid (Linux >= 5.5, x86-64 and arm64: call 435).
"""

import ctypes
import os
import signal
import struct
import sys

SYS_CLONE3 = 435


def main(pid: int, seconds: str) -> None:
    """Clone with the pid, and become `sleep` in the clone."""
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = (ctypes.c_int * 1)(pid)
    # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, its size
    arguments = struct.pack(
        "=10Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1
    )
    result = libc.syscall(SYS_CLONE3, arguments, len(arguments))
    if result == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.execvp("sleep", ["sleep", seconds])  # noqa: S606, S607 - as found there
    os.write(1, b"taken\n" if result == pid else b"errno %d\n" % ctypes.get_errno())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
