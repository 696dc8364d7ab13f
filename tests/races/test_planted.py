"""The tables: each scenario has a planted race, and each mutation fits. `make race` proves them."""

from pathlib import Path

import pytest

from harness.races.exploration import TECHNIQUES
from harness.races.planting import PlantedRace, plant_in_copy, planted_race
from harness.races.scenario import load_scenarios
from harness.record.verdict import BrokenError
from tests.races.planted import PLANTED

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "impl"
SCENARIOS = {scenario.name for scenario in load_scenarios([HERE / "scenarios"])}


def test_each_scenario_has_a_planted_race() -> None:
    assert {race.scenario for race in PLANTED} == SCENARIOS


@pytest.mark.parametrize("race", PLANTED, ids=lambda race: race.name)
def test_planted_race_fits_the_source_and_names_known_techniques(race: PlantedRace) -> None:
    assert race.found_by
    assert set(race.found_by) <= {technique.name for technique in TECHNIQUES}
    with plant_in_copy(race, SOURCE) as tree:
        for edit in race.mutation.edits:
            broken = (tree / edit.file).read_text()
            assert broken != (SOURCE / edit.file).read_text()
            compile(broken, edit.file, "exec")


def test_planted_race_that_does_not_fit_the_source_is_broken() -> None:
    change = "-no such line\n+x\n"
    race = planted_race("misses", "log.follow", "worker_service/log.py", change, ("dfs",))
    with pytest.raises(BrokenError, match="occurs 0 times"), plant_in_copy(race, SOURCE):
        pass
