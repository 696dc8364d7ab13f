"""A run's summary in numbers and sentences."""

import pytest

from harness.record.verdict import Finding, Verdict
from harness.report.summary import (
    conclusion,
    duration,
    heaviest_first,
    reason,
    rows,
    skips_by_reason,
)
from tests.harness.report.cases import report_of, result_of


def test_rows_count_areas_per_target_in_the_order_of_the_run() -> None:
    report = report_of(
        result_of("b.one", Verdict.PASS, target="local", seconds=1.5),
        result_of("a.one", Verdict.FAIL, target="local", seconds=2.0),
        result_of("b.two", Verdict.SKIPPED, target="local", seconds=0.5),
        result_of("b.one", Verdict.BROKEN, target="guest", seconds=4.0),
    )
    found = [(row.target, row.area, dict(row.counts), row.seconds) for row in rows(report)]
    assert found == [
        ("local", "b", {Verdict.PASS: 1, Verdict.SKIPPED: 1}, 2.0),
        ("local", "a", {Verdict.FAIL: 1}, 2.0),
        ("guest", "b", {Verdict.BROKEN: 1}, 4.0),
    ]


def test_skips_are_grouped_by_reason_most_frequent_first() -> None:
    report = report_of(
        result_of("a.one", Verdict.SKIPPED, promise="lacks python3"),
        result_of("a.two", Verdict.SKIPPED, promise="lacks cgroups"),
        result_of("a.three", Verdict.SKIPPED, promise="lacks cgroups"),
        result_of("a.four", Verdict.PASS),
    )
    grouped = {why: [each.name for each in found] for why, found in skips_by_reason(report).items()}
    assert grouped == {"lacks cgroups": ["a.two", "a.three"], "lacks python3": ["a.one"]}
    assert list(grouped) == ["lacks cgroups", "lacks python3"]


def test_reason_of_a_skip_without_findings_is_a_placeholder() -> None:
    assert reason(result_of("a.one", Verdict.SKIPPED, findings=())) == "no reason given"


def test_findings_are_ordered_by_weight_and_stable() -> None:
    made = [("p", Verdict.PASS), ("b", Verdict.BROKEN), ("f", Verdict.FAIL), ("g", Verdict.FAIL)]
    findings = tuple(Finding(verdict, promise) for promise, verdict in made)
    assert [each.promise for each in heaviest_first(findings)] == ["f", "g", "b", "p"]


def test_run_of_skips_is_broken_and_inconclusive() -> None:
    report = report_of(result_of("a.one", Verdict.SKIPPED))
    assert report.verdict is Verdict.BROKEN
    assert conclusion(report) == "Inconclusive: no check passed."


@pytest.mark.parametrize(
    ("verdicts", "allowed", "expected"),
    [
        (["PASS"], None, "Every promise that was judged was kept."),
        (
            ["PASS", "SKIPPED"],
            ("*",),
            "Every promise that was judged was kept; 1 check skipped.",
        ),
        (["PASS", "FAIL", "FAIL"], None, "A promise was broken in 2 checks."),
        (
            ["PASS", "BROKEN", "SKIPPED"],
            (),
            "Inconclusive: 1 check BROKEN; 1 check skipped without being allowed to.",
        ),
    ],
)
def test_conclusion_has_the_reason_of_the_verdict(
    verdicts: list[str], allowed: tuple[str, ...] | None, expected: str
) -> None:
    results = [result_of(f"a.n{n}", Verdict(verdict)) for n, verdict in enumerate(verdicts)]
    assert conclusion(report_of(*results, skips_allowed=allowed)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (187, "3 min 07 s"), (3720, "1 h 02 min")],
)
def test_duration_has_the_units_that_people_use(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
