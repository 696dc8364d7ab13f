"""Races planted in real code: proof that each technique finds what it is claimed to find.

A planted race is a mutation of one source tree. Its scenario is explored in a subprocess that
imports a broken copy of the tree, with several techniques and once for each of several seeds. A
technique in `found_by` must find the race with every seed. An exhaustive one runs with the first
seed only, unless every seed is requested (see `subprocess_explorer.plan_explorations`).
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
from harness.races.subprocess_explorer import PlannedExploration, explore_in_subprocess
from harness.record.verdict import BrokenError

PLANTED_NAME: Final = "PLANTED"
SEEDS: Final = (1, 2, 3, 4, 5)
# A randomised technique must find a race within this many schedules, for each seed.
SCHEDULES: Final = 500


@dataclass(frozen=True, slots=True)
class PlantedRace:
    """A race planted in real code.

    Attributes:
        mutation: the fault; `caught_by` names the scenario that must fail.
        found_by: the techniques that must find it with every seed.
    """

    mutation: Mutation
    found_by: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the broken code does, as a clause."""
        return self.mutation.name

    @property
    def scenario(self) -> str:
        """The scenario that must fail."""
        return self.mutation.caught_by


def planted_race(
    name: str, scenario: str, file: str, change: str, found_by: tuple[str, ...]
) -> PlantedRace:
    """Return a race planted in one file below the source tree by a change, written as a diff."""
    return PlantedRace(Mutation(name, diff(file, change), scenario), found_by)


@dataclass(frozen=True, slots=True)
class PlantedProof:
    """The explorations of a planted race."""

    race: PlantedRace
    explorations: tuple[Exploration, ...]

    def of(self, technique: str) -> tuple[Exploration, ...]:
        """Return the explorations with one technique."""
        return tuple(each for each in self.explorations if each.technique == technique)

    @property
    def missed(self) -> tuple[str, ...]:
        """The techniques that must find it and missed it with at least one seed."""
        return tuple(
            name
            for name in self.race.found_by
            if not self.of(name) or not all(each.failure for each in self.of(name))
        )


def load_planted(path: Path) -> tuple[PlantedRace, ...]:
    """Return the planted races of a file.

    Raises:
        BrokenError: it has none.
    """
    races: tuple[PlantedRace, ...] = getattr(load_module(path), PLANTED_NAME, ())
    if not races:
        raise BrokenError(f"{path} must define a non-empty tuple {PLANTED_NAME} of planted races")
    return races


def prove(
    race: PlantedRace, source: Path, files: Sequence[Path], plan: Sequence[PlannedExploration]
) -> PlantedProof:
    """Break a copy of the source tree and carry out a plan of explorations on it.

    Raises:
        BrokenError: the mutation does not fit the source, or an exploration did not finish.
    """
    with plant_in_copy(race, source) as tree:
        return PlantedProof(race, tuple(explore_in_subprocess(files, plan, tree)))


@contextmanager
def plant_in_copy(race: PlantedRace, source: Path) -> Iterator[Path]:
    """Yield a copy of the source tree that has the race; remove it at the end.

    Raises:
        BrokenError: the mutation does not fit the source.
    """
    with tempfile.TemporaryDirectory(prefix="races-planted-") as directory:
        copy = Path(directory) / source.name
        yield broken_copy(race.mutation, source, copy, parts=(".",), edited=".")
