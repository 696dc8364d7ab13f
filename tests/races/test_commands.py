"""The commands: the table of what finds what in how long, and the canary."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import races as commands
from harness.cli.races import CANARY_BUG, CANARY_VARIABLE, races
from harness.races.server import Watched
from tests.races.planted import PLANTED

BUG = """\
from harness.races.planting import planted
PLANTED = (
    planted("a lock that nobody takes", "toy.sound", "box.py", "-    with lock:\\n+    if lock:\\n",
        ("detector", "dfs")),
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


def proved(directory: Path, *options: str) -> list[str]:
    source = directory / "source"
    source.mkdir()
    (source / "box.py").write_text(MODULE)
    (directory / "scenario.py").write_text(SCENARIO)
    (directory / "bugs.py").write_text(BUG)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(source)
        run = CliRunner().invoke(
            races,
            [
                "prove", "--scenarios", str(directory / "scenario.py"),
                "--planted", str(directory / "bugs.py"), "--source", str(source),
                "--seeds", "2", *options,
            ],
        )  # fmt: skip
    assert run.exit_code == 0, run.output
    return run.output.splitlines()


def test_a_proof_is_a_table_of_schedules_and_seconds(tmp_path: Path) -> None:
    lines = proved(tmp_path, "--all")
    (bug,) = (line for line in lines if line.startswith("| a lock that nobody takes"))
    (total,) = (line for line in lines if line.startswith("| **found with every seed, of 1"))
    _, _, detector, dfs, *_ = (cell.strip() for cell in bug.split("|"))
    for cell in (detector, dfs, *(cell.strip() for cell in total.split("|")[2:4])):
        schedules, seconds = cell.removesuffix(" s").split(", ")
        assert int(schedules) >= 1
        assert 0 <= float(seconds) < 60


def test_what_is_proved_with_one_seed_only_is_told(tmp_path: Path) -> None:
    assert "over 2 seeds (dfs: the first)" in proved(tmp_path)[0]


def watched(*found: str) -> Watched:
    return Watched(found, accesses=1, threads=1, said="", checks_passed=True)


@pytest.mark.parametrize(
    ("found", "exit_code"),
    [
        ((f"DATA RACE on {CANARY_VARIABLE}\n",), 0),
        ((), 1),
        (("DATA RACE on Other.thing\n",), 1),
    ],
)
def test_a_detector_that_is_blind_to_what_was_planted_fails(
    found: tuple[str, ...], exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = []

    def judge_watched(_watch: Path, _launch: str, _checks: str, tree: Path) -> Watched:
        planted.append((tree / "worker_service" / "follow.py").read_text())
        return watched(*found)

    monkeypatch.setattr(commands, "judge_watched", judge_watched)
    run = CliRunner().invoke(races, ["canary"])
    assert run.exit_code == exit_code, run.output
    (race,) = (race for race in PLANTED if race.name == CANARY_BUG)
    [edit] = race.mutation.edits
    whole = Path("impl", edit.file).read_text()
    assert planted[0] != whole


@pytest.mark.parametrize("fails", ["explore", "prove", "server", "canary"])
def test_all_fails_when_any_of_its_parts_does(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("explore", "prove", "server", "canary"):
        monkeypatch.setattr(races.commands[name], "callback", lambda name=name, **_: name == fails)
    run = CliRunner().invoke(races, ["all"])
    assert run.exit_code == 1, run.output
