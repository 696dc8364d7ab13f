"""A longer accept backlog for a port that QEMU forwards.

QEMU's user network listens with a backlog of 1, so the host's kernel drops most of fifty
simultaneous connections, and their clients retry after 1, 3, 7 and 15 s: a server that never saw
them looks slow or dead. A second listen(2) changes the backlog of a listening socket, and
pidfd_getfd(2) duplicates a socket of another process, without privileges if it is a child.
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

BACKLOG: Final = 4096  # the kernel caps it at net.core.somaxconn
_SYS_PIDFD_GETFD: Final = 438  # the same on every architecture

logger = logging.getLogger(__name__)


def widen_backlog(pid: int, port: int) -> None:
    """Set the backlog of another process's listener on a loopback port to `BACKLOG`.

    A kernel that refuses (before Linux 5.6, in some containers) causes a warning, not an error.
    """
    try:
        for listener in _listeners(pid):
            with suppress(OSError):  # some sockets have no address of this kind
                if listener.getsockname() == ("127.0.0.1", port):
                    listener.listen(BACKLOG)
                    return
        reason = "the process no longer listens on it"
    except OSError as error:
        reason = f"{error.strerror} (errno {error.errno})"
    logger.warning(
        "port %d of process %d keeps its short backlog, so connections may wait seconds: %s",
        port, pid, reason,
    )  # fmt: skip


def _listeners(pid: int) -> Iterator[socket.socket]:
    with _close_after(os.pidfd_open(pid)) as pidfd:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with _ignore_closed():
                if not str(link.readlink()).startswith("socket:"):
                    continue
                with socket.socket(fileno=_fetch(pidfd, int(link.name))) as theirs:
                    if theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        yield theirs


@contextmanager
def _ignore_closed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EBADF}:
            raise


@contextmanager
def _close_after(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _fetch(pidfd: int, theirs: int) -> int:
    """Duplicate a descriptor of another process into this one."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_PIDFD_GETFD, pidfd, theirs, 0)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"descriptor {theirs}")
    return fd
