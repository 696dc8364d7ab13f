"""The report for people: one self-contained HTML file, readable without a network or scripts.

The template escapes all text, and `text.visible` makes it printable; only charts are markup. As a
second defence, the page's Content-Security-Policy allows only its own script to run.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2

from harness.record.history import load
from harness.record.results import CheckResult, RunReport
from harness.record.verdict import BrokenError, Finding
from harness.report import summary
from harness.report.by_hand import script_of
from harness.report.documented import Documented, documented
from harness.report.text import bounded
from harness.report.theme import Chart, page_template

FINDINGS_MAX: Final = 200
DECISIVE_MAX: Final = 5
_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DrawnCharts:
    """What a page shows of a check's records.

    Attributes:
        charts: the charts.
        note: why they could not be drawn; empty if they were.
        script: the check's first calls, by another client; see `by_hand`.
    """

    charts: tuple[Chart, ...] = ()
    note: str = ""
    script: str = ""


class Charts:
    """Draws the charts of a run's histories, which are below its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, result: CheckResult, id_prefix: str) -> DrawnCharts:
        """Return a check's charts; never raises: a report without charts is better than none."""
        if not result.history:
            return DrawnCharts()
        try:
            history = load(self._directory / result.history)
        except (BrokenError, OSError, ValueError) as error:
            return DrawnCharts(note=f"The records cannot be read: {error}")
        script = script_of(history)
        try:
            # A report without records draws nothing, and matplotlib takes half a second to import.
            from harness.report.charts import draw  # noqa: PLC0415

            return DrawnCharts(tuple(draw(history, id_prefix)), script=script)
        except Exception as error:  # noqa: BLE001 - see the docstring
            kind = "" if isinstance(error, BrokenError) else f"{type(error).__name__}: "
            return DrawnCharts(note=f"The charts cannot be drawn: {kind}{error}", script=script)


@dataclass(frozen=True, slots=True)
class _Case:
    """One check against one target, as on the page."""

    result: CheckResult
    anchor: str
    drawn: DrawnCharts
    unexpected: bool

    @property
    def decisive(self) -> tuple[Finding, ...]:
        return self.result.decisive[:DECISIVE_MAX]

    @property
    def decisive_left_out(self) -> int:
        return len(self.result.decisive) - len(self.decisive)

    @property
    def findings(self) -> list[Finding]:
        return summary.heaviest_first(self.result.findings)[:FINDINGS_MAX]

    @property
    def findings_left_out(self) -> int:
        return max(0, len(self.result.findings) - FINDINGS_MAX)

    @property
    def documented(self) -> list[Documented]:
        return documented(self.result.cites)

    @property
    def reason(self) -> str:
        return summary.reason(self.result)


@dataclass(frozen=True, slots=True)
class _Guarantee:
    """One check, against all of its targets."""

    anchor: str
    cases: Sequence[_Case]

    @property
    def first(self) -> CheckResult:
        return self.cases[0].result


def render(
    report: RunReport,
    charts: Callable[[CheckResult, str], DrawnCharts] = lambda _result, _prefix: DrawnCharts(),
) -> str:
    """Return a run's page.

    Args:
        report: the run.
        charts: returns a check's charts; the string is the required prefix of their ids.
    """
    cases = _cases(report, charts)
    by_result = {id(case.result): case for case in cases}
    page = _template().render(
        report=report,
        conclusion=summary.conclusion(report),
        counts=[(verdict, report.counts()[verdict]) for verdict in summary.ORDER],
        targets=_targets(report),
        times=summary.times(report),
        problems=[
            (by_result[id(each.result)], each.hides) for each in report.causes() if not each.known
        ],
        known=[(by_result[id(each.result)], each) for each in report.causes() if each.known],
        passed=[by_result[id(each)] for each in report.unexpected_passes()],
        unconfirmed=report.unconfirmed(),
        unexpected=[case for case in cases if case.unexpected],
        skips=_skips(report, by_result),
        areas=_areas(cases),
    )
    return page.replace("SCRIPT-HASH", _script_hash(page), 1)


def _targets(report: RunReport) -> dict[str, list[summary.SummaryRow]]:
    targets: dict[str, list[summary.SummaryRow]] = {}
    for row in summary.rows(report):
        targets.setdefault(row.target, []).append(row)
    return targets


def _cases(report: RunReport, charts: Callable[[CheckResult, str], DrawnCharts]) -> list[_Case]:
    unexpected = {id(result) for result in report.unexpected_skips()}
    cases = []
    anchors: set[str] = set()
    for number, result in enumerate(report.results):
        anchor = _unique(f"{_slug(result.target)}:{_slug(result.name)}", anchors)
        drawn = charts(result, f"p{number}")
        cases.append(_Case(result, anchor, drawn, id(result) in unexpected))
    return cases


def _areas(cases: Sequence[_Case]) -> dict[str, list[_Guarantee]]:
    by_name: dict[str, list[_Case]] = {}
    for case in cases:
        by_name.setdefault(case.result.name, []).append(case)
    areas: dict[str, list[_Guarantee]] = {}
    anchors: set[str] = set()
    for name, members in by_name.items():
        guarantee = _Guarantee(_unique(_slug(name), anchors), members)
        areas.setdefault(guarantee.first.area, []).append(guarantee)
    return areas


def _skips(report: RunReport, by_result: Mapping[int, _Case]) -> Mapping[str, list[_Case]]:
    return {
        why: [by_result[id(result)] for result in results]
        for why, results in summary.skips_by_reason(report).items()
    }


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _unique(anchor: str, taken: set[str]) -> str:
    number = 1
    unique = anchor
    while unique in taken:
        number += 1
        unique = f"{anchor}-{number}"
    taken.add(unique)
    return unique


def _template() -> jinja2.Template:
    return page_template(
        "harness.report",
        {
            "bounded": bounded,
            "counted": summary.counted,
            "duration": summary.duration,
            "slug": _slug,
        },
    )


def _script_hash(page: str) -> str:
    """Return the source expression that lets the page's policy run its script."""
    [script] = _SCRIPT.findall(page)
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
