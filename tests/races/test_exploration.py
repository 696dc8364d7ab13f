"""Schedule exploration: finds what is there, says nothing of what is sound, and shows it again."""

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.races import races
from harness.races.detector import Detector, Variable
from harness.races.exploration import Exploration, explore, replay, technique_named
from harness.races.failure_report import restore, save, story
from harness.races.linearizability import History, NotLinearizableError
from harness.races.scenario import Scenario, load_scenarios, named
from harness.races.subprocess_explorer import orders_for
from harness.races.switch_points import Points
from harness.record.verdict import BrokenError
from tests.races.toys import CounterModel

TOYS = Path(__file__).with_name("toys.py")


def toy(name: str) -> Scenario:
    return named(load_scenarios([TOYS]), f"toy.{name}")


def explored(name: str, technique: str, seed: int = 1) -> Exploration:
    return explore(toy(name), technique_named(technique), seed, 300)


@pytest.mark.parametrize("technique", ["detector", "dfs", "random", "pct"])
def test_each_technique_finds_a_lost_update(technique: str) -> None:
    assert explored("racy", technique).failure is not None


@pytest.mark.parametrize("technique", ["detector", "dfs", "random", "pct"])
def test_no_technique_accuses_sound_code(technique: str) -> None:
    exploration = explored("sound", technique)
    assert exploration.failure is None
    assert exploration.exhausted is (technique == "dfs")


@pytest.mark.parametrize("technique", ["dfs", "random", "pct"])
def test_a_deadlock_is_told_by_who_waits_for_whom(technique: str) -> None:
    failure = explored("deadlock", technique).failure
    assert failure is not None
    assert failure.kind == "deadlock"
    assert "forth" in failure.what
    assert "back" in failure.what
    text = story(toy("deadlock"), explored("deadlock", technique), "run this")
    # By their stacks, not by the interleaving, which has the file's name only.
    for waits in ("with one, other:", "with other, one:", "thread.join()"):
        assert re.search(rf"(?m)^    \w+\(\) at tests/races/\w+\.py:\d+  {waits}", text), text


def test_the_detector_tells_of_a_deadlock_that_did_not_happen() -> None:
    failure = explored("deadlock", "detector").failure
    assert failure is not None
    assert "LOCK ORDER" in failure.what or failure.kind == "deadlock"


def test_a_history_without_an_order_is_told_with_a_time_line() -> None:
    failure = explored("history", "linearizability").failure
    assert failure is not None
    assert "NotLinearizableError" in failure.what
    assert "timeline" in failure.what


def test_a_call_that_fails_may_or_may_not_have_had_its_effect() -> None:
    history = History()
    history.call("one", "count", None, lambda: 1)

    def fails() -> int:
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        history.call("one", "count", None, fails)
    history.call("two", "count", None, lambda: 3)  # as if the call that failed was made
    history.must_be_linearizable(CounterModel())
    history.call("two", "count", None, lambda: 3)
    with pytest.raises(NotLinearizableError):
        history.must_be_linearizable(CounterModel())


def test_the_same_seed_finds_the_same_schedule() -> None:
    first, second = explored("racy", "random", 7), explored("racy", "random", 7)
    assert first.failure is not None
    assert first.failure.choices == (second.failure and second.failure.choices)


@pytest.mark.parametrize("technique", ["detector", "dfs", "random", "pct"])
def test_a_failure_is_kept_and_shown_again(technique: str, tmp_path: Path) -> None:
    exploration = explored("racy", technique)
    save(tmp_path / "failure.json", exploration, [TOYS])
    kept, files = restore(tmp_path / "failure.json")
    assert (kept, files) == (exploration, (TOYS,))
    assert kept.failure is not None
    again = replay(toy("racy"), technique_named(technique), kept.failure)
    assert again is not None
    assert again.choices == kept.failure.choices


def test_a_failure_is_told_line_by_line() -> None:
    text = story(toy("racy"), explored("racy", "dfs"), "run this")
    assert "Two counts make two." in text
    assert "AssertionError: 1" in text
    assert "self.value += 1" in text
    assert "again: run this" in text


def test_nobody_watches_for_stacks_afterwards() -> None:
    before = [sys.monitoring.get_tool(number) for number in range(6)], threading.Thread
    explored("deadlock", "pct")
    after = [sys.monitoring.get_tool(number) for number in range(6)], threading.Thread
    assert after == before


@pytest.mark.parametrize(("settled", "points"), [(False, 2), (True, 0)])
def test_others_come_in_at_what_is_atomic_unless_it_is_settled(settled: bool, points: int) -> None:
    came: list[bool] = []
    listener = Points(Detector(), frozenset(), lambda: came.append(True))
    variable = Variable("Box.published", atomic=True, settled=settled)
    listener.write(variable)
    listener.read(variable)
    assert len(came) == points


def test_a_search_of_everything_tells_what_the_detector_found_in_that_schedule() -> None:
    text = story(toy("racy"), explored("racy", "dfs"), "run this")
    assert "AssertionError: 1" in text
    assert "DATA RACE on Counter.value" in text
    assert text.count("careless() at tests/races/toys.py") >= 2, text


def test_what_the_detector_found_is_told_once() -> None:
    failure = explored("racy", "detector").failure
    assert failure is not None
    assert "DATA RACE" in failure.what
    assert failure.found == ()


def test_a_search_that_is_not_exhaustive_says_so() -> None:
    with pytest.raises(BrokenError, match=r"there are more.*--technique dfs --schedules 6"):
        explore(toy("sound"), technique_named("dfs"), 1, 3)


def test_what_is_exhaustive_gets_more_schedules_when_asked_and_never_fewer() -> None:
    own = technique_named("dfs").schedules
    for asked, wanted in ((None, None), (own + 1, own + 1), (3, own)):
        (order,) = orders_for(toy("sound"), [1, 2], asked, ["dfs"])
        assert order.schedules == wanted


def test_what_is_exhaustive_runs_with_every_seed_when_asked() -> None:
    def seeds(*, every_seed: bool) -> list[int]:
        orders = orders_for(toy("sound"), [1, 2], techniques=["dfs"], every_seed=every_seed)
        return [order.seed for order in orders]

    assert seeds(every_seed=False) == [1]
    assert seeds(every_seed=True) == [1, 2]


def test_a_model_that_chance_decides_is_broken() -> None:
    with pytest.raises(BrokenError, match="cannot be explored"):
        explore(toy("chance"), technique_named("dfs"), 1, 300)


def test_a_schedule_of_another_python_is_not_replayed() -> None:
    failure = explored("racy", "pct").failure
    assert failure is not None
    with pytest.raises(BrokenError, match=r"recorded with Python 3\.9"):
        replay(toy("racy"), technique_named("pct"), replace(failure, python="3.9.0"))


def test_what_is_no_failure_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(BrokenError, match="no failure that `races explore` saved"):
        restore(tmp_path / "other.json")


def test_the_command_finds_keeps_and_replays(tmp_path: Path) -> None:
    options = ["--scenarios", str(TOYS), "-k", "racy", "--technique", "pct", "--out", str(tmp_path)]
    run = CliRunner().invoke(races, ["explore", *options])
    assert run.exit_code == 1, run.output
    assert "FAIL  pct" in run.output
    (kept,) = tmp_path.iterdir()
    again = CliRunner().invoke(races, ["replay", str(kept)])
    assert again.exit_code == 1, again.output
    assert "AssertionError: 1" in again.output


def test_the_command_passes_sound_code(tmp_path: Path) -> None:
    options = ["--scenarios", str(TOYS), "-k", "sound", "--out", str(tmp_path)]
    run = CliRunner().invoke(races, ["explore", *options])
    assert run.exit_code == 0, run.output
    assert "nothing found" in run.output
    assert list(tmp_path.iterdir()) == []
