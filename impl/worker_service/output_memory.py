"""A bound on the memory of all jobs' output together.

Logs of jobs that have ended give way first, the earliest end first; then the largest log of a
running job. Of a log the oldest bytes go first, a segment at a time, and every reader gets the
exact number of bytes that it missed.

Used by the reactor's thread only, which is the one writer of every log, so it needs no lock; other
threads read `total_bytes`, one number.
"""

import logging

from worker_service.log import OutputLog

logger = logging.getLogger(__name__)


class OutputMemory:
    """Bounds the bytes that all logs hold: after each write, at most `limit_bytes`.

    Counted is what has been written into a log's segments. Not counted: a write (of at most a
    segment) until `written` makes room for it, the unwritten end of each log's last segment, a
    dropped segment while a reader copies from it, and messages, which `follow.ByteBudget` bounds.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        logger.info("all output together may take %d bytes (--output-memory)", limit_bytes)
        self._total_bytes = 0
        self._running: dict[OutputLog, int] = {}  # with what each held when it was last counted
        self._ended: dict[OutputLog, int] = {}  # in the order of their ends
        self._warned = False

    @property
    def limit_bytes(self) -> int:
        """The bound."""
        return self._limit_bytes

    def total_bytes(self) -> int:
        """Return what all logs hold; any thread may ask."""
        return self._total_bytes

    def written(self, log: OutputLog) -> None:
        """Count what was written to the log of a running job, and make room for it."""
        self._count(self._running, log)
        while self._total_bytes > self._limit_bytes:
            self._warn()
            self._drop_one()

    def ended(self, log: OutputLog) -> None:
        """Take note that a job has ended: its log gives way before those of running jobs."""
        self._ended[log] = self._running.pop(log, 0)
        self._count(self._ended, log)

    def forget(self, log: OutputLog) -> None:
        """Drop all bytes of a log whose job is removed. Its readers get the missed bytes."""
        while log.held_bytes():
            log.drop_oldest()
        for logs in (self._running, self._ended):
            self._total_bytes -= logs.pop(log, 0)

    def _count(self, logs: dict[OutputLog, int], log: OutputLog) -> None:
        held_bytes = log.held_bytes()
        self._total_bytes += held_bytes - logs.get(log, 0)
        logs[log] = held_bytes

    def _drop_one(self) -> None:
        """Drop one segment, of the log that has to give way first."""
        if self._ended:
            log = next(iter(self._ended))
            log.drop_oldest()
            self._count(self._ended, log)
            if not log.held_bytes():
                del self._ended[log]
        else:
            log = max(self._running, key=self._running.__getitem__)
            log.drop_oldest()
            self._count(self._running, log)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "all output together has reached %d bytes (--output-memory): from now on the "
                "oldest is dropped, first of the jobs that ended longest ago; --log-retention "
                "limits each job's own", self._limit_bytes,
            )  # fmt: skip
