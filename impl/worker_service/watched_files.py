"""Files that are loaded again once they have changed, or were not accepted yet.

Nothing watches in the background: each `current()` compares the files' inode, size, change time and
modification time, and reads them again if one differs. The value in use stays until new contents
are accepted, so a failed change costs nothing. A change goes unnoticed if the file system stamps
it with a time long past, as that of a host whose clock is behind may.
"""

import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker_service.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Many file systems stamp changes to the clock tick, some to a second or two: a file that is changed
# twice within one may look the same. Until a change is this old, the files are read at every call.
SETTLED_S: Final = 2.0
# Contents that were refused may be accepted later without a change: a certificate's validity
# begins. The bound is for those that cannot: to check a key of 4096 bits takes 0.25 s.
RETRY_S: Final = 5.0

type _Stamp = tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True, slots=True)
class Contents:
    """A file as it was read: its permission bits and its bytes."""

    path: Path
    mode: int
    data: bytes

    @property
    def everyone_can_write(self) -> bool:
        """Whether its mode allows every user to write it."""
        return bool(self.mode & stat.S_IWOTH)


def read_files(paths: Sequence[Path], advice: str) -> tuple[Contents, ...]:
    """Read files.

    Args:
        paths: the files.
        advice: what to change if one cannot be read; the end of the error's text.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    return tuple(_read(path, advice) for path in paths)


class WatchedFiles[T]:
    """A value that is made from files, and made again when they change.

    Shared state and its guard: all but the arguments under `_lock`.

    Args:
        paths: the files.
        accept: makes the value from the files' contents and the value in use (None at first), or
            raises a ConfigurationError. Called once for each contents, and every `RETRY_S` while
            they are refused; never by two threads at once.
        refusal: the log's words for contents that are refused.
        advice: see `read_files`.

    Raises:
        ConfigurationError: the files cannot be read, or are not accepted.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        accept: Callable[[Sequence[Contents], T | None], T],
        *,
        refusal: str,
        advice: str,
    ) -> None:
        self._paths = paths
        self._accept = accept
        self._refusal = refusal
        self._advice = advice
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._settled = _is_settled(self._stamp)
        self._seen: tuple[Contents, ...] | None = read_files(paths, advice)
        self._value = accept(self._seen, None)
        self._refused = ""  # the reason; empty if `_value` is of the files as they are
        self._retry_at_s = math.inf

    def current(self) -> T:
        """Return the value of the files as they are, or the last one that was accepted."""
        with self._lock:
            stamp = self._stamp_now()
            if stamp != self._stamp or not self._settled or self._refused:
                self._reload(stamp)
            return self._value

    def _reload(self, stamp: _Stamp) -> None:
        changed = stamp != self._stamp
        self._stamp, self._settled = stamp, _is_settled(stamp)
        try:
            contents = read_files(self._paths, self._advice)
        except ConfigurationError as error:
            self._seen = None
            self._refuse(error, report=changed or str(error) != self._refused)
            return
        new = contents != self._seen
        if not new and time.monotonic() < self._retry_at_s:
            return
        self._seen = contents
        try:
            self._value = self._accept(contents, self._value)
        except ConfigurationError as error:
            self._retry_at_s = time.monotonic() + RETRY_S
            self._refuse(error, report=new)
        else:
            self._refused, self._retry_at_s = "", math.inf

    def _refuse(self, error: ConfigurationError, *, report: bool) -> None:
        """Keep the value; log the reason once, not at every call: any client can cause calls."""
        self._refused = str(error)
        if report:
            logger.warning("%s: %s", self._refusal, error)

    def _stamp_now(self) -> _Stamp:
        try:
            found = [path.stat() for path in self._paths]
        except OSError:
            return None  # between two renames, for example: reading reports what is missing
        # The change time is set by every change of content, mode or name, and cannot be set back.
        return tuple(
            (status.st_ctime_ns, status.st_mtime_ns, status.st_ino, status.st_size)
            for status in found
        )


def _is_settled(stamp: _Stamp) -> bool:
    """Return whether any later change of the files is sure to give them another stamp."""
    now_ns = time.time_ns()
    return stamp is None or all(
        abs(now_ns - changed_ns) >= SETTLED_S * 1e9 for changed_ns, *_ in stamp
    )


def _read(path: Path, advice: str) -> Contents:
    try:
        with path.open("rb") as file:
            return Contents(path, stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; {advice}") from error
