"""Explores in a process of its own: it may import another source tree, and can be killed."""

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
    technique_named,
)
from harness.races.scenario import Scenario, load_scenarios, named
from harness.record.verdict import BrokenError

ORDERS_MAX_S: Final = 900.0


class Order(NamedTuple):
    """One exploration to be made. `schedules`: None takes the technique's own."""

    scenario: str
    technique: str
    seed: int
    schedules: int | None


def orders_for(
    scenario: Scenario,
    seeds: Sequence[int],
    schedules: int | None = None,
    techniques: Sequence[str] = (),
    *,
    every_seed: bool = False,
) -> list[Order]:
    """Return what is to be explored: each technique that is for the scenario, with each seed.

    Args:
        scenario: which.
        seeds: for all that is left to chance.
        schedules: how many. What is exhaustive never gets fewer than its own: it would say nothing.
        techniques: only these; none takes all.
        every_seed: explore exhaustively with every seed, too. It ends in the same certainty with
            each; the seed decides from which schedules it learns what races before it begins, and
            so after how many it comes to what is wrong. Else it is done with the first seed only.
    """
    orders = []
    for technique in TECHNIQUES:
        wanted = not techniques or technique.name in techniques
        if not wanted or (technique.histories and not scenario.linearizable):
            continue
        limit, its_seeds = schedules, seeds
        if technique.exhaustive:
            limit = None if schedules is None else max(schedules, technique.schedules)
            its_seeds = seeds if every_seed else seeds[:1]
        orders += [Order(scenario.name, technique.name, seed, limit) for seed in its_seeds]
    return orders


def explore_apart(
    files: Sequence[Path], orders: Sequence[Order], tree: Path | None = None
) -> list[Exploration]:
    """Explore in a process of its own.

    Args:
        files: of the scenarios.
        orders: what to explore.
        tree: a source tree to import from, before all others.

    Raises:
        BrokenError: an exploration could not be made.
    """
    told = json.dumps([[str(file) for file in files], orders])
    command = [sys.executable, "-m", __name__, told]
    if tree is not None:
        command = ["env", f"PYTHONPATH={tree}", *command]
    done = run(command, ORDERS_MAX_S)
    if done.exit_code != 0:
        raise BrokenError((done.stderr or done.stdout).strip()[-3000:])
    return [exploration_from(told) for told in json.loads(done.stdout)]


def exploration_from(told: dict[str, Any]) -> Exploration:
    """Make an exploration of what `asdict` made of it."""
    failure = told.pop("failure")
    if failure is not None:
        steps = tuple(ScheduleStep(**step) for step in failure.pop("steps"))
        lists: dict[str, Any] = {
            name: tuple(failure.pop(name)) for name in ("choices", "racing", "found", "stacks")
        }
        failure = Failure(**failure, **lists, steps=steps)
    return Exploration(**told, failure=failure)


def _main() -> int:
    files, orders = json.loads(sys.argv[1])
    made = []
    try:
        scenarios = load_scenarios([Path(file) for file in files])
        for order in map(Order._make, orders):
            scenario = named(scenarios, order.scenario)
            technique = technique_named(order.technique)
            made.append(explore(scenario, technique, order.seed, order.schedules))
    except BrokenError as error:
        print(error, file=sys.stderr)  # noqa: T201 - its parent reads it
        return 2
    print(json.dumps([asdict(each) for each in made]))  # noqa: T201 - its parent reads it
    return 0


if __name__ == "__main__":
    sys.exit(_main())
