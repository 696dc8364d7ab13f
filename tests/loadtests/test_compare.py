"""A comparison runs its control first, in pairs, in an order of chance, and ends with a report."""

import dataclasses
import json
from pathlib import Path

import pytest

from harness.record.verdict import BrokenError, Finding, Verdict
from loadtests.compare import (
    CONTROL,
    TRIAL,
    Question,
    asked_again,
    concluded,
    run_comparison,
)
from loadtests.exports import prometheus
from loadtests.profiles import PROFILES
from loadtests.report import render
from loadtests.results import LoadReport, LoadResult
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
        figures = {"rate_mb_per_s": rate * (1 + 0.001 * (number * 7 % 5))} if rate else {}
        result = LoadResult("replay", point.labels, f"{number:03d}", figures, findings, 1.0)
        self.results.append(result)
        return result


def compared(session: MadeUpSession) -> LoadReport:
    question = Question(A, B, PROFILES[3], "rate_mb_per_s", 12, 0.05, "seed")
    as_session: Session = session  # type: ignore[assignment] # stands in for one
    found, conclusions = run_comparison(as_session, question)
    return LoadReport("compare", {}, {}, tuple(session.results), found, tuple(conclusions))


@pytest.mark.parametrize(
    ("rate", "verdict"), [(800.0, Verdict.FAIL), (970.0, Verdict.PASS), (1300.0, Verdict.PASS)]
)
def test_b_fails_when_it_is_worse_than_allowed(rate: float, verdict: Verdict) -> None:
    report = compared(MadeUpSession({A: 1000.0, B: rate}))
    assert [each.verdict for each in report.conclusions] == [Verdict.PASS, verdict]
    assert report.exit_code == (1 if verdict is Verdict.FAIL else 0)
    assert [each["name"] for each in report.comparison["effects"]] == [CONTROL, TRIAL]


def test_each_pair_has_both_sides_and_comes_in_an_order_of_chance() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 1000.0}))
    trial = [each for each in report.results if each.labels["pairs"] == TRIAL]
    pairs = [
        (x.labels["side"], y.labels["side"]) for x, y in zip(trial[::2], trial[1::2], strict=True)
    ]
    assert pairs.count(("A", "B")) == pairs.count(("B", "A")) == 6
    assert {each.labels["pairs"] for each in report.results[:24]} == {CONTROL}


def test_a_machine_that_favours_the_first_of_a_pair_favours_neither_server() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 1000.0}, first=1.1))
    assert report.verdict is Verdict.PASS


def test_a_comparison_can_be_folded_again_from_its_results() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 800.0}))
    saved = json.loads(json.dumps(report.comparison))
    found, conclusions = concluded(asked_again(saved), report.results)
    assert (found, tuple(conclusions)) == (report.comparison, report.conclusions)


def test_folded_again_a_comparison_follows_its_results() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 800.0}))
    disturbed = (Finding(Verdict.BROKEN, "a load that is judged more strictly now"),)
    results = [
        dataclasses.replace(each, findings=disturbed)
        if each.labels["pairs"] == TRIAL and int(each.labels["pair"]) > 4
        else each
        for each in report.results
    ]
    found, (control, trial) = concluded(asked_again(report.comparison), results)
    assert [each["name"] for each in found["effects"]] == [CONTROL]
    assert (control.verdict, trial.verdict) == (Verdict.PASS, Verdict.BROKEN)
    assert "4 of 12 pairs" in trial.got


def test_a_comparison_that_does_not_say_what_it_asked_is_not_folded_again() -> None:
    with pytest.raises(BrokenError, match="does not say what it asked"):
        asked_again({"figure": "rate_mb_per_s"})


def test_each_series_of_a_comparison_stands_once() -> None:
    text = prometheus(compared(MadeUpSession({A: 1000.0, B: 800.0})))
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)) == 2 * 48


def test_too_few_pairs_are_broken() -> None:
    report = compared(MadeUpSession({A: 1000.0, B: 0.0}))
    assert report.exit_code == 2
    assert "0 of 12 pairs" in report.conclusions[-1].got


def test_a_comparison_has_a_page(tmp_path: Path) -> None:
    page = render(compared(MadeUpSession({A: 1000.0, B: 800.0})), tmp_path)
    assert "B is not worse than A in rate_mb_per_s" in page
    assert "20.0% worse" in page
    assert page.count("<svg") == 1
