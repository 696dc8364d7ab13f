"""The report of a run: an HTML page that needs nothing else, JSON, CSV, Prometheus, the terminal.

Written from what lies in the run's directory, so that it can be written again. Text that came from
a server passes the template's escaping and `harness.report.text`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import click
import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from harness.record.verdict import BrokenError, Finding, Verdict
from harness.report.charts import Chart
from harness.report.text import one_line, visible
from loadtests import overview
from loadtests.charts import of_load
from loadtests.exports import write_csv, write_prometheus
from loadtests.metrics import FIGURES, read_load
from loadtests.results import LoadReport, LoadResult, save_report

HTML_FILE: Final = "report.html"
PICTURED_MAX: Final = 16
ORDER: Final = (Verdict.PASS, Verdict.SKIPPED, Verdict.FAIL, Verdict.BROKEN)
_STYLE: Final = re.compile(r"<style>.*?</style>", re.DOTALL)
_COLOURS: Final = {
    Verdict.PASS: "green", Verdict.SKIPPED: "yellow", Verdict.FAIL: "red",
    Verdict.BROKEN: "magenta",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of figures: which figure, what stands above, by what it is divided."""

    figure: str
    head: str
    unit: str = ""
    divisor: float = 1.0

    @property
    def about(self) -> str:
        """What the figure is."""
        return FIGURES[self.figure][1] if self.figure in FIGURES else ""


COLUMNS: Final = (
    Column("latency_p50_ms", "p50", "ms"),
    Column("latency_p99_ms", "p99", "ms"),
    Column("latency_max_ms", "max", "ms"),
    Column("rate_mb_per_s", "rate", "MB/s"),
    Column("share", "of plain", "grpcio"),
    Column("first_byte_p99_ms", "first byte", "p99 ms"),
    Column("start_p99_ms", "start", "p99 ms"),
    Column("stop_p99_ms", "stop", "p99 ms"),
    Column("fairness", "fair", "ness"),
    Column("server_cpu_s_per_gb", "CPU", "s/GB"),
    Column("memory_per_streamer_bytes", "streamer", "KiB", 1024.0),
    Column("generator_lag_p99_ms", "own lag", "p99 ms"),
)


def cell(result: LoadResult, column: Column, limits: dict[str, float]) -> str:
    """Return a figure as the table shows it; a dash where there is none."""
    if column.figure == "share":
        share = result.share(limits)
        return "-" if share is None else f"{share:.0%}"
    value = result.figures.get(column.figure)
    return "-" if value is None else number(value / column.divisor)


def number(value: float) -> str:
    """Return a number with three digits that matter, and no exponent."""
    if value == 0 or abs(value) >= 100:  # noqa: PLR2004 - three digits before the point
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def conclusion(report: LoadReport) -> str:
    """Return the run in a sentence."""
    if report.kind == "compare" and report.comparison.get("effects"):
        last = report.comparison["effects"][-1]
        between = f"{report.comparison['figure']} between {last['name']}"
        return f"{between}, in {last['pairs']} pairs: {last['says']}."
    counts = Counter(result.verdict for result in report.results)
    total = len(report.results)
    match report.verdict:
        case Verdict.PASS:
            return (
                f"All {total} loads were reached, every byte was right, and every limit was kept."
            )
        case Verdict.FAIL:
            return "The server broke a promise or a limit; see below which."
        case Verdict.SKIPPED:
            return (
                f"{counts[Verdict.SKIPPED]} of {total} loads were disturbed, or cannot be judged "
                "from here."
            )
    return (
        "Some loads were not reached, were disturbed, or have not the figure that was limited: "
        "they say nothing of the server."
    )


def write_all(report: LoadReport, directory: Path) -> None:
    """Write every kind of report into the run's directory."""
    save_report(report, directory)
    write_csv(report, directory)
    write_prometheus(report, directory)
    (directory / HTML_FILE).write_text(render(report, directory), encoding="utf-8")


def render(report: LoadReport, directory: Path) -> str:
    """Return a run as a page."""
    limits = dict(report.limits)
    columns = [
        column
        for column in COLUMNS
        if any(cell(result, column, limits) != "-" for result in report.results)
    ]
    title, pictures = overview.pictures(report)
    return _template().render(
        report=report,
        style=_style(),
        conclusion=conclusion(report),
        counts=[
            (verdict, sum(result.verdict is verdict for result in report.results))
            for verdict in ORDER
        ],
        overview_title=title,
        overview=pictures,
        comparison=overview.comparison_rows(report),
        columns=columns,
        rows=[_row(result, columns, limits) for result in overview.in_order(report)],
        problems=_problems(report),
        pictured=[
            _pictured(result, directory) for result in overview.in_order(report)[:PICTURED_MAX]
        ],
    )


def _row(result: LoadResult, columns: Sequence[Column], limits: dict[str, float]) -> dict[str, Any]:
    return {
        "anchor": result.directory, "title": result.title, "verdict": result.verdict,
        "cells": [cell(result, column, limits) for column in columns],
    }  # fmt: skip


def _problems(report: LoadReport) -> list[dict[str, Any]]:
    """Return what went wrong: a card for each promise, with every load that it went wrong in."""
    cards: dict[tuple[Verdict, str], list[tuple[str, Finding]]] = {}
    for finding in report.conclusions:
        if finding.verdict is not Verdict.PASS:
            cards.setdefault((finding.verdict, finding.promise), []).append(("", finding))
    for result in report.results:
        for finding in result.telling:
            key = (finding.verdict, finding.promise)
            cards.setdefault(key, []).append((result.title, finding))
    ordered = sorted(cards.items(), key=lambda card: ORDER.index(card[0][0]), reverse=True)
    return [
        {"verdict": verdict, "promise": promise, "rows": rows}
        for (verdict, promise), rows in ordered
    ]


def _pictured(result: LoadResult, directory: Path) -> dict[str, Any]:
    about, note = "", ""
    charts: list[Chart] = []
    try:
        recorded = read_load(directory / result.directory)
        about = recorded.load.profile.about
        charts = of_load(recorded, result.directory)
    except BrokenError as error:
        note = f"There are no pictures: {error}"
    return {
        "anchor": result.directory, "title": result.title, "verdict": result.verdict,
        "about": about, "note": note, "charts": charts, "findings": result.findings,
        "figures": [
            (name, f"{number(value)} {FIGURES[name][0]}", FIGURES[name][1])
            for name, value in result.figures.items()
        ],
    }  # fmt: skip


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, finalize=_finalized, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["picture"] = _picture
    source = (resources.files("loadtests") / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _style() -> Markup:
    """Return the style of the harness's report, so that the two look alike."""
    source = (resources.files("harness.report") / "report.html.j2").read_text(encoding="utf-8")
    found = _STYLE.search(source)
    return Markup(found[0] if found else "")  # noqa: S704 - this project's own text


def _finalized(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def _picture(chart: Chart) -> Markup:
    return Markup(chart.svg)  # noqa: S704 - matplotlib has escaped the text in it


def tell_result(result: LoadResult) -> None:
    """Print a line, or some, about a load that has just ended."""
    figures = result.figures
    parts = []
    if "latency_p99_ms" in figures:
        parts.append(
            f"p50 {number(figures['latency_p50_ms'])}  p99 {number(figures['latency_p99_ms'])}  "
            f"max {number(figures['latency_max_ms'])} ms"
        )
    if result.is_unpaced:
        parts.append(f"{number(figures['rate_mb_per_s'])} MB/s")
    if "start_p99_ms" in figures:
        parts.append(f"start p99 {number(figures['start_p99_ms'])} ms")
    if "server_cpu_s_per_gb" in figures:
        parts.append(f"CPU {number(figures['server_cpu_s_per_gb'])} s/GB")
    word = click.style(f"{result.verdict:8}", fg=_COLOURS[result.verdict], bold=True)
    title = one_line(result.title, 60)
    click.echo(f"{word} {title:34} {'   '.join(parts)}  ({result.seconds:.0f} s)")
    for finding in result.telling:
        click.echo(f"         {one_line(finding.sentence(), 400)}")


def tell_end(report: LoadReport, directory: Path) -> None:
    """Print the table of figures, and where the report is."""
    limits = dict(report.limits)
    if report.limits:
        words = ", ".join(f"{name} {rate:,.0f} MB/s" for name, rate in report.limits.items())
        click.echo(f"\nthis machine's limits over loopback: {words}")
    console = Console(highlight=False)
    if console.is_terminal and console.width >= 120:  # noqa: PLR2004 - what the table needs
        table = Table(box=None, header_style="dim", padding=(0, 1))
        for name in ("", *(f"{each.head} {each.unit}" for each in COLUMNS)):
            table.add_column(name, justify="right" if name else "left")
        for result in report.results:
            table.add_row(visible(result.title), *(cell(result, each, limits) for each in COLUMNS))
        console.print(table)
    for finding in report.conclusions:
        click.echo(f"{finding.verdict}: {_said(finding)}")
    word = click.style(report.verdict, fg=_COLOURS[report.verdict], bold=True)
    click.echo(f"\n{word}: {conclusion(report)}\n{directory / HTML_FILE}")


def _said(finding: Finding) -> str:
    return one_line(finding.sentence(), 600)
