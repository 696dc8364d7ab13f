"""Bugs planted in real code: proof that each technique finds what it is said to find.

A bug is a change of one source tree. A copy of the tree is broken in that one place, and its
scenario is explored with every technique, once for each of several seeds, in a process of its own
that imports the broken copy. A technique that is said to find the bug must find it for every seed;
an exhaustive one is tried with the first only, unless all is asked for (see `apart.orders_for`).
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.races.apart import Order, explore_apart
from harness.races.exploration import Exploration
from harness.races.scenario import load_module
from harness.verdict import BrokenError

PLANTED_NAME: Final = "PLANTED"
SEEDS: Final = (1, 2, 3, 4, 5)
# Where a bug is looked for by chance, this many schedules must be enough, for each seed.
SCHEDULES: Final = 500


@dataclass(frozen=True, slots=True)
class Bug:
    """One fault.

    Attributes:
        name: what the broken code does, as a clause.
        scenario: in which it must show.
        file: below the source tree.
        change: lines as in a diff, "-" before what goes, "+" before what comes; a line "@@" parts
            hunks, and what a hunk replaces must stand in the file once.
        found_by: the techniques that must find it, whatever the seed.
    """

    name: str
    scenario: str
    file: str
    change: str
    found_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of a bug."""

    bug: Bug
    searches: tuple[Exploration, ...]

    def of(self, technique: str) -> tuple[Exploration, ...]:
        """Return the searches with one technique."""
        return tuple(search for search in self.searches if search.technique == technique)

    @property
    def missed(self) -> tuple[str, ...]:
        """The techniques that must find it and did not, for one seed or more."""
        return tuple(
            name
            for name in self.bug.found_by
            if not self.of(name) or not all(search.failure for search in self.of(name))
        )


def load_planted(path: Path) -> tuple[Bug, ...]:
    """Return the bugs of a file.

    Raises:
        BrokenError: it has none.
    """
    planted: tuple[Bug, ...] = getattr(load_module(path), PLANTED_NAME, ())
    if not planted:
        raise BrokenError(f"{path} has no {PLANTED_NAME}; a file of bugs ends in that tuple")
    return planted


def prove(bug: Bug, source: Path, files: Sequence[Path], orders: Sequence[Order]) -> Proof:
    """Break a copy of the source tree, and explore as ordered.

    Raises:
        BrokenError: the bug does not fit the source, or a search came to no end.
    """
    with broken_copy(bug, source) as tree:
        return Proof(bug, tuple(explore_apart(files, orders, tree)))


@contextmanager
def broken_copy(bug: Bug, source: Path) -> Iterator[Path]:
    """Give a copy of the source tree with the bug in it, until the end.

    Raises:
        BrokenError: the bug does not fit the source.
    """
    with tempfile.TemporaryDirectory(prefix="races-planted-") as directory:
        tree = Path(directory) / source.name
        shutil.copytree(source, tree, ignore=shutil.ignore_patterns("__pycache__"))
        for hunk in bug.change.split("@@\n"):
            _replace(tree / bug.file, _side(hunk, "-"), _side(hunk, "+"), bug)
        yield tree


def _side(hunk: str, sign: str) -> str:
    """Return the text before ("-") or after ("+") a change."""
    return "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in {sign, " ", ""})


def _replace(path: Path, old: str, new: str, bug: Bug) -> None:
    text = path.read_text()
    if text.count(old) != 1:
        raise BrokenError(
            f"planted {bug.name!r}: its text stands {text.count(old)} times in {path.name}; it "
            f"must stand there once:\n{old}"
        )
    path.write_text(text.replace(old, new))
