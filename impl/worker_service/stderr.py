"""Standard error that never blocks the server, however slowly or badly it is read.

Descriptor 2 becomes a pipe that is written without waiting, also by gRPC's C core and by
faulthandler, and one thread forwards it to the real standard error: only that thread waits. Log
lines that the pipe has no room for, or that cannot be written, are dropped and counted, and the
next line that is written is preceded by their number. The order of lines is kept.

Shared state and its guard: `_dropped` and `_rest` under the lock of the handler.
"""

import fcntl
import logging
import os
import select
import threading
import traceback
from contextlib import suppress
from typing import Final

# How long the end of the server waits for the real standard error to take the last lines.
DRAIN_MAX_S: Final = 2.0
_PIPE_BYTES: Final = 1024 * 1024


class StderrHandler(logging.Handler):
    """Writes log lines to descriptor 2, which belongs to it until `close`. One per process."""

    def __init__(self) -> None:
        super().__init__()
        self._dropped = 0
        self._rest = b""  # the end of a line of which only the beginning fitted
        self._real_fd = os.dup(2)
        self._null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        with suppress(PermissionError):  # the user's limit on pipe memory is reached (pipe(7))
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(write_fd, False)
        os.dup2(write_fd, 2, inheritable=False)
        os.close(write_fd)
        self._thread = threading.Thread(target=self._forward, name="stderr", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line or count it; never wait, never fail."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - a bad record is the caller's, but no reason to fail it
            text = f"a log line cannot be formatted: {traceback.format_exc()}"
        line = f"{text}\n".encode("utf-8", "backslashreplace")
        if not self._report_dropped() or not self._write(line):
            self._dropped += 1

    def close(self) -> None:
        """Give the lines some time to be written; then put descriptor 2 back.

        If they are still not taken, nothing more may wait for the reader: descriptor 2 discards.
        """
        with suppress(KeyError):  # logging.shutdown closes a second time
            super().close()
        if self._real_fd < 0:
            return
        self.acquire()
        self._report_dropped()
        os.dup2(self._null_fd, 2)  # the pipe's last write end: what it holds is read, then its end
        os.close(self._null_fd)
        real_fd, self._real_fd = self._real_fd, -1
        self.release()
        self._thread.join(DRAIN_MAX_S)
        if not self._thread.is_alive():
            os.dup2(real_fd, 2)
            os.close(real_fd)

    def _report_dropped(self) -> bool:
        """Write how many lines were dropped, if any; return whether the next may follow."""
        if self._dropped and self._write(_note(self._dropped)):
            self._dropped = 0
        return not self._dropped

    def _write(self, line: bytes) -> bool:
        """Return whether the pipe takes a line; of a long one, the rest may follow later."""
        if self._real_fd < 0:
            return False
        try:
            if self._rest:
                self._rest = self._rest[os.write(2, self._rest) :]
            if self._rest:
                return False
            self._rest = line[os.write(2, line) :]
        except OSError:
            return False
        return True

    def _forward(self) -> None:
        real_fd, lost = self._real_fd, 0
        # Kept: `os.read` would allocate this much for each line, while it holds the interpreter.
        buffer = memoryview(bytearray(_PIPE_BYTES))
        while count := os.readv(self._read_fd, [buffer]):
            data = bytes(buffer[:count])
            lost = 0 if _write_all(real_fd, _note(lost) + data) else lost + data.count(b"\n")
            self.acquire()
            self._report_dropped()
            self.release()
        os.close(self._read_fd)


def _note(dropped: int) -> bytes:
    if not dropped:
        return b""
    return b"%d lines were dropped here: standard error did not take them\n" % dropped


def _write_all(fd: int, data: bytes) -> bool:
    """Write everything, however long it takes; return whether that succeeded."""
    try:
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # a terminal that another program made non-blocking
                select.select([], [fd], [])
    except OSError:  # closed, EPIPE, or a full disk, which may have room later
        return False
    return True
