"""The deny list: a file of serial numbers of client certificates that are no longer accepted.

One serial number per line, in hexadecimal, as the audit lines and `openssl x509` show it: `08ab`,
`0x08ab`, `08:AB`, `serial=08AB`, `Serial Number: 08:ab`, `Serial Number: 2219 (0x8ab)`. Text after
a `#` is a comment. A changed file is reloaded automatically, at the next check.

A typing error must not readmit a denied client. While a line is invalid, the valid ones are denied,
and so is all that was denied before; a list without a valid line therefore changes nothing. While
the file is missing, unreadable or writable by everyone, the previous list stays in force. Each of
these is logged. A server starts with a list that has a valid line, or no invalid one.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from worker_service.errors import ConfigurationError, NotAuthenticatedError
from worker_service.watched_files import Contents, WatchedFiles

logger = logging.getLogger(__name__)

_ADVICE: Final = (
    "write one serial number per line, in hexadecimal, as `openssl x509 -noout -serial` shows it"
)
# After the label: hexadecimal digits; bytes in pairs; the decimal and hexadecimal form of a short
# number. Two numbers on a line are none of these.
_NUMBER: Final = re.compile(
    r"(?:serial ?(?:number ?)?[=:] ?)?"
    r"(?:(?:0x)?(?P<digits>[0-9a-f]+)"
    r"|(?P<bytes>[0-9a-f]{1,2}(?:[: ][0-9a-f]{2})+)"
    r"|[0-9]+ \(0x(?P<short>[0-9a-f]+)\))",
    re.IGNORECASE | re.ASCII,
)
_UTF_16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_REPORTED_LINES: Final = 5  # of a file that is something else entirely
_SHOWN_CHARACTERS: Final = 40


class DenyList:
    """The certificates that are refused although they are valid.

    Raises:
        ConfigurationError: the file cannot be read, everyone can write it, or it has invalid lines
            and no valid one.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFiles(
            (path,), _accept, refusal="the previous deny list stays in force", advice=_ADVICE
        )

    def check(self, serial_number: int) -> None:
        """Check a certificate against the file as it is now.

        Raises:
            NotAuthenticatedError: it is on the list.
        """
        if serial_number in self._file.current():
            raise NotAuthenticatedError(
                f"the client certificate with serial number {serial_number:x} is no longer "
                "accepted by this server; use another one"
            )


def _accept(files: Sequence[Contents], previous: frozenset[int] | None) -> frozenset[int]:
    """Return the serial numbers to deny, and log which lines are invalid.

    Raises:
        ConfigurationError: see `DenyList`; of invalid lines only at the start.
    """
    (file,) = files
    if file.everyone_can_write:
        raise ConfigurationError(
            f"deny list {file.path} has mode {file.mode:04o}, everyone can write it; "
            f"chmod o-w {file.path}"
        )
    serials, invalid = _parse(file)
    if not invalid:
        logger.info("the deny list has %d serial numbers", len(serials))
        return serials
    if previous is None and not serials:
        raise ConfigurationError(f"{invalid[0]}, and no other line is; {_ADVICE}")
    for text in invalid[:_REPORTED_LINES]:
        logger.warning("%s; %s", text, _ADVICE)
    in_force = serials | (previous or frozenset())
    logger.warning(
        "the deny list has %d invalid lines; until they are corrected, its %d valid ones and all "
        "that was denied before are denied: %d serial numbers",
        len(invalid), len(serials), len(in_force),
    )  # fmt: skip
    return in_force


def _parse(file: Contents) -> tuple[frozenset[int], list[str]]:
    """Return the serial numbers, and a text for each invalid line."""
    encoding = "utf-16" if file.data.startswith(_UTF_16_MARKS) else "utf-8-sig"
    serials, invalid = set(), []
    for number, line in enumerate(file.data.decode(encoding, "replace").split("\n"), 1):
        words = " ".join(line.partition("#")[0].split())
        if not words or words.casefold() == "serial number:":  # openssl: the number is below it
            continue
        found = _NUMBER.fullmatch(words)
        if found is None:
            shown = repr(words[:_SHOWN_CHARACTERS])
            invalid.append(f"deny list {file.path}, line {number}: {shown} is not a serial number")
        else:
            serials.add(int(re.sub("[: ]", "", found[found.lastgroup or 0]), 16))
    return frozenset(serials), invalid
