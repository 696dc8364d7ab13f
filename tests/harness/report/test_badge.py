"""The badge: its text and colour by the run's result."""

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.record.known_failing import KnownFailure
from harness.record.results import RunReport
from harness.record.verdict import Verdict
from harness.report import write_all
from harness.report.badge import badge_of
from tests.harness.report.cases import report_of, result_of

GREEN, YELLOW, RED, GREY = "#0a7a55", "#80630a", "#b93413", "#59626d"


def run_of(verdicts: str, known: str = "", **changed: object) -> RunReport:
    """Return a run with a check for each letter: P, F, B or S."""
    kinds = {"P": Verdict.PASS, "F": Verdict.FAIL, "B": Verdict.BROKEN, "S": Verdict.SKIPPED}
    results = [result_of(f"a.c{n}", kinds[letter]) for n, letter in enumerate(verdicts)]
    entries = tuple(KnownFailure("*", f"a.c{n}", "why") for n in map(int, known))
    report = dataclasses.replace(report_of(*results), known_failing=entries)
    return dataclasses.replace(report, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "message", "colour"),
    [
        (run_of("PP"), "2 passed", GREEN),
        (run_of("PSS"), "1 passed, 2 skipped", GREEN),
        (run_of("PF", known="1"), "1 passed, 1 known to fail", YELLOW),
        (run_of("PFB"), "1 check failed", RED),
        (run_of("PFF", known="1"), "1 check failed", RED),
        (run_of("PP", known="1"), "1 passed unexpectedly", RED),
        (run_of("PFP", known="2"), "1 check failed, 1 passed unexpectedly", RED),
        (run_of("PB"), "inconclusive", GREY),
        (run_of("S"), "inconclusive", GREY),
        (run_of(""), "inconclusive", GREY),
        (run_of("P", expected=2), "inconclusive", GREY),
        (run_of("P", setup_error="no route"), "inconclusive", GREY),
    ],
)
def test_badge_is_green_only_for_a_run_that_kept_every_promise(
    report: RunReport, message: str, colour: str
) -> None:
    badge = badge_of(report)
    assert (badge.message, badge.colour) == (message, colour)


def test_badge_files_have_the_endpoint_schema_and_the_same_text(tmp_path: Path) -> None:
    write_all(run_of("PF"), tmp_path)
    assert json.loads((tmp_path / "badge.json").read_text()) == {
        "schemaVersion": 1,
        "label": "job worker",
        "message": "1 check failed",
        "color": RED,
        "isError": True,
    }
    root = ET.parse(tmp_path / "badge.svg").getroot()  # noqa: S314 - our own
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["job worker", "1 check failed"]
    assert root.get("aria-label") == "job worker: 1 check failed"
    write_all(run_of("P"), tmp_path)
    assert json.loads((tmp_path / "badge.json").read_text())["isError"] is False
