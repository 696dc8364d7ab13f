"""Bugs planted in real code: proof that each technique finds what it is said to find.

A bug is a change of one source tree. A copy of the tree is broken in that one place, and its
scenario is explored with every technique, once for each of several seeds, in a process of its own
that imports the broken copy. A technique that is said to find the bug must find it for every seed;
an exhaustive one is tried with the first only, unless all is asked for (see `apart.orders_for`).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.mutation.mutation import Mutation, broken_copy, diff
from harness.races.exploration import Exploration
from harness.races.scenario import load_module
from harness.races.subprocess_explorer import Order, explore_apart
from harness.record.verdict import BrokenError

PLANTED_NAME: Final = "PLANTED"
SEEDS: Final = (1, 2, 3, 4, 5)
# Where a bug is looked for by chance, this many schedules must be enough, for each seed.
SCHEDULES: Final = 500


@dataclass(frozen=True, slots=True)
class PlantedRace:
    """A race planted in real code.

    Attributes:
        mutation: the fault; `caught_by` names the scenario in which it must show.
        found_by: the techniques that must find it, whatever the seed.
    """

    mutation: Mutation
    found_by: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the broken code does, as a clause."""
        return self.mutation.name

    @property
    def scenario(self) -> str:
        """The scenario in which it must show."""
        return self.mutation.caught_by


def planted(
    name: str, scenario: str, file: str, change: str, found_by: tuple[str, ...]
) -> PlantedRace:
    """Return a race planted in one file below the source tree, by a change written as a diff."""
    return PlantedRace(Mutation(name, diff(file, change), scenario), found_by)


@dataclass(frozen=True, slots=True)
class PlantedProof:
    """What became of a bug."""

    race: PlantedRace
    searches: tuple[Exploration, ...]

    def of(self, technique: str) -> tuple[Exploration, ...]:
        """Return the searches with one technique."""
        return tuple(search for search in self.searches if search.technique == technique)

    @property
    def missed(self) -> tuple[str, ...]:
        """The techniques that must find it and did not, for one seed or more."""
        return tuple(
            name
            for name in self.race.found_by
            if not self.of(name) or not all(search.failure for search in self.of(name))
        )


def load_planted(path: Path) -> tuple[PlantedRace, ...]:
    """Return the bugs of a file.

    Raises:
        BrokenError: it has none.
    """
    planted: tuple[PlantedRace, ...] = getattr(load_module(path), PLANTED_NAME, ())
    if not planted:
        raise BrokenError(f"{path} has no {PLANTED_NAME}; a file of bugs ends in that tuple")
    return planted


def prove(
    race: PlantedRace, source: Path, files: Sequence[Path], orders: Sequence[Order]
) -> PlantedProof:
    """Break a copy of the source tree, and explore as ordered.

    Raises:
        BrokenError: the bug does not fit the source, or a search came to no end.
    """
    with planted_copy(race, source) as tree:
        return PlantedProof(race, tuple(explore_apart(files, orders, tree)))


@contextmanager
def planted_copy(race: PlantedRace, source: Path) -> Iterator[Path]:
    """Yield a copy of the source tree that has the race; it is removed at the end.

    Raises:
        BrokenError: the change does not fit the source.
    """
    with tempfile.TemporaryDirectory(prefix="races-planted-") as directory:
        copy = Path(directory) / source.name
        yield broken_copy(race.mutation, source, copy, parts=(".",), edited=".")
