"""The deny list: a file of serial numbers of client certificates that are no longer accepted.

One serial number per line, in hexadecimal, as the audit lines and `openssl x509 -serial` show it;
text after a `#` is a comment. A changed file is reloaded automatically, at the next check. If it is
invalid or missing, that is logged and the previous list stays in force: a typing error must not
readmit a denied client. A change goes unnoticed if the file system stamps it with a time long past,
as that of a host whose clock is behind may.
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

# Many file systems stamp changes to the clock tick, some to a second or two: a file that is changed
# twice within one may look the same. Until a change is this old, the file is read at every check.
SETTLED_S: Final = 2.0

type _Stamp = tuple[int, int, int] | None


class DenyList:
    """The certificates that are refused although they are valid.

    Shared state and its guard: all but `_path` under `_lock`.

    Raises:
        ConfigurationError: the file cannot be read, or a line is not a serial number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._settled = _is_settled(self._stamp)
        self._serials = _load(path)
        self._reported = _in_force(self._serials)

    def check(self, serial_number: int) -> None:
        """Check a certificate against the file as it is now.

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
                self._reload(stamp)
            return self._serials

    def _reload(self, stamp: _Stamp) -> None:
        changed = stamp != self._stamp
        self._stamp, self._settled = stamp, _is_settled(stamp)
        try:
            self._serials = _load(self._path)
            level, text = logging.INFO, _in_force(self._serials)
        except ConfigurationError as error:
            level, text = logging.WARNING, f"the previous deny list stays in force: {error}"
            self._settled = False  # its cause may end without a new stamp: a lack of descriptors
        if changed or text != self._reported:  # once, not at every check
            self._reported = text
            logger.log(level, "%s", text)


def _in_force(serials: frozenset[int]) -> str:
    return f"the deny list has {len(serials)} serial numbers"


def _is_settled(stamp: _Stamp) -> bool:
    """Return whether any later change of the file is sure to give it another stamp."""
    return stamp is None or abs(time.time_ns() - stamp[1]) >= SETTLED_S * 1e9


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    # The change time: set by every change of content, mode or name, and it cannot be set back.
    return status.st_ino, status.st_ctime_ns, status.st_size


def _load(path: Path) -> frozenset[int]:
    try:
        with path.open(encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"deny list {path}: {error}; write one serial number per line, in hexadecimal"
        ) from error
    if mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"deny list {path} has mode {mode:04o}, everyone can write it; chmod o-w {path}"
        )
    words = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    return frozenset(_serial(path, number, word) for number, word in words if word)


def _serial(path: Path, number: int, word: str) -> int:
    try:
        return int(word.replace(":", ""), 16)
    except ValueError:
        raise ConfigurationError(
            f"deny list {path}, line {number}: {word!r} is not a serial number; write it in "
            "hexadecimal, as the audit lines show it"
        ) from None
