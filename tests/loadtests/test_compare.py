"""A comparison runs its control first, in pairs, in random order, and ends with a report."""

import dataclasses
from pathlib import Path

import pytest

from harness.record.verdict import BrokenError, Finding, Verdict
from loadtests.compare import (
    CONTROL,
    TRIAL,
    Question,
    conclude,
    question_of,
    run_comparison,
)
from loadtests.exports import prometheus
from loadtests.figures import FIGURES, Figures
from loadtests.profiles import PROFILES
from loadtests.report import render
from loadtests.results import (
    Comparison,
    LoadReport,
    LoadResult,
    PairsEffect,
    load_report,
    save_report,
)
from loadtests.session import Point, ServerChoice, Session

A, B = ServerChoice(flags="--a"), ServerChoice(flags="--b")


class MadeUpSession:
    """Has a rate for each server, and one for each server that comes first of its pair."""

    def __init__(self, rates: dict[ServerChoice, float], *, first: float = 1.0) -> None:
        self.results: list[LoadResult] = []
        self._rates = rates
        self._first = first

    def run(self, point: Point, server: ServerChoice) -> LoadResult:
        number = len(self.results)
        rate = self._rates[server] * (self._first if number % 2 == 0 else 1.0)
        findings = (Finding(Verdict.PASS if rate else Verdict.BROKEN, "a made up load"),)
        values = {"rate_mb_per_s": rate * (1 + 0.001 * (number * 7 % 5))} if rate else {}
        figures = Figures.from_names(values)
        result = LoadResult("replay", point.labels, f"{number:03d}", figures, findings, 1.0)
        self.results.append(result)
        return result


def compared(session: MadeUpSession) -> LoadReport:
    question = Question(A, B, PROFILES[3], FIGURES["rate_mb_per_s"], 12, 0.05, "seed")
    as_session: Session = session  # type: ignore[assignment] # stands in for one
    found, conclusions = run_comparison(as_session, question)
    return LoadReport("compare", {}, {}, tuple(session.results), found, tuple(conclusions))


def effects(comparison: Comparison | None) -> tuple[PairsEffect, ...]:
    return comparison.effects if comparison is not None else ()


@pytest.mark.parametrize(
    ("rate", "verdict"), [(800.0, Verdict.FAIL), (970.0, Verdict.PASS), (1300.0, Verdict.PASS)]
)
def test_b_worse_than_allowed_fails(rate: float, verdict: Verdict) -> None:
    report = compared(MadeUpSession({A: 1000.0, B: rate}))
    assert [each.verdict for each in report.conclusions] == [Verdict.PASS, verdict]
    assert report.exit_code == (1 if verdict is Verdict.FAIL else 0)
    assert [each.name for each in effects(report.comparison)] == [CONTROL, TRIAL]


def test_pairs_have_both_sides_in_random_order() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 1000.0}))
    trial = [each for each in report.results if each.labels["pairs"] == TRIAL]
    pairs = [
        (x.labels["side"], y.labels["side"]) for x, y in zip(trial[::2], trial[1::2], strict=True)
    ]
    assert pairs.count(("A", "B")) == pairs.count(("B", "A")) == 6
    assert {each.labels["pairs"] for each in report.results[:24]} == {CONTROL}


def test_advantage_of_the_first_run_favours_neither_server() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 1000.0}, first=1.1))
    assert report.verdict is Verdict.PASS


def test_saved_comparison_is_folded_to_the_same_conclusion(tmp_path: Path) -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 800.0}))
    save_report(report, tmp_path)
    saved = load_report(tmp_path)
    assert saved == report
    assert saved.comparison is not None
    found, conclusions = conclude(question_of(saved.comparison), saved.results)
    assert (found, tuple(conclusions)) == (report.comparison, report.conclusions)


def test_comparison_folded_with_changed_verdicts_changes_its_conclusion() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 800.0}))
    disturbed = (Finding(Verdict.BROKEN, "a load that is judged more strictly now"),)
    results = [
        dataclasses.replace(each, findings=disturbed)
        if each.labels["pairs"] == TRIAL and int(each.labels["pair"]) > 4
        else each
        for each in report.results
    ]
    assert report.comparison is not None
    found, (control, trial) = conclude(question_of(report.comparison), results)
    assert [each.name for each in found.effects] == [CONTROL]
    assert (control.verdict, trial.verdict) == (Verdict.PASS, Verdict.BROKEN)
    assert "4 of 12 pairs" in trial.got


def test_comparison_saved_without_its_question_is_broken() -> None:
    with pytest.raises(BrokenError, match="without its question"):
        question_of(Comparison("rate_mb_per_s"))


def test_prometheus_series_of_a_comparison_are_unique() -> None:
    text = prometheus(compared(MadeUpSession({A: 1000.0, B: 800.0})))
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)) == 2 * 48


def test_too_few_pairs_are_broken() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 0.0}))
    assert report.exit_code == 2
    assert "0 of 12 pairs" in report.conclusions[-1].got


def test_comparison_is_rendered_as_a_page(tmp_path: Path) -> None:
    page = render(compared(MadeUpSession({A: 1000.0, B: 800.0})), tmp_path)
    assert "B is not worse than A in rate_mb_per_s" in page
    assert "20.0% worse" in page
    assert page.count("<svg") == 1
