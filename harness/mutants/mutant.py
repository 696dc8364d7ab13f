"""What a mutant is, and how a copy of the project becomes one."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.verdict import BrokenError

SERVICE: Final = "impl/worker_service"
PARTS_TO_COPY: Final = ("impl", "proto")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: what the broken server does, as a clause.
        file: below `impl/worker_service`.
        old: the text to replace; it must stand there once.
        new: what takes its place.
        caught_by: the check that must FAIL.
        also: checks of other areas that rightly fail too: the same promise is part of theirs.
        more: further edits that the fault takes, where two layers keep the same promise.
    """

    name: str
    file: str
    old: str
    new: str
    caught_by: str
    also: tuple[str, ...] = ()
    more: tuple[tuple[str, str, str], ...] = ()

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All edits: file, text to replace, what takes its place."""
        return ((self.file, self.old, self.new), *self.more)


def broken_copy(mutant: Mutant | None, checkout: Path, directory: Path) -> Path:
    """Copy the service to a directory and break it there; None copies it as it is.

    Raises:
        BrokenError: the text to replace does not stand there exactly once.
    """
    for part in PARTS_TO_COPY:
        # A compiled file could be taken for the broken source's.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / part, directory / part, ignore=ignored)
    for file, old, new in mutant.edits if mutant is not None else ():
        path = directory / SERVICE / file
        text = path.read_text()
        if text.count(old) != 1:
            raise BrokenError(
                f"mutant {mutant and mutant.name!r}: its text stands {text.count(old)} times in "
                f"{file}; it must stand there once"
            )
        path.write_text(text.replace(old, new))
    return directory
