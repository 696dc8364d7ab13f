"""The pictures of a whole run: rates beside the limits, a sweep's curves, a comparison's pairs."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from statistics import median
from typing import Any, Final

from harness.report.charts import Chart
from loadtests.charts import Drawing, Points, bars, charts, curves, shares
from loadtests.results import RATE, LoadReport, LoadResult

AXIS: Final = "axis"
VALUE: Final = "value"
BY_RATE: Final = "rate_per_s"

# What a value of an axis may end in: its worth in bytes or seconds, as our server's flags have it.
_UNITS: Final[Mapping[str, tuple[float, str]]] = {
    "": (1.0, ""),
    "B": (1.0, "bytes"), "KiB": (2.0**10, "bytes"), "MiB": (2.0**20, "bytes"),
    "GiB": (2.0**30, "bytes"),
    "us": (1e-6, "seconds"), "ms": (1e-3, "seconds"), "s": (1.0, "seconds"),
    "m": (60.0, "seconds"),
}  # fmt: skip
_QUANTITY: Final = re.compile(rf"(-?\d+(?:\.\d+)?(?:e-?\d+)?)({'|'.join(_UNITS)})")

# A sweep's pictures: title, axis label, and the figures in one picture with their names and scales.
_CURVES: Final[tuple[tuple[str, str, Mapping[str, tuple[str, float]]], ...]] = (
    ("Rate", "MB/s", {"all streamers together": (RATE, 1.0)}),
    ("Messages", "1/s", {
        "asked of the job": ("asked_per_s", 1.0), "written by it": ("achieved_per_s", 1.0),
    }),
    ("Latency", "ms", {
        "largest": ("latency_max_ms", 1.0), "p99": ("latency_p99_ms", 1.0),
        "p50": ("latency_p50_ms", 1.0), "generator's own lag, p99": ("generator_lag_p99_ms", 1.0),
    }),
    ("Memory of the server", "MiB", {
        "resident, at most": ("server_rss_peak_bytes", 2.0**20),
        "logs": ("log_memory_peak_bytes", 2.0**20),
    }),
    ("Memory of a streamer", "KiB", {
        "resident memory grown by, for each": ("memory_per_streamer_bytes", 1024.0),
    }),
    ("Processor time", "s/GB", {"of the server": ("server_cpu_s_per_gb", 1.0)}),
    ("Fairness", "Jain's index", {"1 is equal": ("fairness", 1.0)}),
)  # fmt: skip


def pictures(report: LoadReport) -> tuple[str, list[Chart]]:
    """Return what stands above a run's pictures, and these."""
    titles = {"sweep": "What changes with what", "run": "Rates", "compare": "Pairs"}
    return titles.get(report.kind, ""), charts(drawings(report), report.kind)


def drawings(report: LoadReport) -> list[Callable[[], Drawing]]:
    """Return the pictures of a whole run."""
    if report.kind == "sweep":
        return sweep_drawings(report)
    unpaced = [each for each in report.results if each.is_unpaced]
    if report.kind == "run" and unpaced:
        return [partial(shares, unpaced, report.limits)]
    if report.comparison.get("ratios"):
        return [partial(_pairs, report)]
    return []


def sweep_drawings(report: LoadReport) -> list[Callable[[], Drawing]]:
    """Return the pictures of a sweep: for each axis, each figure that it changes.

    Over numbers, sizes and times these are lines; over words, or over quantities of two kinds (a 0
    beside sizes stands for "no bound"), bars.
    """
    found: list[Callable[[], Drawing]] = []
    for axis, points in by_axis(report).items():
        if len(points) < 2:  # noqa: PLR2004 - nothing to see the difference of
            continue
        quantities = _quantities(list(points))
        for title, y_label, figures in _CURVES:
            lines = {
                name: line
                for name, (figure, scale) in figures.items()
                if (line := _line(points, quantities, figure, scale))
            }
            if not lines or (title == "Latency" and "p50" not in lines):
                continue
            if title == "Messages" and axis != BY_RATE:
                continue  # as many as ever
            levels = report.limits if title == "Rate" and _all_unpaced(points) else {}
            paced = "latency_p50_ms" in _any_figures(points)
            if title == "Rate" and paced and axis != BY_RATE:
                continue  # a paced load's rate is what was asked for
            caption = (
                f"By {axis}, all else as it was; medians where a point was run more than once."
            )
            if quantities is None:
                found.append(partial(
                    bars, title, caption, axis, y_label, lines, names=list(points), levels=levels
                ))  # fmt: skip
            else:
                named = dict(zip(quantities, points, strict=True))
                found.append(partial(
                    curves, title, caption, axis, y_label, lines, levels=levels,
                    log_x=_spans_decades(quantities),
                    ticks={} if all(_is_number(value) for value in points) else named,
                ))  # fmt: skip
    return found


def by_axis(report: LoadReport) -> dict[str, dict[str, list[LoadResult]]]:
    """Return a sweep's results by axis and value, in the order in which they were asked for."""
    found: dict[str, dict[str, list[LoadResult]]] = {}
    for result in report.results:
        if AXIS in result.labels:
            values = found.setdefault(result.labels[AXIS], {})
            values.setdefault(result.labels[VALUE], []).append(result)
    return found


def in_order(report: LoadReport) -> list[LoadResult]:
    """Return results as they are best read: a sweep's by axis and value, others as they came."""
    axes = list(by_axis(report))

    def place(result: LoadResult) -> tuple[int, float, str]:
        value = result.labels.get(VALUE, "")
        axis = result.labels.get(AXIS, "")
        number = (quantity(value) or (0.0, ""))[0]
        return (axes.index(axis) if axis in axes else -1, number, value)

    return sorted(report.results, key=place) if axes else list(report.results)


def quantity(text: str) -> tuple[float, str] | None:
    """Return a number and of what kind it is: a plain one, bytes or seconds; None for a word."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        return None
    unit, kind = _UNITS[found[2]]
    return float(found[1]) * unit, kind


def _quantities(texts: Sequence[str]) -> list[float] | None:
    """Return the values of an axis, if they are numbers of one kind and no two are the same."""
    found = [each for each in map(quantity, texts) if each is not None]
    values = [value for value, _ in found]
    kinds = {kind for _, kind in found}
    if len(values) < len(texts) or len(kinds) > 1 or len(set(values)) < len(values):
        return None
    return values


def _is_number(text: str) -> bool:
    return (quantity(text) or (0.0, "a word"))[1] == ""


def _line(
    points: Mapping[str, list[LoadResult]], quantities: Sequence[float] | None, figure: str,
    scale: float,
) -> Points:  # fmt: skip
    """Return a line over an axis's values, or over its values' places in the order asked for."""
    line = []
    for at, results in zip(quantities or range(len(points)), points.values(), strict=True):
        found = [each.figures[figure] / scale for each in results if figure in each.figures]
        if found:
            line.append((float(at), median(found)))
    return sorted(line)


def _all_unpaced(points: Mapping[str, list[LoadResult]]) -> bool:
    return all(each.is_unpaced for results in points.values() for each in results if each.figures)


def _any_figures(points: Mapping[str, list[LoadResult]]) -> Mapping[str, float]:
    return next((r.figures for results in points.values() for r in results if r.figures), {})


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return min(values) >= 0 and max(positive) / min(positive) >= 10  # noqa: PLR2004 - a decade


def comparison_rows(report: LoadReport) -> list[dict[str, Any]]:
    """Return a comparison as rows of a table."""
    return [
        {
            "name": each["name"], "pairs": each["pairs"], "a": f"{each['median_a']:.4g}",
            "b": f"{each['median_b']:.4g}", "ratio": f"{each['ratio']:.3f}",
            "interval": f"{each['low']:.3f} to {each['high']:.3f}", "p": f"{each['p']:.4f}",
            "says": each["says"],
        }
        for each in report.comparison.get("effects", [])
    ]  # fmt: skip


def _pairs(report: LoadReport) -> Drawing:
    lines: dict[str, Points] = {}
    for name, group in groupby(report.comparison["ratios"], key=lambda each: each["name"]):
        lines[name] = [(each["pair"] + 1, each["ratio"]) for each in group]
    return curves(
        "Each pair", f"{report.comparison['figure']} of B, divided by that of A right beside it.",
        "pair", "B / A", lines, levels={"equal": 1.0}, log_x=False,
    )  # fmt: skip
