"""The pictures of a whole run: rates beside the limits, a sweep's curves, a comparison's pairs."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from statistics import median
from typing import Any, Final

from harness.report.charts import Chart
from loadtests.charts import Drawing, Points, charts, curves, shares
from loadtests.results import Result, RunReport

AXIS: Final = "axis"
VALUE: Final = "value"
RATE: Final = "rate_mb_per_s"
STREAMERS: Final = "streamers"

# A sweep's pictures: title, axis label, and the figures in one picture with their names and scales.
_CURVES: Final[tuple[tuple[str, str, Mapping[str, tuple[str, float]]], ...]] = (
    ("Rate", "MB/s", {"all streamers together": (RATE, 1.0)}),
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


def is_unpaced(result: Result) -> bool:
    """Whether nothing but server and machine set the rate."""
    return RATE in result.figures and "asked_per_s" not in result.figures


def pictures(report: RunReport) -> tuple[str, list[Chart]]:
    """Return what stands above a run's pictures, and these."""
    titles = {"sweep": "What changes with what", "run": "Rates", "compare": "Pairs"}
    return titles.get(report.kind, ""), charts(drawings(report), report.kind)


def drawings(report: RunReport) -> list[Callable[[], Drawing]]:
    """Return the pictures of a whole run."""
    if report.kind == "sweep":
        return sweep_drawings(report)
    unpaced = [each for each in report.results if is_unpaced(each)]
    if report.kind == "run" and unpaced:
        return [partial(shares, unpaced, report.limits)]
    if report.comparison:
        return [partial(_pairs, report)]
    return []


def sweep_drawings(report: RunReport) -> list[Callable[[], Drawing]]:
    """Return the pictures of a sweep: for each axis of numbers, each figure that it changes."""
    found: list[Callable[[], Drawing]] = []
    for axis, points in by_axis(report).items():
        if any(not _is_number(value) for value in points) or len(points) < 2:  # noqa: PLR2004 - a line
            continue
        for title, y_label, figures in _CURVES:
            lines = {
                name: line
                for name, (figure, scale) in figures.items()
                if (line := _line(points, figure, scale))
            }
            if not lines or (title == "Latency" and "p50" not in lines):
                continue
            levels = report.limits if title == "Rate" and _all_unpaced(points) else {}
            if title == "Rate" and not levels and "latency_p50_ms" in _any_figures(points):
                continue  # a paced load's rate is what was asked for
            caption = (
                f"By {axis}, all else as it was; medians where a point was run more than once."
            )
            found.append(partial(
                curves, title, caption, axis, y_label, lines, levels=levels,
                log_x=_spans_decades(points),
            ))  # fmt: skip
    return found


def by_axis(report: RunReport) -> dict[str, dict[str, list[Result]]]:
    """Return a sweep's results by axis and value, in the order in which they were asked for."""
    found: dict[str, dict[str, list[Result]]] = {}
    for result in report.results:
        if AXIS in result.labels:
            values = found.setdefault(result.labels[AXIS], {})
            values.setdefault(result.labels[VALUE], []).append(result)
    return found


def in_order(report: RunReport) -> list[Result]:
    """Return results as they are best read: a sweep's by axis and value, others as they came."""
    axes = list(by_axis(report))

    def place(result: Result) -> tuple[int, float, str]:
        value = result.labels.get(VALUE, "")
        axis = result.labels.get(AXIS, "")
        number = float(value) if _is_number(value) else 0.0
        return (axes.index(axis) if axis in axes else -1, number, value)

    return sorted(report.results, key=place) if axes else list(report.results)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line(points: Mapping[str, list[Result]], figure: str, scale: float) -> Points:
    line = []
    for value, results in points.items():
        found = [each.figures[figure] / scale for each in results if figure in each.figures]
        if found:
            line.append((float(value), median(found)))
    return sorted(line)


def _all_unpaced(points: Mapping[str, list[Result]]) -> bool:
    return all(is_unpaced(each) for results in points.values() for each in results if each.figures)


def _any_figures(points: Mapping[str, list[Result]]) -> Mapping[str, float]:
    return next((r.figures for results in points.values() for r in results if r.figures), {})


def _spans_decades(points: Mapping[str, list[Result]]) -> bool:
    values = [float(value) for value in points]
    return min(values) > 0 and max(values) / min(values) >= 10  # noqa: PLR2004 - a decade


def comparison_rows(report: RunReport) -> list[dict[str, Any]]:
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


def _pairs(report: RunReport) -> Drawing:
    lines: dict[str, Points] = {}
    for name, group in groupby(report.comparison["ratios"], key=lambda each: each["name"]):
        lines[name] = [(each["pair"] + 1, each["ratio"]) for each in group]
    return curves(
        "Each pair", f"{report.comparison['figure']} of B, divided by that of A right beside it.",
        "pair", "B / A", lines, levels={"equal": 1.0}, log_x=False,
    )  # fmt: skip
