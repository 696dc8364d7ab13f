"""Room for many connections at once at a port that QEMU forwards.

QEMU's own network listens with a backlog of 1, so of fifty connections at once the host's kernel
drops most, and their clients try again after 1, 3, 7 and 15 s: a server looks slow, or dead, that
saw none of it. A socket that listens takes another backlog by a second listen(2), and a socket of
another process can be had by pidfd_getfd(2), from one's own child without any rights.
"""

import ctypes
import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

BACKLOG: Final = 4096  # the kernel takes no more than net.core.somaxconn
_SYS_PIDFD_GETFD: Final = 438  # the same on every architecture

logger = logging.getLogger(__name__)


def widen_backlog(pid: int, port: int) -> None:
    """Let the process that listens at a port of loopback hold `BACKLOG` connections to come.

    Where the kernel refuses (before Linux 5.6, in some containers) that is said, and no more.
    """
    try:
        for listener in _listeners(pid):
            with suppress(OSError):  # some of its sockets have no address of this kind
                if listener.getsockname() == ("127.0.0.1", port):
                    listener.listen(BACKLOG)
                    return
        reason = "it listens there no longer"
    except OSError as error:
        reason = f"{error.strerror} (errno {error.errno})"
    logger.warning(
        "port %d of process %d takes few connections at once, so many may wait for seconds: %s",
        port, pid, reason,
    )  # fmt: skip


def _listeners(pid: int) -> Iterator[socket.socket]:
    with _opened(os.pidfd_open(pid)) as pidfd:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with _closed_meanwhile():
                if not str(link.readlink()).startswith("socket:"):
                    continue
                with socket.socket(fileno=_fetch(pidfd, int(link.name))) as theirs:
                    if theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        yield theirs


@contextmanager
def _closed_meanwhile() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EBADF}:
            raise


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _fetch(pidfd: int, theirs: int) -> int:
    """Return a descriptor of ours for one of another process's."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_PIDFD_GETFD, pidfd, theirs, 0)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"descriptor {theirs}")
    return fd
