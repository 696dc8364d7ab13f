"""The commands: the table of proofs, and the canary."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import races as commands
from harness.cli.races import CANARY_RACE, CANARY_VARIABLE, races
from harness.races.exploration import TECHNIQUES, Exploration
from harness.races.planting import PlantedProof, PlantedRace
from harness.races.server import WatchedRun
from harness.races.subprocess_explorer import PlannedExploration
from tests.races.planted import PLANTED

PLANTED_FILE = """\
from harness.races.planting import planted_race
PLANTED = (
    planted_race("a lock is not acquired", "toy.sound", "box.py",
        "-    with lock:\\n+    if lock:\\n", ("detector", "dfs")),
)
"""
MODULE = """\
import threading
values = [0]
def count(lock):
    with lock:
        seen = values[0]
        values[0] = seen + 1
"""
SCENARIO = """\
import threading, box
from harness.races.scenario import Scenario
from harness.races.instrumentation import Watch
from tests.races.support import run_threads

class Held:
    def __init__(self):
        self.values = [0]

def model():
    lock, held = threading.Lock(), Held()
    box.values = held.values
    def counter():
        box.count(lock)
    run_threads(counter, counter)
    assert held.values[0] == 2

SCENARIOS = (Scenario("toy.sound", "Two make two.", model, (box,), Watch((Held,))),)
"""


def prove(directory: Path, *options: str) -> list[str]:
    source = directory / "source"
    source.mkdir()
    (source / "box.py").write_text(MODULE)
    (directory / "scenario.py").write_text(SCENARIO)
    (directory / "planted.py").write_text(PLANTED_FILE)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(source)
        run = CliRunner().invoke(
            races,
            [
                "prove", "--scenarios", str(directory / "scenario.py"),
                "--planted", str(directory / "planted.py"), "--source", str(source),
                "--seeds", "2", *options,
            ],
        )  # fmt: skip
    assert run.exit_code == 0, run.output
    return run.output.splitlines()


def test_prove_prints_a_table_of_schedules_and_seconds(tmp_path: Path) -> None:
    lines = prove(tmp_path, "--all")
    (race,) = (line for line in lines if line.startswith("| a lock is not acquired"))
    (total,) = (line for line in lines if line.startswith("| **found with every seed, of 1"))
    _, _, detector, dfs, *_ = (cell.strip() for cell in race.split("|"))
    for cell in (detector, dfs, *(cell.strip() for cell in total.split("|")[2:4])):
        schedules, seconds = cell.removesuffix(" s").split(", ")
        assert int(schedules) >= 1
        assert 0 <= float(seconds) < 60


def test_prove_without_all_reports_that_dfs_used_one_seed(tmp_path: Path) -> None:
    assert "over 2 seeds (dfs: the first)" in prove(tmp_path)[0]


def watched_run(*found: str) -> WatchedRun:
    return WatchedRun(found, accesses=1, threads=1, checks_output="", checks_passed=True)


@pytest.mark.parametrize(
    ("found", "exit_code"),
    [
        ((f"DATA RACE on {CANARY_VARIABLE}\n",), 0),
        ((), 1),
        (("DATA RACE on Other.thing\n",), 1),
    ],
)
def test_canary_fails_unless_the_planted_race_is_reported(
    found: tuple[str, ...], exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = []

    def judge_under_detector(_watch: Path, _launch: str, _checks: str, tree: Path) -> WatchedRun:
        planted.append((tree / "worker_service" / "follow.py").read_text())
        return watched_run(*found)

    monkeypatch.setattr(commands, "judge_under_detector", judge_under_detector)
    run = CliRunner().invoke(races, ["canary"])
    assert run.exit_code == exit_code, run.output
    (race,) = (race for race in PLANTED if race.name == CANARY_RACE)
    [edit] = race.mutation.edits
    whole = Path("impl", edit.file).read_text()
    assert planted[0] != whole


@pytest.mark.parametrize("fails", ["explore", "prove", "server", "canary"])
def test_all_fails_if_any_part_fails(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("explore", "prove", "server", "canary"):
        monkeypatch.setattr(races.commands[name], "callback", lambda name=name, **_: name == fails)
    run = CliRunner().invoke(races, ["all"])
    assert run.exit_code == 1, run.output


def test_quick_leaves_out_the_exhaustive_search_and_the_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: dict[str, dict[str, object]] = {}

    def note(name: str) -> Callable[..., int]:
        def part(**options: object) -> int:
            ran[name] = options
            return 0

        return part

    for name in ("explore", "prove", "server", "canary"):
        monkeypatch.setattr(races.commands[name], "callback", note(name))
    run = CliRunner().invoke(races, ["all", "--quick"])
    assert run.exit_code == 0, run.output
    assert run.output == f"left out: {commands.QUICK_LEAVES_OUT}\n"
    assert set(ran) == {"explore", "server", "canary"}
    assert ran["explore"]["techniques"] == ("detector", "random", "pct", "linearizability")
    assert ran["explore"]["schedules"] == commands.QUICK_SCHEDULES
    assert CliRunner().invoke(races, ["all"]).output == ""
    assert set(ran) == {"explore", "prove", "server", "canary"}
    assert ran["explore"]["techniques"] == tuple(each.name for each in TECHNIQUES)
    assert ran["explore"]["schedules"] is None


def test_shares_are_all_scenarios_and_planted_races_and_no_one_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def explored(_files: object, plan: list[PlannedExploration]) -> list[Exploration]:
        seen.append(plan[0].scenario)
        return []

    def proved(race: PlantedRace, *_: object) -> PlantedProof:
        seen.append(race.name)
        return PlantedProof(dataclasses.replace(race, found_by=()), ())

    monkeypatch.setattr(commands, "explore_in_subprocess", explored)
    monkeypatch.setattr(commands, "prove", proved)
    for name in ("server", "canary"):
        monkeypatch.setattr(races.commands[name], "callback", lambda **_: 0)
    for share in ("1/3", "2/3", "3/3"):
        run = CliRunner().invoke(races, ["all", "--share", share])
        assert run.exit_code == 0, run.output
    names = [race.name for race in PLANTED]
    assert sorted(seen) == sorted([*names, *{race.scenario for race in PLANTED}])
