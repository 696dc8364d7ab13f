"""Pictures of loads: SVG inside the report, PNG for other pages.

They share the theme of the harness's report (`harness.report.drawing`). Each axis has its unit; an
axis whose values span a decade is logarithmic, with its ticks labelled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from harness.report.drawing import FAINT, SERIES, SIZE_INCHES, blank, drawing_style, svg
from harness.report.theme import Chart
from loadtests.metrics import BEGUN, BUCKETS, PLANNED, Numbers, Recorded, percentile
from loadtests.results import LoadResult

# Labelled percentiles of a distribution.
_NINES: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_GROUP_WIDTH: Final = 0.8  # of a group of bars; the rest separates two groups
_DECADES_MIN: Final = 10.0
_DECADES_FULL: Final = 2.5  # beyond this many decades only the powers of ten are labelled

type Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture and its texts."""

    title: str
    caption: str
    figure: Figure


def of_load(recorded: Recorded, id_prefix: str) -> list[Chart]:
    """Return the pictures of one load; the prefix must differ between the loads of a page."""
    with drawing_style():
        drawings = [each for make in LOAD_MAKERS for each in make(recorded)]
        return [_chart(each, f"{id_prefix}-{number}-") for number, each in enumerate(drawings)]


def charts(drawings: Sequence[Callable[[], Drawing]], id_prefix: str) -> list[Chart]:
    """Return drawings as pictures of a page."""
    with drawing_style():
        return [_chart(draw(), f"{id_prefix}-{number}-") for number, draw in enumerate(drawings)]


def write_png(draw: Callable[[], Drawing], path: Path) -> None:
    """Write a drawing as PNG, on white."""
    with drawing_style("white"):
        draw().figure.savefig(path, dpi=160)


def _plain(value: float, _position: object = None) -> str:
    return f"{value:g}"


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic if the values span a decade; else let it begin at 0."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) >= _DECADES_MIN:
        axes.set_yscale("log")
        decades = np.log10(max(positive) / min(positive))
        subs = (1.0, 2.0, 5.0) if decades < _DECADES_FULL else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0, top=max(positive, default=1) * 1.1)


def _distribution(recorded: Recorded) -> Iterator[Drawing]:
    """Latency by percentile, the x axis stretched towards the tail as in HdrHistogram's plots."""
    latencies_ns = recorded.latencies_ns(PLANNED)
    if not len(latencies_ns):
        return
    figure, axes = blank("percentile", "ms")
    shown: list[float] = []
    for name, values_ns, colour, line in (
        ("from the planned instant", latencies_ns, SERIES[0], "-"),
        ("from the write", recorded.latencies_ns(BEGUN), SERIES[2], "--"),
        ("generator's own lag", recorded.hiccups_ns, SERIES[3], ":"),
    ):
        points = _tail(values_ns)
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, label=name)
        shown += [value for _, value in points]
    axes.set_xscale("log")
    ticks = [each for each in _NINES if 100 / (100 - each) <= len(latencies_ns)]
    axes.set_xticks([100 / (100 - each) for each in ticks], [f"{each:g}" for each in ticks])
    axes.minorticks_off()
    logarithmic(axes, shown)
    axes.legend(loc="best")
    p99_ms = percentile(latencies_ns, 99) / 1e6
    caption = (
        f"{len(latencies_ns):,} messages: half within {percentile(latencies_ns, 50) / 1e6:.3g} ms, "
        f"99 % within {p99_ms:.3g} ms, all within {latencies_ns.max() / 1e6:.3g} ms."
    )
    yield Drawing("Latency", caption, figure)


def _tail(values_ns: Numbers) -> list[tuple[float, float]]:
    """Return points of (1 / share beyond, ms), as many as the values allow."""
    ordered = np.sort(values_ns)
    count = max(1, len(ordered))
    stretched = np.geomspace(1, count, 80)
    places = np.clip(np.ceil((1 - 1 / stretched) * count).astype(int), 0, count - 1)
    return [(float(x), max(1e-3, float(ordered[at]) / 1e6)) for x, at in zip(
        stretched, places, strict=True)] if len(ordered) else [(1.0, 1e-3)]  # fmt: skip


def _latency_over_time(recorded: Recorded) -> Iterator[Drawing]:
    rows, _ = recorded.timed_rows()
    if len(rows) < BUCKETS:
        return
    latencies_ns = recorded.latencies_ns()
    at_s = (rows[:, PLANNED] - recorded.load.go_ns) / 1e9
    edges = np.linspace(at_s.min(), at_s.max() + 1e-9, BUCKETS + 1)
    buckets = np.digitize(at_s, edges) - 1
    figure, axes = blank("planned at, s", "ms")
    shown: list[float] = []
    for name, percent, colour in (
        ("largest", 100.0, SERIES[1]), ("p99", 99.0, SERIES[4]), ("median", 50.0, SERIES[0]),
    ):  # fmt: skip
        points = [
            (float(edges[number]), percentile(latencies_ns[buckets == number], percent) / 1e6)
            for number in range(BUCKETS)
            if (buckets == number).any()
        ]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=name)
        shown += [value for _, value in points]
    logarithmic(axes, shown)
    axes.legend(loc="best", ncols=3)
    worst_s = at_s[int(latencies_ns.argmax())]
    caption = (
        f"In steps of {edges[1] - edges[0]:.2g} s, by the planned instant of each message; the "
        f"slowest was due at {worst_s:.2f} s."
    )
    yield Drawing("Latency over time", caption, figure)


def _throughput(recorded: Recorded) -> Iterator[Drawing]:
    go_ns, arrivals = recorded.load.go_ns, recorded.arrivals
    later = arrivals[arrivals[:, 0] >= go_ns]
    if len(later) < BUCKETS // 2:
        return
    at_s = (later[:, 0] - go_ns) / 1e9
    counted, edges = np.histogram(
        at_s, BUCKETS, (0.0, float(at_s.max()) + 1e-9), weights=later[:, 1]
    )
    rates = counted / 1e6 / (edges[1] - edges[0])
    figure, axes = blank("time, s", "received, MB/s")
    axes.stairs(rates, edges, color=SERIES[0], linewidth=1.4)
    axes.stairs(rates, edges, color=SERIES[0], alpha=0.15, fill=True)
    axes.set_ylim(bottom=0, top=rates.max() * 1.08 or 1)
    caption = (
        f"All streamers together, in steps of {edges[1] - edges[0]:.2g} s: "
        f"{later[:, 1].sum() / 1e6:,.1f} MB, {rates.mean():.3g} MB/s on average."
    )
    yield Drawing("Throughput", caption, figure)


def _memory(recorded: Recorded) -> Iterator[Drawing]:
    load = recorded.load
    if not load.local or not load.samples:
        return
    figure, axes = blank("time, s", "MiB")
    at_s = [(sample.at_ns - load.go_ns) / 1e9 for sample in load.samples]
    rss = [sample.rss_bytes / 2**20 for sample in load.samples]
    logs = [sample.memfd_bytes / 2**20 for sample in load.samples]
    axes.stackplot(
        at_s, rss, logs, colors=[SERIES[0], SERIES[5]], alpha=0.55,
        labels=["resident", "logs"],
    )  # fmt: skip
    axes.axhline(
        load.before.rss_bytes / 2**20, color=SERIES[1], linestyle="--", linewidth=1.2,
        label="resident before the streamers",
    )  # fmt: skip
    axes.set_ylim(bottom=0, top=max(a + b for a, b in zip(rss, logs, strict=True)) * 1.3)
    axes.legend(loc="upper left", ncols=3, fontsize=8)
    caption = (
        f"{max(rss):.0f} MiB resident at most, {load.before.rss_bytes / 2**20:.0f} before, and "
        f"{max(logs):.0f} MiB of logs in memfds."
    )
    yield Drawing("Memory of the server", caption, figure)


def _processors(recorded: Recorded) -> Iterator[Drawing]:
    load = recorded.load
    if not load.local or len(load.samples) < 4:  # noqa: PLR2004 - fewer make no line
        return
    at_s = np.array([(sample.at_ns - load.go_ns) / 1e9 for sample in load.samples])
    steps_s = np.maximum(np.diff(at_s), 1e-6)

    def cores(values: list[float]) -> Any:  # noqa: ANN401 - an array of numpy's
        return np.maximum(0, np.diff(np.array(values)) / steps_s)

    figure, axes = blank("time, s", "cores")
    for name, values, colour in (
        ("server", [sample.cpu_s for sample in load.samples], SERIES[0]),
        ("its jobs", [sample.jobs_cpu_s for sample in load.samples], SERIES[2]),
        ("the whole machine", [s.machine_busy_s for s in load.samples], SERIES[3]),
    ):
        axes.plot(at_s[1:], cores(values), color=colour, linewidth=1.4, label=name)
    axes.axhline(load.cores, color=SERIES[1], linestyle="--", linewidth=1.2, label="all cores")
    axes.set_ylim(bottom=0, top=load.cores * 1.35)
    axes.legend(loc="upper left", ncols=4, fontsize=8)
    caption = "Processor time per second; the rest of the machine's is the generator's and others'."
    yield Drawing("Processors", caption, figure)


def _fairness(recorded: Recorded) -> Iterator[Drawing]:
    rates = sorted(
        end.checked_bytes / 1e6 / ((end.last_ns - recorded.load.go_ns) / 1e9)
        for end in recorded.load.streams
        if end.last_ns > recorded.load.go_ns
    )
    if len(rates) < 20 or recorded.load.profile.is_timed:  # noqa: PLR2004 - fewer fit a sentence
        return
    figure, axes = blank("streamers, from the slowest to the fastest", "MB/s")
    axes.bar(range(1, len(rates) + 1), rates, width=1.0, color=SERIES[0], alpha=0.7)
    axes.set_ylim(bottom=0, top=rates[-1] * 1.1)
    caption = (
        f"The fastest received {rates[-1] / max(rates[0], 1e-9):.2f} times as fast as the slowest."
    )
    yield Drawing("Fairness", caption, figure)


LOAD_MAKERS: Final[tuple[Callable[[Recorded], Iterator[Drawing]], ...]] = (
    _distribution, _latency_over_time, _throughput, _memory, _processors, _fairness,
)  # fmt: skip


def shares(results: Sequence[LoadResult], limits: Mapping[str, float]) -> Drawing:
    """Draw the rates of unpaced loads beside the limits of the machine."""
    bars = [(name, rate, FAINT) for name, rate in limits.items()]
    bars += [
        (each.title, rate, FAINT if each.is_plain else SERIES[0])
        for each in results
        if (rate := each.unpaced_mb_per_s) is not None
    ]
    figure, axes = blank("MB/s", "")
    figure.set_size_inches(SIZE_INCHES[0], 0.8 + 0.36 * len(bars))
    names = [name for name, _, _ in bars][::-1]
    values = [rate for _, rate, _ in bars][::-1]
    drawn = axes.barh(names, values, color=[colour for *_, colour in bars][::-1], height=0.62)
    axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=4, fontsize=9)
    axes.set_xlim(0, max(values) * 1.14)
    axes.grid(visible=False, axis="y")
    caption = (
        "Rates over loopback: of the machine in 1 MiB pieces, and of the server under each load."
    )
    return Drawing("Beside the limits of this machine", caption, figure)


def curves(
    title: str, caption: str, x_label: str, y_label: str, lines: Mapping[str, Points],
    *, levels: Mapping[str, float] | None = None, log_x: bool = True,
    ticks: Mapping[float, str] | None = None,
) -> Drawing:  # fmt: skip
    """Draw lines over the axis of a sweep, and levels as dashed lines.

    With `ticks` only its positions are labelled, with its texts.
    """
    figure, axes = blank(x_label, y_label)
    for number, (name, points) in enumerate(lines.items()):
        colour = SERIES[number % len(SERIES)]
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.5}
        axes.plot(*zip(*points, strict=True), label=name, **style)
    every = [value for points in lines.values() for _, value in points]
    logarithmic(axes, [*every, *_levels(axes, levels)])
    places = {x for points in lines.values() for x, _ in points}
    if log_x and min(places) > 0:
        axes.set_xscale("log")
    elif log_x:  # with a 0, which a logarithmic axis cannot have
        least = min(place for place in places if place > 0)
        axes.set_xscale("symlog", linthresh=least)
        axes.set_xlim(left=min(0.0, *places) - least / 10)
    if ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
    elif log_x:
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.legend(loc="best", fontsize=9)
    return Drawing(title, caption, figure)


def bars(
    title: str, caption: str, x_label: str, y_label: str, lines: Mapping[str, Points],
    *, names: Sequence[str], levels: Mapping[str, float] | None = None,
) -> Drawing:  # fmt: skip
    """Draw a group of bars for each name; a point of a line is the number of a name and a value."""
    figure, axes = blank(x_label, y_label)
    width = _GROUP_WIDTH / max(1, len(lines))
    for number, (name, points) in enumerate(lines.items()):
        shift = (number - (len(lines) - 1) / 2) * width
        drawn = axes.bar(
            [x + shift for x, _ in points], [y for _, y in points], width * 0.92, label=name,
            color=SERIES[number % len(SERIES)], alpha=0.85,
        )  # fmt: skip
        axes.bar_label(drawn, [f"{y:.3g}" for _, y in points], padding=2, fontsize=8)
    every = [value for points in lines.values() for _, value in points]
    # From 0, whatever they span: readers compare the lengths of bars.
    axes.set_ylim(bottom=0, top=max([*every, *_levels(axes, levels), 1e-9]) * 1.3)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", ncols=3, fontsize=8)
    return Drawing(title, caption, figure)


def _levels(axes: Axes, levels: Mapping[str, float] | None) -> list[float]:
    """Draw levels as dashed lines; return their values."""
    for number, (name, value) in enumerate((levels or {}).items()):
        colour = SERIES[-1 - number % len(SERIES)]
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.2, label=name)
    return list((levels or {}).values())


def _chart(drawing: Drawing, id_prefix: str) -> Chart:
    return Chart(drawing.title, drawing.caption, svg(drawing.figure, id_prefix))
