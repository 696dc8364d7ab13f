"""A run's summary in numbers and sentences."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from harness.record.results import RunReport, load_report
from harness.record.verdict import Finding, Verdict
from harness.report import write_all
from harness.report.summary import (
    conclusion,
    duration,
    heaviest_first,
    reason,
    rows,
    skips_by_reason,
)
from harness.report.terminal import Terminal
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


def hiding_report() -> RunReport:
    """Return a run in which one failure hides two checks of its target, and another none."""
    explained = Finding(Verdict.SKIPPED, "could not be judged because of b.two", because="b.two")
    return report_of(
        result_of("b.one", Verdict.FAIL),
        result_of("b.odd", Verdict.BROKEN),
        result_of("streams.end", Verdict.FAIL, promise="a stream ends <with> its job"),
        result_of("b.two", Verdict.FAIL),
        result_of("c.one", Verdict.SKIPPED, findings=(explained,)),
        result_of("c.two", Verdict.SKIPPED, findings=(explained,)),
        result_of("c.two", Verdict.SKIPPED, findings=(explained,), target="vm"),
    )


CAUSES = [("streams.end", 0), ("b.one", 0), ("b.two", 2), ("b.odd", 0)]


def test_causes_are_failures_by_rank_then_what_is_broken_with_what_each_hides() -> None:
    assert [(each.result.name, each.hides) for each in hiding_report().causes()] == CAUSES


def test_every_kind_of_report_begins_with_the_causes(tmp_path: Path) -> None:
    report = hiding_report()
    file = io.StringIO()
    Terminal(Console(file=file, width=200)).end(report, tmp_path)
    printed = file.getvalue()
    assert printed.startswith(
        "\nCauses, the most fundamental first\n  FAIL    local  streams.end\n"
    )
    assert "  FAIL    local  b.two\n    the promise\n    2 checks could not be judged" in printed
    write_all(report, tmp_path)
    values = json.loads((tmp_path / "results.json").read_text())
    assert list(values)[:2] == ["verdict", "causes"]
    assert [(each["name"], each["hides"]) for each in values["causes"]] == CAUSES
    assert load_report(tmp_path) == report
    cases = ET.parse(tmp_path / "junit.xml").findall(".//testcase")  # noqa: S314 - our own
    names = [f"{case.get('classname')}.{case.get('name')}" for case in cases]
    assert names[:4] == [name for name, _ in CAUSES]
    page = (tmp_path / "report.html").read_text()
    assert page.index("the most fundamental first") < page.index("How to repeat this run")
    assert "2 checks could not be judged because of it." in page
