"""The deny list: serial numbers of client certificates that are no longer good, from a file.

One serial number a line, in hexadecimal, as the audit lines and `openssl x509 -serial` show it;
what follows a `#` is a comment. A changed file is taken up by itself, at the next look. One that is
then found bad, or gone, is logged, and the list read before stays in force: a slip of the pen lets
nobody in who was out. Not seen are changes that a file system stamps with a time long past, as one
of a machine whose clock is behind may.
"""

import logging
import os
import stat
import threading
import time
from pathlib import Path
from typing import Final

from worker_service.errors import ConfigurationError, NotAuthenticatedError

logger = logging.getLogger(__name__)

# Many file systems stamp changes by the tick, some by the second or two: a file that is changed
# twice within one may look the same. Until the change is so old, the file is read at every look.
SETTLED_S: Final = 2.0

type _Stamp = tuple[int, int, int] | None


class DenyList:
    """Who is refused whatever the certificate says.

    Shared state and its guard: all but `_path` under `_lock`.

    Raises:
        ConfigurationError: the file cannot be read, or has a line that is no serial number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._settled = _is_settled(self._stamp)
        self._serials = _load(path)
        self._told = _in_force(self._serials)

    def check(self, serial_number: int) -> None:
        """Look a certificate up, in the file as it is now.

        Raises:
            NotAuthenticatedError: it is on the list.
        """
        if serial_number in self._current():
            raise NotAuthenticatedError(
                f"the client certificate with serial number {serial_number:x} is no longer "
                "accepted by this server; use another one"
            )

    def _current(self) -> frozenset[int]:
        stamp = _stamp(self._path)
        with self._lock:
            if stamp != self._stamp or not self._settled:
                self._take_up(stamp)
            return self._serials

    def _take_up(self, stamp: _Stamp) -> None:
        changed = stamp != self._stamp
        self._stamp, self._settled = stamp, _is_settled(stamp)
        try:
            self._serials = _load(self._path)
            level, told = logging.INFO, _in_force(self._serials)
        except ConfigurationError as error:
            level, told = logging.WARNING, f"the deny list read before stays in force: {error}"
            self._settled = False  # what mends it may leave no mark: a descriptor is free again
        if changed or told != self._told:  # once, not at every look
            self._told = told
            logger.log(level, "%s", told)


def _in_force(serials: frozenset[int]) -> str:
    return f"{len(serials)} serial numbers are denied now"


def _is_settled(stamp: _Stamp) -> bool:
    """Tell whether whatever changes the file from now on gives it another time."""
    return stamp is None or abs(time.time_ns() - stamp[1]) >= SETTLED_S * 1e9


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    # Of its times the one that a change of content, mode or name sets, and nobody can set back.
    return status.st_ino, status.st_ctime_ns, status.st_size


def _load(path: Path) -> frozenset[int]:
    try:
        with path.open(encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"deny list {path}: {error}; write one serial number a line, in hexadecimal"
        ) from error
    if mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"deny list {path} has mode {mode:04o}, everybody may write it; chmod o-w {path}"
        )
    words = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    return frozenset(_serial(path, number, word) for number, word in words if word)


def _serial(path: Path, number: int, word: str) -> int:
    try:
        return int(word.replace(":", ""), 16)
    except ValueError:
        raise ConfigurationError(
            f"deny list {path}, line {number}: {word!r} is no serial number; write it in "
            "hexadecimal, as the audit lines show it"
        ) from None
