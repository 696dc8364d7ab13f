"""Output for a log under test, written as the server writes it: through a pipe."""

import os

from worker_service.log import OutputLog

PIPE_BYTES = 64 * 1024  # what a pipe holds if nothing else is set (pipe(7))


def append(log: OutputLog, data: bytes) -> None:
    """Let the log read these bytes; small ones are one write, which wakes its readers once."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for start in range(0, len(data), PIPE_BYTES):
            left = os.write(write_fd, data[start : start + PIPE_BYTES])
            while left:
                left -= log.read_from(read_fd, left)
    finally:
        os.close(read_fd)
        os.close(write_fd)
