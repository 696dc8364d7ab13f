"""The tables: each scenario has a bug that it shows, and each bug fits. `make race` proves them."""

from pathlib import Path

import pytest

from harness.races.exploration import TECHNIQUES
from harness.races.planting import PlantedRace, planted, planted_copy
from harness.races.scenario import load_scenarios
from harness.record.verdict import BrokenError
from tests.races.planted import PLANTED

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "impl"
SCENARIOS = {scenario.name for scenario in load_scenarios([HERE / "scenarios"])}


def test_each_scenario_has_a_bug_that_it_shows() -> None:
    assert {bug.scenario for bug in PLANTED} == SCENARIOS


@pytest.mark.parametrize("race", PLANTED, ids=lambda race: race.name)
def test_each_bug_fits_and_is_found_by_techniques_that_exist(race: PlantedRace) -> None:
    assert race.found_by
    assert set(race.found_by) <= {technique.name for technique in TECHNIQUES}
    with planted_copy(race, SOURCE) as tree:
        for edit in race.mutation.edits:
            broken = (tree / edit.file).read_text()
            assert broken != (SOURCE / edit.file).read_text()
            compile(broken, edit.file, "exec")


def test_a_bug_that_does_not_fit_is_refused() -> None:
    bug = planted("misses", "log.follow", "worker_service/log.py", "-no such line\n+x\n", ("dfs",))
    with pytest.raises(BrokenError, match="occurs 0 times"), planted_copy(bug, SOURCE):
        pass
