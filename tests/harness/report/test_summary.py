"""What a run comes to in numbers and sentences."""

import pytest

from harness.record.verdict import Finding, Verdict
from harness.report.summary import (
    conclusion,
    duration,
    reason,
    rows,
    skips_by_reason,
    weightiest_first,
)
from tests.harness.report.cases import report_of, result_of


def test_rows_count_each_area_of_each_target_in_the_order_of_the_run() -> None:
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


def test_skips_are_grouped_by_reason_the_most_frequent_first() -> None:
    report = report_of(
        result_of("a.one", Verdict.SKIPPED, promise="lacks python3"),
        result_of("a.two", Verdict.SKIPPED, promise="lacks cgroups"),
        result_of("a.three", Verdict.SKIPPED, promise="lacks cgroups"),
        result_of("a.four", Verdict.PASS),
    )
    grouped = {why: [each.name for each in found] for why, found in skips_by_reason(report).items()}
    assert grouped == {"lacks cgroups": ["a.two", "a.three"], "lacks python3": ["a.one"]}
    assert list(grouped) == ["lacks cgroups", "lacks python3"]


def test_a_skip_without_a_reason_says_so() -> None:
    assert reason(result_of("a.one", Verdict.SKIPPED, findings=())) == "no reason given"


def test_broken_promises_come_before_kept_ones_and_stay_in_order() -> None:
    made = [("p", Verdict.PASS), ("b", Verdict.BROKEN), ("f", Verdict.FAIL), ("g", Verdict.FAIL)]
    findings = tuple(Finding(verdict, promise) for promise, verdict in made)
    assert [each.promise for each in weightiest_first(findings)] == ["f", "g", "b", "p"]


def test_only_skips_are_a_run_that_says_nothing() -> None:
    report = report_of(result_of("a.one", Verdict.SKIPPED))
    assert report.verdict is Verdict.BROKEN
    assert conclusion(report) == (
        "The run says nothing final: no check passed, so nothing was shown."
    )


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
            (
                "The run says nothing final: 1 check could not be judged; "
                "1 check skipped against what the run allows."
            ),
        ),
    ],
)
def test_the_conclusion_says_why(
    verdicts: list[str], allowed: tuple[str, ...] | None, expected: str
) -> None:
    results = [result_of(f"a.n{n}", Verdict(verdict)) for n, verdict in enumerate(verdicts)]
    assert conclusion(report_of(*results, skips_allowed=allowed)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (187, "3 min 07 s"), (3720, "1 h 02 min")],
)
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
