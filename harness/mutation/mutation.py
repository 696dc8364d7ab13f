"""A fault planted on purpose, and a copy of a source tree that has it.

The one model for all three kinds of proof: that a check (`make selftest`), a unit test
(`make mutants`) or a race scenario (`make race`) notices a broken program.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.record.verdict import BrokenError

SERVICE: Final = "impl/worker_service"
# What of the checkout a broken server is run from.
SERVER_PARTS: Final = ("impl", "proto")
_HUNK_SEPARATOR: Final = "@@\n"


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement.

    Attributes:
        file: relative to the source that the mutation is of.
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
        edits: one, or more where several layers keep the same promise.
        caught_by: the check, the test or the race scenario that must notice.
        also: checks of other areas that rightly fail too: the same promise is part of theirs.
    """

    name: str
    edits: tuple[Edit, ...]
    caught_by: str
    also: tuple[str, ...] = ()


def diff(file: str, change: str) -> tuple[Edit, ...]:
    """Return the edits of a change written as a diff.

    Args:
        file: relative to the source.
        change: lines with "-" before what goes, "+" before what comes, " " before what stays; a
            line "@@" separates hunks.
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
    """Copy parts of a source tree, break the copy, and return it.

    Args:
        mutation: the fault; None copies without one.
        source: the tree.
        copy: where to.
        parts: files and directories below the tree; "." is all of it.
        edited: the directory below the tree that the edits' files are relative to.
        ignored: names that stay behind; compiled files always do, as they could be taken for the
            broken source's.

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
