"""`make verify`: what it leaves out by default, how long it takes, and what its budgets warn of."""

import dataclasses
import io
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from harness.checks import ALL
from harness.checks.check import Need
from harness.project import times, verify
from harness.project.steps import STEPS, ProjectStep
from harness.project.times import CHECK_BUDGETS_S, TOTAL, Estimate, estimate, remember
from harness.project.verify_location import Decision, Location
from harness.record.results import RunReport, StepTime, load_report, save_report
from harness.record.verdict import Verdict
from harness.report.html import render
from harness.report.summary import duration
from harness.report.terminal import Terminal
from harness.run.choice import LOCAL, VM, Choice
from harness.run.session import Run, checks_step
from tests.harness.report.cases import report_of, result_of

GUEST = verify.PLANS[Location.GUEST]
PASSES = ProjectStep(
    "project.passes", "It passes.", (sys.executable, "-c", "print('1 passed')"), r"1 passed",
    budget_s=30.0, quick=("few",), leaves_out="the many (make all)",
)  # fmt: skip


def test_every_check_is_judged_though_the_guest_leaves_some_out() -> None:
    absent = verify.left_out(GUEST.targets, GUEST.skips_allowed)
    assert absent
    names = {check.name for check in ALL}
    assert absent <= {f"{VM}:{name}" for name in names}
    may_skip = [glob for glob in GUEST.skips_allowed if glob != verify.SCANNER]
    for name in names:
        if f"{VM}:{name}" in absent:  # then this host judges it, and must not skip it
            assert not any(fnmatchcase(f"{LOCAL}:{name}", glob) for glob in may_skip), name
    kept = {name for name in names if f"{VM}:{name}" not in absent}
    assert names >= verify.IN_GUEST_TOO
    limits = {name for name in names if name.startswith("limits.")}
    assert kept >= verify.IN_GUEST_TOO | limits


@pytest.mark.parametrize("targets", [(LOCAL,), (VM,), ()])
def test_one_target_alone_leaves_no_check_out(targets: tuple[str, ...]) -> None:
    assert verify.left_out(targets, GUEST.skips_allowed) == frozenset()


def test_target_is_judged_by_what_is_not_left_out() -> None:
    choice = Choice(
        targets=(LOCAL, VM), keyword=r"^lifecycle\.(ids|literal)$",
        left_out=frozenset({"vm:lifecycle.ids"}),
    )  # fmt: skip
    assert [check.name for check in choice.checks_for(VM)] == ["lifecycle.literal"]
    assert choice.expected == 3


def test_each_step_and_the_checks_of_each_target_have_a_budget() -> None:
    assert all(step.budget_s > 0 for step in STEPS)
    assert set(CHECK_BUDGETS_S) == {checks_step(LOCAL), checks_step(VM)}
    assert all(bool(step.quick) == bool(step.leaves_out) for step in STEPS)


def test_estimate_is_the_last_run_of_the_kind_or_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    assert estimate("guest", 90.0, path).seconds == 90.0
    path.write_text("no times")
    assert "no such run is recorded" in str(estimate("guest", 90.0, path))
    remember("guest", [StepTime("project.lint", 12.34)], 61.0, path)
    remember("here", [], 5.0, path)
    assert estimate("guest", 90.0, path).seconds == 61.0
    assert "the last such run; its budget is 1 min 30 s" in str(estimate("guest", 90.0, path))
    assert estimate("here", 90.0, path).seconds == 5.0
    assert times._read(path)["guest"] == {"project.lint": 12.3, TOTAL: 61.0}


@pytest.fixture
def steps_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the steps by one, and the checks by none; return the file of times."""
    path = tmp_path / "times.json"
    monkeypatch.setattr(verify, "STEPS", (PASSES,))
    monkeypatch.setattr(verify, "choose", lambda _: Decision(Location.GUEST, "for a test"))
    monkeypatch.setattr(verify, "estimate", partial(estimate, path=path))
    monkeypatch.setattr(verify, "remember", partial(remember, path=path))
    return path


def judged(run: Run) -> None:
    for target in run.choice.targets:
        for check in run.choice.checks_for(target):
            run.finished(result_of(check.name, Verdict.PASS, target=target))


def test_first_screen_says_how_long_it_takes_and_what_is_left_out(
    steps_alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(verify, "judge_targets", judged)
    assert verify.verify(Choice(targets=(), out=tmp_path / "out", seed="1")) == 0
    first = capsys.readouterr().out
    budget_s = PASSES.budget_s + sum(CHECK_BUDGETS_S.values())
    assert f"about {duration(budget_s)} (its budget; no such run is recorded)" in first
    assert "of project.passes: the many (make all)" in first
    assert "`make verify ARGS=--full` runs all of it" in first
    absent = verify.left_out(GUEST.targets, GUEST.skips_allowed)
    streams = sum(name.startswith("vm:streams.") for name in absent)
    assert f"{streams} checks of streams" in first.partition("in the guest: ")[2]
    report = load_report(tmp_path / "out")
    assert len(report.results) == 1 + 2 * len(ALL) - len(absent)
    assert [step.name for step in report.steps] == ["project.passes"]
    assert report.results[0].rerun.endswith(" few")
    assert steps_alone.exists()

    assert verify.verify(Choice(targets=(), out=tmp_path / "again", seed="1")) == 0
    assert "(the last such run; its budget is" in capsys.readouterr().out
    # Everything is another kind of run.
    assert verify.verify(Choice(targets=(), out=tmp_path / "full", seed="1"), full=True) == 0
    whole = capsys.readouterr().out
    assert "no such run is recorded" in whole
    assert "left out" not in whole
    assert len(load_report(tmp_path / "full").results) == 1 + 2 * len(ALL)


def test_part_of_the_steps_has_no_estimate_and_is_not_remembered(
    steps_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.verify(Choice(targets=(), out=tmp_path / "out", keyword="^project")) == 0
    assert "about" not in capsys.readouterr().out
    assert not steps_alone.exists()


OVER = RunReport(
    {}, "", 99.0, report_of(result_of("a.one", Verdict.PASS)).results,
    steps=(StepTime("quick", 1.0, 2.0), StepTime("slow", 70.0, 60.0), StepTime("free", 9.0)),
)  # fmt: skip


def test_step_over_its_budget_is_a_warning_and_changes_no_verdict() -> None:
    assert OVER.exit_code == 0
    file = io.StringIO()
    Terminal(Console(file=file, width=200)).end(OVER, Path("/run"))
    said = [" ".join(line.split()) for line in file.getvalue().splitlines() if "budget" in line]
    assert said == [
        "quick 1.0 s, budget 2.0 s",
        "slow 1 min 10 s, budget 1 min 00 s WARNING: over its budget",
    ]
    page = render(OVER)
    assert page.count("over its budget</td>") == 1
    assert ">slow</th>" in page
    assert ">free</th>" not in page


def test_times_are_saved_and_an_older_run_without_them_is_read(tmp_path: Path) -> None:
    save_report(OVER, tmp_path)
    assert load_report(tmp_path).steps == OVER.steps
    file = tmp_path / "results.json"
    text = file.read_text()
    start, end = text.index('"steps": ['), text.rindex("]")
    file.write_text(text[:start].rstrip().removesuffix(",") + text[end + 1 :])
    assert load_report(tmp_path) == dataclasses.replace(OVER, steps=())


@pytest.mark.parametrize(
    ("now_s", "text"),
    [(0.0, "about 1 min 40 s left"), (99.0, "about 1.0 s left"), (130.0, "30 s longer than")],
)
def test_progress_has_an_estimate(now_s: float, text: str) -> None:
    clock_s = 0.0
    terminal = Terminal(Console(file=io.StringIO()), now_s=lambda: clock_s)
    assert terminal.left() == ""
    terminal.begin({}, 3, 100.0)
    clock_s = now_s
    assert text in terminal.left()


def test_estimate_of_nothing_is_unknown() -> None:
    assert Estimate().kind == ""


def test_what_disturbs_a_machine_is_skipped_on_this_host_and_judged_in_the_guest() -> None:
    disturbing = {check.name for check in ALL if Need.GUEST in check.needs}
    assert "lifecycle.clock-steps" in disturbing
    skips = set(GUEST.skips_allowed)
    unmatched = {name for name in disturbing if not name.startswith("limits.")}
    assert {f"local:{name}" for name in unmatched} <= skips
    absent = verify.left_out(GUEST.targets, GUEST.skips_allowed)
    assert not {f"vm:{name}" for name in disturbing} & absent
