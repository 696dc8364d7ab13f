"""Schedule exploration: finds planted faults, accepts correct code, and replays failures."""

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.races import races
from harness.races.detector import Detector, Variable
from harness.races.exploration import Exploration, explore, find_technique, replay
from harness.races.failure_report import failure_text, load_failure, save_failure
from harness.races.linearizability import NotLinearizableError, OperationHistory
from harness.races.scenario import Scenario, find_scenario, load_scenarios
from harness.races.subprocess_explorer import plan_explorations
from harness.races.switch_points import SwitchPoints
from harness.record.verdict import BrokenError
from tests.races.toys import CounterModel

TOYS = Path(__file__).with_name("toys.py")


def toy(name: str) -> Scenario:
    return find_scenario(load_scenarios([TOYS]), f"toy.{name}")


def explore_toy(name: str, technique: str, seed: int = 1) -> Exploration:
    return explore(toy(name), find_technique(technique), seed, 300)


@pytest.mark.parametrize("technique", ["detector", "dfs", "random", "pct"])
def test_each_technique_finds_a_lost_update(technique: str) -> None:
    assert explore_toy("racy", technique).failure is not None


@pytest.mark.parametrize("technique", ["detector", "dfs", "random", "pct"])
def test_no_technique_reports_correct_code(technique: str) -> None:
    exploration = explore_toy("sound", technique)
    assert exploration.failure is None
    assert exploration.exhausted is (technique == "dfs")


@pytest.mark.parametrize("technique", ["dfs", "random", "pct"])
def test_deadlock_report_has_the_stack_of_each_waiting_thread(technique: str) -> None:
    failure = explore_toy("deadlock", technique).failure
    assert failure is not None
    assert failure.kind == "deadlock"
    assert "forth" in failure.what
    assert "back" in failure.what
    text = failure_text(toy("deadlock"), explore_toy("deadlock", technique), "run this")
    # Stacks have the path, the interleaving only the file's name.
    for line in ("with one, other:", "with other, one:", "thread.join()"):
        assert re.search(rf"(?m)^    \w+\(\) at tests/races/\w+\.py:\d+  {line}", text), text


def test_detector_reports_a_lock_cycle_without_a_deadlock() -> None:
    failure = explore_toy("deadlock", "detector").failure
    assert failure is not None
    assert "LOCK ORDER" in failure.what or failure.kind == "deadlock"


def test_nonlinearizable_history_is_reported_with_a_timeline() -> None:
    failure = explore_toy("history", "linearizability").failure
    assert failure is not None
    assert "NotLinearizableError" in failure.what
    assert "timeline" in failure.what


def test_history_allows_a_failed_call_to_have_taken_effect() -> None:
    history = OperationHistory()
    history.call("one", "count", None, lambda: 1)

    def fails() -> int:
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        history.call("one", "count", None, fails)
    history.call("two", "count", None, lambda: 3)  # as if the failed call had counted
    history.require_linearizable(CounterModel())
    history.call("two", "count", None, lambda: 3)
    with pytest.raises(NotLinearizableError):
        history.require_linearizable(CounterModel())


def test_same_seed_finds_the_same_schedule() -> None:
    first, second = explore_toy("racy", "random", 7), explore_toy("racy", "random", 7)
    assert first.failure is not None
    assert first.failure.choices == (second.failure and second.failure.choices)


@pytest.mark.parametrize("technique", ["detector", "dfs", "random", "pct"])
def test_saved_failure_replays_with_the_same_choices(technique: str, tmp_path: Path) -> None:
    exploration = explore_toy("racy", technique)
    save_failure(tmp_path / "failure.json", exploration, [TOYS])
    saved, files = load_failure(tmp_path / "failure.json")
    assert (saved, files) == (exploration, (TOYS,))
    assert saved.failure is not None
    replayed = replay(toy("racy"), find_technique(technique), saved.failure)
    assert replayed is not None
    assert replayed.choices == saved.failure.choices


def test_failure_report_has_promise_error_code_and_replay_command() -> None:
    text = failure_text(toy("racy"), explore_toy("racy", "dfs"), "run this")
    assert "Two counts make two." in text
    assert "AssertionError: 1" in text
    assert "self.value += 1" in text
    assert "replay: run this" in text


def test_exploration_restores_monitoring_and_threads() -> None:
    before = [sys.monitoring.get_tool(number) for number in range(6)], threading.Thread
    explore_toy("deadlock", "pct")
    after = [sys.monitoring.get_tool(number) for number in range(6)], threading.Thread
    assert after == before


@pytest.mark.parametrize(("settled", "expected"), [(False, 2), (True, 0)])
def test_atomic_is_a_switch_point_unless_settled(settled: bool, expected: int) -> None:
    points: list[bool] = []
    listener = SwitchPoints(Detector(), frozenset(), lambda: points.append(True))
    variable = Variable("Box.published", atomic=True, settled=settled)
    listener.write(variable)
    listener.read(variable)
    assert len(points) == expected


def test_dfs_failure_has_the_detector_findings_of_its_schedule() -> None:
    text = failure_text(toy("racy"), explore_toy("racy", "dfs"), "run this")
    assert "AssertionError: 1" in text
    assert "DATA RACE on Counter.value" in text
    assert text.count("careless() at tests/races/toys.py") >= 2, text


def test_detector_failure_has_its_findings_once() -> None:
    failure = explore_toy("racy", "detector").failure
    assert failure is not None
    assert "DATA RACE" in failure.what
    assert failure.found == ()


def test_unfinished_exhaustive_search_is_broken_and_names_the_option() -> None:
    with pytest.raises(BrokenError, match=r"did not finish.*--technique dfs --schedules 6"):
        explore(toy("sound"), find_technique("dfs"), 1, 3)


def test_dfs_limit_is_raised_by_schedules_and_never_lowered() -> None:
    own = find_technique("dfs").schedules
    for schedules, expected in ((None, None), (own + 1, own + 1), (3, own)):
        (planned,) = plan_explorations(toy("sound"), [1, 2], schedules, ["dfs"])
        assert planned.schedules == expected


def test_dfs_runs_with_the_first_seed_unless_every_seed_is_requested() -> None:
    def seeds(*, every_seed: bool) -> list[int]:
        plan = plan_explorations(toy("sound"), [1, 2], techniques=["dfs"], every_seed=every_seed)
        return [planned.seed for planned in plan]

    assert seeds(every_seed=False) == [1]
    assert seeds(every_seed=True) == [1, 2]


def test_nondeterministic_model_is_broken() -> None:
    with pytest.raises(BrokenError, match="cannot be explored"):
        explore(toy("nondeterministic"), find_technique("dfs"), 1, 300)


def test_replay_refuses_a_schedule_of_another_python() -> None:
    failure = explore_toy("racy", "pct").failure
    assert failure is not None
    with pytest.raises(BrokenError, match=r"recorded with Python 3\.9"):
        replay(toy("racy"), find_technique("pct"), replace(failure, python="3.9.0"))


def test_load_failure_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(BrokenError, match="not a failure saved by `races explore`"):
        load_failure(tmp_path / "other.json")


def test_explore_command_saves_a_failure_that_replay_shows(tmp_path: Path) -> None:
    options = ["--scenarios", str(TOYS), "-k", "racy", "--technique", "pct", "--out", str(tmp_path)]
    run = CliRunner().invoke(races, ["explore", *options])
    assert run.exit_code == 1, run.output
    assert "FAIL  pct" in run.output
    (saved,) = tmp_path.iterdir()
    replayed = CliRunner().invoke(races, ["replay", str(saved)])
    assert replayed.exit_code == 1, replayed.output
    assert "AssertionError: 1" in replayed.output


def test_explore_command_passes_correct_code(tmp_path: Path) -> None:
    options = ["--scenarios", str(TOYS), "-k", "sound", "--out", str(tmp_path)]
    run = CliRunner().invoke(races, ["explore", *options])
    assert run.exit_code == 0, run.output
    assert "nothing found" in run.output
    assert list(tmp_path.iterdir()) == []
