"""The checks that a server is known to fail: a file with one `TARGET:CHECK  # reason` a line.

A failure that is listed does not fail a run. A listed check that passes does, and so does an entry
that the run did not confirm, so that the file cannot outlive the faults that it names. An entry
names one check, since a pattern of checks would excuse those that are added later.
"""

import difflib
import glob
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from harness.record.verdict import BrokenError, Finding

_ENTRY: Final = re.compile(r"(?P<target>\S+):(?P<check>[A-Za-z0-9_.-]+)(?:\s+#\s*(?P<reason>.*))?")
_FORM: Final = "TARGET:CHECK  # reason"
_UNCHOSEN: Final = (
    "this check is not chosen; choose it with -k and --area, or remove the entry for this run"
)
_VALUE_CHARACTERS_MAX: Final = 60
_SHOWN_CHARACTERS_MAX: Final = 100
_HEAD: Final = (
    "# Checks that the server is known to fail: TARGET:CHECK  # reason\n"
    "# TARGET is a glob. Each entry must FAIL when it is run; remove it once it passes.\n"
)


@dataclass(frozen=True, slots=True)
class KnownFailure:
    """One entry.

    Attributes:
        target: a target's name, or a glob of names.
        check: the check's name.
        reason: why it fails, for people.
        line: its line in the file, from 1.
    """

    target: str
    check: str
    reason: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.target}:{self.check}"

    def matches(self, target: str, name: str) -> bool:
        """Return whether it lists this check of this target."""
        # As a glob, the brackets of [::1]:50051 are a set of characters.
        return self.check == name and (target == self.target or fnmatchcase(target, self.target))


def read_known_failing(path: Path) -> tuple[KnownFailure, ...]:
    """Read a file's entries.

    Raises:
        BrokenError: it cannot be read, or a line has another form, no reason, or is a duplicate.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise BrokenError(f"{path} is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise BrokenError(f"{path}: {error.strerror}") from error
    found: dict[str, KnownFailure] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = _entry(line.strip(), number, f"{path}, line {number}")
        if (earlier := found.get(str(entry))) is not None:
            raise BrokenError(
                f"{path}, line {number}: {entry} is on line {earlier.line}, too; remove one"
            )
        found[str(entry)] = entry
    return tuple(found.values())


def _entry(text: str, number: int, place: str) -> KnownFailure:
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise BrokenError(f"{place}: {text[:_SHOWN_CHARACTERS_MAX]!r} is invalid; write {_FORM}")
    reason = (match["reason"] or "").strip()
    if not reason:
        raise BrokenError(f"{place}: {match['target']}:{match['check']} has no reason; add one: "
                          f"{_FORM}")  # fmt: skip
    return KnownFailure(match["target"], match["check"], reason, number)


def require_run(
    known: Iterable[KnownFailure],
    file: Path,
    *,
    every_check: Collection[str],
    checks: Collection[str],
    targets: Collection[str],
    unchosen: str = _UNCHOSEN,
) -> None:
    """Reject entries that a run cannot confirm, before it begins.

    Args:
        known: the entries.
        file: that has them.
        every_check: the names of all checks.
        checks: the names of the chosen ones.
        targets: the names of the chosen targets.
        unchosen: what is wrong with a check that is not chosen, and what to change.

    Raises:
        BrokenError: an entry's check does not exist, or the run does not include it.
    """
    for entry in known:
        place = f"{file}, line {entry.line}: {entry}"
        if entry.check not in every_check:
            near = difflib.get_close_matches(entry.check, every_check, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BrokenError(f"{place}: this check does not exist; {hint}check --list shows all")
        if entry.check not in checks:
            raise BrokenError(f"{place}: {unchosen}")
        if not any(entry.matches(target, entry.check) for target in targets):
            raise BrokenError(f"{place}: no target matches; the targets are {', '.join(targets)}")


def entries_text(entries: Iterable[KnownFailure]) -> str:
    """Return entries as the text of a file."""
    return _HEAD + "".join(f"{entry}  # {entry.reason}\n" for entry in entries)


def new_entry(
    target: str, name: str, finding: Finding | None, *, only_target: bool
) -> KnownFailure:
    """Return an entry for a failure; its reason is a finding.

    Args:
        target: that failed.
        name: the check's.
        finding: its first.
        only_target: whether the run has no other target. The entry then is for any, since the
            address of a server changes.
    """
    reason = "no finding"
    if finding is not None:
        reason = _short(finding.promise)
        reason += f"; got {_short(finding.got)}" if finding.got else ""
        reason += f"; want {_short(finding.want)}" if finding.want else ""
    return KnownFailure("*" if only_target else glob.escape(target), name, reason)


def _short(text: str) -> str:
    """Return a text of a server's on one line, printable and bounded."""
    line = " ".join(text.split())
    if len(line) > _VALUE_CHARACTERS_MAX:
        line = f"{line[:_VALUE_CHARACTERS_MAX]}..."
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
