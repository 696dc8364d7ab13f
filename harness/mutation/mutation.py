"""A mutation (a fault planted on purpose), and a copy of a source tree with that fault.

All three kinds of mutation test use this model: of checks (`make selftest`), of unit tests (`make
mutants`) and of race scenarios (`make race`).
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.record.verdict import BrokenError

SERVICE: Final = "impl/worker_service"
# The parts of a checkout that a server needs.
SERVER_PARTS: Final = ("impl", "proto")
_HUNK_SEPARATOR: Final = "@@\n"


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement of text.

    Attributes:
        file: relative to the mutated source.
        old: the text to replace; it occurs in the file exactly once.
        new: its replacement.
    """

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault.

    Attributes:
        name: what the broken program does, as a clause.
        edits: one, or several if several layers keep the same promise.
        caught_by: the check, test or race scenario that must fail.
        also: control checks of other areas that may fail too, since they test the same promise.
    """

    name: str
    edits: tuple[Edit, ...]
    caught_by: str
    also: tuple[str, ...] = ()


def diff(file: str, change: str) -> tuple[Edit, ...]:
    """Return the edits of a change that is written as a diff.

    Args:
        file: relative to the mutated source.
        change: lines that begin with "-" (removed), "+" (added) or " " (context); a line "@@"
            separates hunks.
    """
    return tuple(
        Edit(file, _side(hunk, "-"), _side(hunk, "+")) for hunk in change.split(_HUNK_SEPARATOR)
    )


def _side(hunk: str, sign: str) -> str:
    """Return the text before ("-") or after ("+") a change."""
    return "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in {sign, " ", ""})


def broken_copy(
    mutation: Mutation | None,
    source: Path,
    copy: Path,
    *,
    parts: Sequence[str] = SERVER_PARTS,
    edited: str = SERVICE,
    ignored: Sequence[str] = (),
) -> Path:
    """Copy parts of a source tree, apply a mutation to the copy, and return it.

    Args:
        mutation: the fault; None copies without one.
        source: the tree.
        copy: the directory to copy to.
        parts: files and directories of the tree; "." is all of it.
        edited: the directory of the tree that the edits' files are relative to.
        ignored: names that are not copied; compiled files never are, since Python could run them
            instead of the mutated source.

    Raises:
        BrokenError: a text to replace does not occur exactly once.
    """
    ignore = shutil.ignore_patterns("__pycache__", *ignored)
    for part in parts:
        if (source / part).is_dir():
            shutil.copytree(source / part, copy / part, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, copy / part)
    if mutation is not None:
        for edit in mutation.edits:
            path = copy / edited / edit.file
            path.write_text(edited_text(mutation, edit, path.read_text()))
    return copy


def edited_text(mutation: Mutation, edit: Edit, text: str) -> str:
    """Return a file's text with an edit made.

    Raises:
        BrokenError: the text to replace does not occur exactly once.
    """
    if text.count(edit.old) != 1:
        raise BrokenError(
            f"mutation {mutation.name!r}: its text occurs {text.count(edit.old)} times in "
            f"{edit.file}; it must occur exactly once:\n{edit.old}"
        )
    return text.replace(edit.old, edit.new)
