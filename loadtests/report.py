"""The report of a run: an HTML page that needs nothing else, JSON, CSV, Prometheus, the terminal.

It is made from the run's directory, so it can be made again. Text from a server passes the
template's escaping and `harness.report.text`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from harness.record.verdict import BrokenError, Finding, Verdict
from harness.record.whole_file import write_whole
from harness.report.text import one_line, visible
from harness.report.theme import page_template
from loadtests import overview
from loadtests.charts import of_load
from loadtests.exports import write_csv, write_prometheus
from loadtests.figures import FIGURES, Figure, described
from loadtests.metrics import read_load
from loadtests.results import LoadReport, LoadResult, save_report

HTML_FILE: Final = "report.html"
TABLE_FILE: Final = "table.md"
PICTURED_MAX: Final = 16
ORDER: Final = (Verdict.PASS, Verdict.SKIPPED, Verdict.FAIL, Verdict.BROKEN)
_COLOURS: Final = {
    Verdict.PASS: "green", Verdict.SKIPPED: "yellow", Verdict.FAIL: "red",
    Verdict.BROKEN: "magenta",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of figures: its heading, unit and value, and the meaning as a hint.

    `name` is the figure's; empty if it is none.
    """

    head: str
    unit: str
    value: Callable[[LoadResult, Mapping[str, float]], float | None]
    about: str
    name: str = ""

    def cell(self, result: LoadResult, limits: Mapping[str, float]) -> str:
        """Return the value for the table; a dash if the load has no such figure."""
        value = self.value(result, limits)
        if value is None:
            return "-"
        return f"{value:.0%}" if self is SHARE_COLUMN else number(value)

    def text(self, result: LoadResult, limits: Mapping[str, float]) -> str:
        """Return the cell, with its share of plain grpcio's figure under the same load."""
        share = result.shares().get(self.name)
        return self.cell(result, limits) + (f" ({share:.2f})" if share is not None else "")


def _column(head: str, unit: str, figure: Figure, divisor: float = 1.0) -> Column:
    def value(result: LoadResult, _limits: Mapping[str, float]) -> float | None:
        found = figure.of(result.figures)
        return None if found is None else found / divisor

    return Column(head, unit, value, figure.about, figure.name)


SHARE_COLUMN: Final = Column(
    "of plain", "grpcio", LoadResult.share,
    "rate, as a share of plain grpcio's under the same load, or to one reader if that was not run",
)  # fmt: skip
COLUMNS: Final = (
    _column("p50", "ms", described(lambda figures: figures.latency.p50_ms)),
    _column("p99", "ms", described(lambda figures: figures.latency.p99_ms)),
    _column("max", "ms", described(lambda figures: figures.latency.max_ms)),
    _column("rate", "MB/s", described(lambda figures: figures.rates.mb_per_s)),
    SHARE_COLUMN,
    _column("first byte", "p50 ms", described(lambda figures: figures.streams.first_byte_p50_ms)),
    _column("first byte", "p99 ms", described(lambda figures: figures.streams.first_byte_p99_ms)),
    _column("first byte", "last ms", described(lambda figures: figures.streams.first_byte_max_ms)),
    _column("completed", "", described(lambda figures: figures.streams.completed)),
    _column("start", "p50 ms", described(lambda figures: figures.storm.start_p50_ms)),
    _column("start", "p99 ms", described(lambda figures: figures.storm.start_p99_ms)),
    _column("starts", "1/s", described(lambda figures: figures.storm.achieved_per_s)),
    _column("stop", "p99 ms", described(lambda figures: figures.storm.stop_p99_ms)),
    _column("fairness", "", described(lambda figures: figures.streams.fairness)),
    _column("slowest", "share", described(lambda figures: figures.streams.slowest_share)),
    _column("CPU", "s/GB", described(lambda figures: figures.server.cpu_s_per_gb)),
    _column("CPU", "us/message", described(lambda figures: figures.server.cpu_us_per_message)),
    _column("CPU", "ms/start", described(lambda figures: figures.server.cpu_ms_per_start)),
    _column(
        "streamer", "KiB", described(lambda figures: figures.server.memory_per_streamer_bytes),
        1024.0,
    ),
    _column("own lag", "p99 ms", described(lambda figures: figures.generator.lag_p99_ms)),
)  # fmt: skip


def number(value: float) -> str:
    """Return a number with three significant digits, and no exponent."""
    if value == 0 or abs(value) >= 100:  # noqa: PLR2004 - three digits before the point
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def conclusion(report: LoadReport) -> str:
    """Return the run in a sentence."""
    if report.comparison is not None and report.comparison.effects:
        last = report.comparison.effects[-1]
        return f"{report.comparison.figure} of {last.name}, in {last.pairs} pairs: {last.says}."
    counts = Counter(result.verdict for result in report.results)
    total = len(report.results)
    match report.verdict:
        case Verdict.PASS:
            return (
                f"All {total} loads were reached, every byte was correct, and every limit was kept."
            )
        case Verdict.FAIL:
            return "The server broke a promise or exceeded a limit; details below."
        case Verdict.SKIPPED:
            return (
                f"{counts[Verdict.SKIPPED]} of {total} loads were disturbed, or have a limit that "
                "cannot be judged remotely."
            )
    return (
        "Inconclusive: some loads were not reached, were disturbed, or lack the figure that a "
        "limit bounds."
    )


def write_all(report: LoadReport, directory: Path) -> None:
    """Write every kind of report into the run's directory."""
    save_report(report, directory)
    write_csv(report, directory)
    write_prometheus(report, directory)
    write_whole(directory / TABLE_FILE, table(report))
    write_whole(directory / HTML_FILE, render(report, directory))


def render(report: LoadReport, directory: Path) -> str:
    """Return a run as a page."""
    limits, columns = report.limits, _columns(report)
    title, pictures = overview.pictures(report)
    return page_template("loadtests", {}).render(
        report=report,
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


def _columns(report: LoadReport) -> list[Column]:
    """Return the columns of figures that at least one load has."""
    return [
        column
        for column in COLUMNS
        if any(column.value(result, report.limits) is not None for result in report.results)
    ]


def _row(
    result: LoadResult, columns: Sequence[Column], limits: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "anchor": result.directory, "title": result.title, "verdict": result.verdict,
        "cells": [column.text(result, limits) for column in columns],
    }  # fmt: skip


def _problems(report: LoadReport) -> list[dict[str, Any]]:
    """Return a card for each promise that was not kept, with the loads that did not keep it."""
    cards: dict[tuple[Verdict, str], list[tuple[str, Finding]]] = {}
    for finding in report.conclusions:
        if finding.verdict is not Verdict.PASS:
            cards.setdefault((finding.verdict, finding.promise), []).append(("", finding))
    for result in report.results:
        for finding in result.decisive:
            key = (finding.verdict, finding.promise)
            cards.setdefault(key, []).append((result.title, finding))
    ordered = sorted(cards.items(), key=lambda card: ORDER.index(card[0][0]), reverse=True)
    return [
        {"verdict": verdict, "promise": promise, "rows": rows}
        for (verdict, promise), rows in ordered
    ]


def _pictured(result: LoadResult, directory: Path) -> dict[str, Any]:
    about, note, charts = "", "", []
    try:
        recorded = read_load(directory / result.directory)
        about = recorded.load.profile.about
        charts = of_load(recorded, result.directory)
    except BrokenError as error:
        note = f"The pictures are missing: {error}"
    return {
        "anchor": result.directory, "title": result.title, "verdict": result.verdict,
        "about": about, "note": note, "charts": charts, "findings": result.findings,
        "figures": [
            (name, f"{number(value)} {FIGURES[name].unit}{_share(result, name)}",
             FIGURES[name].about)
            for name, value in result.figures.by_name().items()
        ],
    }  # fmt: skip


def _share(result: LoadResult, name: str) -> str:
    share = result.shares().get(name)
    return "" if share is None else f", {share:.2f} of plain grpcio"


def table(report: LoadReport) -> str:
    """Return a run's figures in Markdown: a row for each load and figure, medians of repetitions.

    Beside each the figure of plain grpcio under the same load, and the share of it.
    """
    lines = [
        "| load | figure | median | range | plain grpcio | share |",
        "|---|---|---|---|---|---|",
    ]
    repeated: dict[str, list[LoadResult]] = {}
    for result in report.results:
        if not result.is_plain:
            labels = {key: value for key, value in result.labels.items() if key != overview.ROUND}
            repeated.setdefault(replace(result, labels=labels).title, []).append(result)
    for title, results in repeated.items():
        for column in _columns(report):
            values = _values(column, results, report.limits)
            if column is SHARE_COLUMN or not values:
                continue
            plain = _values(
                column, [replace(each, figures=each.plain) for each in results], report.limits
            )
            shares = [found for each in results if (found := each.shares().get(column.name))]
            cells = [
                visible(title), f"{column.head} {column.unit}".strip(), number(median(values)),
                f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else "",
                number(median(plain)) if plain else "",
                f"{median(shares):.2f}" if shares else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _values(
    column: Column, results: Sequence[LoadResult], limits: Mapping[str, float]
) -> list[float]:
    found = (column.value(each, limits) for each in results)
    return [value for value in found if value is not None]


def print_result(result: LoadResult) -> None:
    """Print a load that has just ended: a line, and the findings that explain its verdict."""
    word = click.style(f"{result.verdict:8}", fg=_COLOURS[result.verdict], bold=True)
    title, parts = one_line(result.title, 60), "   ".join(_summary(result))
    click.echo(f"{word} {title:34} {parts}  ({result.seconds:.0f} s)")
    for finding in result.decisive:
        click.echo(f"         {one_line(finding.sentence(), 400)}")


def _summary(result: LoadResult) -> Iterator[str]:
    latency, figures = result.figures.latency, result.figures
    if latency.p50_ms is not None and latency.p99_ms is not None and latency.max_ms is not None:
        yield (
            f"p50 {number(latency.p50_ms)}  p99 {number(latency.p99_ms)}  "
            f"max {number(latency.max_ms)} ms"
        )
    if (rate := result.unpaced_mb_per_s) is not None:
        yield f"{number(rate)} MB/s"
    storm = figures.storm
    if storm.start_p50_ms is not None and storm.start_p99_ms is not None:
        yield f"start p50 {number(storm.start_p50_ms)}  p99 {number(storm.start_p99_ms)} ms"
        if storm.asked_per_s is None and storm.achieved_per_s is not None:
            yield f"{number(storm.achieved_per_s)} starts/s"
    if figures.server.cpu_s_per_gb is not None:
        yield f"CPU {number(figures.server.cpu_s_per_gb)} s/GB"


def print_report(report: LoadReport, directory: Path) -> None:
    """Print the table of figures, the verdict and the path of the report."""
    if report.limits:
        words = ", ".join(f"{name} {rate:,.0f} MB/s" for name, rate in report.limits.items())
        click.echo(f"\nthis machine's limits over loopback: {words}")
    console = Console(highlight=False)
    if console.is_terminal and console.width >= 120:  # noqa: PLR2004 - what the table needs
        drawn = Table(box=None, header_style="dim", padding=(0, 1))
        columns = _columns(report)
        for name in ("", *(f"{each.head} {each.unit}" for each in columns)):
            drawn.add_column(name, justify="right" if name else "left")
        for result in report.results:
            drawn.add_row(
                visible(result.title), *(each.text(result, report.limits) for each in columns)
            )
        console.print(drawn)
    for finding in report.conclusions:
        click.echo(f"{finding.verdict}: {one_line(finding.sentence(), 600)}")
    word = click.style(report.verdict, fg=_COLOURS[report.verdict], bold=True)
    click.echo(f"\n{word}: {conclusion(report)}\n{directory / HTML_FILE}")
