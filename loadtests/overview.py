"""The pictures of a whole run: rates beside the limits, a sweep's curves, a comparison's pairs."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from statistics import median
from typing import Any, Final, NamedTuple

from harness.report.theme import Chart
from loadtests.charts import Drawing, Points, bars, charts, curves, shares
from loadtests.figures import Read
from loadtests.results import Comparison, LoadReport, LoadResult

AXIS: Final = "axis"
VALUE: Final = "value"
ROUND: Final = "round"
BY_RATE: Final = "rate_per_s"

# The suffixes of an axis's values: factor and kind, as our server's flags have them.
_UNITS: Final[Mapping[str, tuple[float, str]]] = {
    "": (1.0, ""),
    "B": (1.0, "bytes"), "KiB": (2.0**10, "bytes"), "MiB": (2.0**20, "bytes"),
    "GiB": (2.0**30, "bytes"),
    "us": (1e-6, "seconds"), "ms": (1e-3, "seconds"), "s": (1.0, "seconds"),
    "m": (60.0, "seconds"),
}  # fmt: skip
_QUANTITY: Final = re.compile(rf"(-?\d+(?:\.\d+)?(?:e-?\d+)?)({'|'.join(_UNITS)})")


class Curve(NamedTuple):
    """A line of a picture: its name, the figure, and what the figure is divided by."""

    name: str
    read: Read
    divisor: float = 1.0


class CurvePicture(NamedTuple):
    """A picture of a sweep: title, label of the y axis, lines."""

    title: str
    y_label: str
    curves: tuple[Curve, ...]


_RATE: Final = CurvePicture(
    "Rate", "MB/s", (Curve("all streamers together", lambda figures: figures.rates.mb_per_s),)
)
_MESSAGES: Final = CurvePicture(
    "Messages", "1/s",
    (
        Curve("requested of the job", lambda figures: figures.rates.asked_per_s),
        Curve("written by it", lambda figures: figures.rates.achieved_per_s),
    ),
)  # fmt: skip
_LATENCY: Final = CurvePicture(
    "Latency", "ms",
    (
        Curve("largest", lambda figures: figures.latency.max_ms),
        Curve("p99", lambda figures: figures.latency.p99_ms),
        Curve("p50", lambda figures: figures.latency.p50_ms),
        Curve("generator's own lag, p99", lambda figures: figures.generator.lag_p99_ms),
    ),
)  # fmt: skip
_SWEEP_PICTURES: Final = (
    _RATE,
    _MESSAGES,
    _LATENCY,
    CurvePicture(
        "Memory of the server", "MiB",
        (
            Curve("resident, at most", lambda figures: figures.server.rss_peak_bytes, 2.0**20),
            Curve("logs", lambda figures: figures.server.log_memory_peak_bytes, 2.0**20),
        ),
    ),
    CurvePicture(
        "Memory per streamer", "KiB",
        (
            Curve(
                "growth of resident memory per streamer",
                lambda figures: figures.server.memory_per_streamer_bytes, 1024.0,
            ),
        ),
    ),
    CurvePicture(
        "Processor time", "s/GB",
        (Curve("of the server", lambda figures: figures.server.cpu_s_per_gb),),
    ),
    CurvePicture(
        "Fairness", "Jain's index",
        (Curve("1: equal", lambda figures: figures.streams.fairness),),
    ),
)  # fmt: skip


def pictures(report: LoadReport) -> tuple[str, list[Chart]]:
    """Return the heading of a run's pictures, and the pictures."""
    titles = {"sweep": "Effect of each axis", "run": "Rates", "compare": "Pairs"}
    return titles.get(report.kind, ""), charts(drawings(report), report.kind)


def drawings(report: LoadReport) -> list[Callable[[], Drawing]]:
    """Return the pictures of a whole run."""
    if report.kind == "sweep":
        return sweep_drawings(report)
    unpaced = [each for each in report.results if each.unpaced_mb_per_s is not None]
    if report.kind == "run" and unpaced:
        return [partial(shares, unpaced, report.limits)]
    if report.comparison is not None and report.comparison.ratios:
        return [partial(_pairs, report.comparison)]
    return []


def sweep_drawings(report: LoadReport) -> list[Callable[[], Drawing]]:
    """Return the pictures of a sweep: for each axis, each figure that it changes.

    An axis of numbers, sizes or times is drawn as lines. An axis of words, or of two kinds of
    quantities (a 0 beside sizes means "no bound"), is drawn as bars.
    """
    found: list[Callable[[], Drawing]] = []
    for axis, points in by_axis(report).items():
        if len(points) < 2:  # noqa: PLR2004 - no difference to show
            continue
        quantities = _quantities(list(points))
        is_paced = any(_latency_p50_ms(each) for results in points.values() for each in results)
        for picture in _SWEEP_PICTURES:
            lines = {
                curve.name: line
                for curve in picture.curves
                if (line := _line(points, quantities, curve))
            }
            if not lines or not _is_telling(picture, axis, is_paced=is_paced):
                continue
            levels = report.limits if picture is _RATE and _all_unpaced(points) else {}
            caption = f"By {axis}, all else equal; medians of the points with several runs."
            if quantities is None:
                found.append(partial(
                    bars, picture.title, caption, axis, picture.y_label, lines,
                    names=list(points), levels=levels,
                ))  # fmt: skip
            else:
                named = dict(zip(quantities, points, strict=True))
                found.append(partial(
                    curves, picture.title, caption, axis, picture.y_label, lines, levels=levels,
                    log_x=_spans_decades(quantities),
                    ticks={} if all(_is_number(value) for value in points) else named,
                ))  # fmt: skip
    return found


def _is_telling(picture: CurvePicture, axis: str, *, is_paced: bool) -> bool:
    """Return whether an axis may change a picture's figures: a pace sets the rate."""
    if picture is _LATENCY:
        return is_paced
    if picture is _MESSAGES:
        return axis == BY_RATE
    return picture is not _RATE or not is_paced or axis == BY_RATE


def _latency_p50_ms(result: LoadResult) -> float | None:
    return result.figures.latency.p50_ms


def by_axis(report: LoadReport) -> dict[str, dict[str, list[LoadResult]]]:
    """Return a sweep's results by axis and value, in the order in which they were run."""
    found: dict[str, dict[str, list[LoadResult]]] = {}
    for result in report.results:
        if AXIS in result.labels:
            values = found.setdefault(result.labels[AXIS], {})
            values.setdefault(result.labels[VALUE], []).append(result)
    return found


def in_order(report: LoadReport) -> list[LoadResult]:
    """Return results in the order to show: a sweep's by axis and value, others as they were run."""
    axes = list(by_axis(report))

    def place(result: LoadResult) -> tuple[int, float, str]:
        value = result.labels.get(VALUE, "")
        axis = result.labels.get(AXIS, "")
        number = (quantity(value) or (0.0, ""))[0]
        return (axes.index(axis) if axis in axes else -1, number, value)

    return sorted(report.results, key=place) if axes else list(report.results)


def quantity(text: str) -> tuple[float, str] | None:
    """Return a number and its kind: plain, bytes or seconds; None for a word."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        return None
    unit, kind = _UNITS[found[2]]
    return float(found[1]) * unit, kind


def _quantities(texts: Sequence[str]) -> list[float] | None:
    """Return the values of an axis if they are distinct numbers of one kind; else None."""
    found = [each for each in map(quantity, texts) if each is not None]
    values = [value for value, _ in found]
    kinds = {kind for _, kind in found}
    if len(values) < len(texts) or len(kinds) > 1 or len(set(values)) < len(values):
        return None
    return values


def _is_number(text: str) -> bool:
    return (quantity(text) or (0.0, "a word"))[1] == ""


def _line(
    points: Mapping[str, list[LoadResult]], quantities: Sequence[float] | None, curve: Curve
) -> Points:
    """Return a line over an axis's values, or over their positions in the order of the runs."""
    line = []
    for at, results in zip(quantities or range(len(points)), points.values(), strict=True):
        values = (curve.read(each.figures) for each in results)
        found = [value / curve.divisor for value in values if value is not None]
        if found:
            line.append((float(at), median(found)))
    return sorted(line)


def _all_unpaced(points: Mapping[str, list[LoadResult]]) -> bool:
    return all(
        each.unpaced_mb_per_s is not None
        for results in points.values()
        for each in results
        if not each.figures.is_empty
    )


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return min(values) >= 0 and max(positive) / min(positive) >= 10  # noqa: PLR2004 - a decade


def comparison_rows(report: LoadReport) -> list[dict[str, Any]]:
    """Return a comparison as rows of a table."""
    if report.comparison is None:
        return []
    return [
        {
            "name": each.name, "pairs": each.pairs, "a": f"{each.median_a:.4g}",
            "b": f"{each.median_b:.4g}", "ratio": f"{each.ratio:.3f}",
            "interval": f"{each.low:.3f} to {each.high:.3f}", "p": f"{each.p:.4f}",
            "says": each.says,
        }
        for each in report.comparison.effects
    ]  # fmt: skip


def _pairs(comparison: Comparison) -> Drawing:
    lines: dict[str, Points] = {}
    for name, group in groupby(comparison.ratios, key=lambda each: each.name):
        lines[name] = [(each.pair + 1, each.ratio) for each in group]
    return curves(
        "Each pair", f"{comparison.figure} of B, divided by that of the A run beside it.",
        "pair", "B / A", lines, levels={"equal": 1.0}, log_x=False,
    )  # fmt: skip
