"""Explores in a subprocess, which can import another source tree and can be killed."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from harness.host.processes import run
from harness.races.exploration import (
    TECHNIQUES,
    Exploration,
    Failure,
    ScheduleStep,
    explore,
    find_technique,
)
from harness.races.scenario import Scenario, find_scenario, load_scenarios
from harness.record.verdict import BrokenError

EXPLORATIONS_MAX_S: Final = 900.0


class PlannedExploration(NamedTuple):
    """One exploration to run. `schedules`: None uses the technique's default."""

    scenario: str
    technique: str
    seed: int
    schedules: int | None


def plan_explorations(
    scenario: Scenario,
    seeds: Sequence[int],
    schedules: int | None = None,
    techniques: Sequence[str] = (),
    *,
    every_seed: bool = False,
) -> list[PlannedExploration]:
    """Return the explorations of a scenario: each applicable technique with each seed.

    Args:
        scenario: the scenario.
        seeds: random seeds.
        schedules: per randomised technique. An exhaustive one never gets fewer than its own
            maximum, since an unfinished search is inconclusive.
        techniques: only these; empty means all.
        every_seed: run exhaustive techniques with every seed, not with the first only. Each seed
            gives the same guarantee. It chooses the random schedules from which the search learns
            what races, and so the number of schedules until it finds a failure.
    """
    plan = []
    for technique in TECHNIQUES:
        wanted = not techniques or technique.name in techniques
        if not wanted or (technique.histories and not scenario.linearizable):
            continue
        limit, its_seeds = schedules, seeds
        if technique.exhaustive:
            limit = None if schedules is None else max(schedules, technique.schedules)
            its_seeds = seeds if every_seed else seeds[:1]
        plan += [
            PlannedExploration(scenario.name, technique.name, seed, limit) for seed in its_seeds
        ]
    return plan


def explore_in_subprocess(
    files: Sequence[Path], plan: Sequence[PlannedExploration], tree: Path | None = None
) -> list[Exploration]:
    """Explore in a subprocess.

    Args:
        files: the scenario files.
        plan: the explorations to run.
        tree: a source tree to import from before all others.

    Raises:
        BrokenError: an exploration failed or did not finish.
    """
    request = json.dumps([[str(file) for file in files], plan])
    command = [sys.executable, "-m", __name__, request]
    if tree is not None:
        command = ["env", f"PYTHONPATH={tree}", *command]
    done = run(command, EXPLORATIONS_MAX_S)
    if done.exit_code != 0:
        raise BrokenError((done.stderr or done.stdout).strip()[-3000:])
    return [exploration_from(values) for values in json.loads(done.stdout)]


def exploration_from(values: dict[str, Any]) -> Exploration:
    """Return the exploration from which `asdict` made these values."""
    failure = values.pop("failure")
    if failure is not None:
        steps = tuple(ScheduleStep(**step) for step in failure.pop("steps"))
        lists: dict[str, Any] = {
            name: tuple(failure.pop(name)) for name in ("choices", "racing", "found", "stacks")
        }
        failure = Failure(**failure, **lists, steps=steps)
    return Exploration(**values, failure=failure)


def _main() -> int:
    files, plan = json.loads(sys.argv[1])
    made = []
    try:
        scenarios = load_scenarios([Path(file) for file in files])
        for planned in map(PlannedExploration._make, plan):
            scenario = find_scenario(scenarios, planned.scenario)
            technique = find_technique(planned.technique)
            made.append(explore(scenario, technique, planned.seed, planned.schedules))
    except BrokenError as error:
        print(error, file=sys.stderr)  # noqa: T201 - its parent reads it
        return 2
    print(json.dumps([asdict(each) for each in made]))  # noqa: T201 - its parent reads it
    return 0


if __name__ == "__main__":
    sys.exit(_main())
