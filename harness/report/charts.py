"""Charts of a check's records, as SVG inside an HTML page. A new chart is one entry in `MAKERS`.

Pure and reproducible: the same history gives the same bytes. `drawing` has the colours.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.record.history import History, UsageCurve
from harness.report.drawing import SERIES, blank, drawing_style, svg
from harness.report.series import Lag, Track, lags, throughput, tracks, usage_curves
from harness.report.summary import counted
from harness.report.text import one_line
from harness.report.theme import Chart

_ALERT: Final = SERIES[1]
_TIME: Final = "time, s"

LINES_MAX: Final = 400
LEGEND_MAX: Final = 6
USAGES_MAX: Final = 12
# Of all lines of a chart together: about 300 kB of SVG.
_POINTS_MAX: Final = 20_000
_POINTS_OF_A_LINE: Final = (24, 240)
_LABEL_CHARACTERS_MAX: Final = 40
_DECIMAL: Final = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_BINARY: Final = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes"))

type Scale = tuple[float, str]


@dataclass(frozen=True, slots=True)
class _Drawing:
    title: str
    caption: str
    figure: Figure


def draw(history: History, id_prefix: str = "chart") -> list[Chart]:
    """Return the charts of a history: those for which it has data.

    Args:
        history: the records of a check.
        id_prefix: prefix of every id in the SVG; unique for each history on a page.

    Raises:
        BrokenError: matplotlib wrote no SVG.
    """
    # The settings are read when a figure is made and again when it is written.
    with drawing_style():
        drawings = [drawing for make in MAKERS for drawing in make(history)]
        return [
            Chart(each.title, each.caption, svg(each.figure, f"{id_prefix}-{number}-"))
            for number, each in enumerate(drawings)
        ]


def _timelines(history: History) -> Iterator[_Drawing]:
    found = tracks(history)
    if not found:
        return
    scale = _scale(max(track.position_at(track.last_s) for track in found), _DECIMAL)
    figure, axes = blank(_TIME, f"position in the output, {scale[1]}")
    lines = _some(found)
    jobs = list(dict.fromkeys(track.job_id for track in found))
    worst = max(lags(found), key=lambda lag: lag.slowest_bytes, default=None)
    slowest = worst.slowest if worst is not None and worst.slowest_bytes > 0 else None
    for track in lines:
        _line(axes, track, scale, SERIES[jobs.index(track.job_id) % len(SERIES)], len(lines))
    if len(jobs) == 1 and slowest is not None:
        _highlight(axes, slowest, scale)
    elif 1 < len(jobs) <= LEGEND_MAX:
        for number, job in enumerate(jobs):
            axes.plot([], [], color=SERIES[number], label=f"job {_label(job, 8)}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    caption = f"{counted(len(found), 'streamer')} of {counted(len(jobs), 'job')}"
    if len(lines) < len(found):
        caption += f"; {len(lines)} of them drawn"
    yield _Drawing("Streamers", f"{caption}: the position of each one over time.", figure)


def _some(found: Sequence[Track]) -> list[Track]:
    """Return at most LINES_MAX, from the earliest finished to the latest."""
    if len(found) <= LINES_MAX:
        return list(found)
    ordered = sorted(found, key=lambda track: track.last_s)
    return [ordered[n * (len(ordered) - 1) // (LINES_MAX - 1)] for n in range(LINES_MAX)]


def _line(axes: Axes, track: Track, scale: Scale, colour: str, lines: int) -> None:
    alpha = min(0.9, max(0.15, 8 / lines))
    width = 1.4 if lines <= LEGEND_MAX else 0.8
    axes.plot(*_line_points(track, scale, lines), color=colour, alpha=alpha, linewidth=width)


def _highlight(axes: Axes, track: Track, scale: Scale) -> None:
    times_s, values = _line_points(track, scale, 1)
    label = f"furthest behind: {_label(track.label)}"
    axes.plot(times_s, values, color=_ALERT, linewidth=1.6, label=label)


def _line_points(track: Track, scale: Scale, lines: int) -> tuple[list[float], list[float]]:
    least, most = _POINTS_OF_A_LINE
    points = track.resampled(min(most, max(least, _POINTS_MAX // lines)))
    values = [(track.start_offset + received) / scale[0] for _, received in points]
    return [at_s for at_s, _ in points], values


def _total(history: History) -> Iterator[_Drawing]:
    buckets = throughput(tracks(history))
    if not buckets:
        return
    figure, axes = blank(_TIME, "received, MB/s")
    edges_s = [buckets[0][0], *(end_s for _, end_s, _ in buckets)]
    rates = [rate / 1e6 for _, _, rate in buckets]
    axes.stairs(rates, edges_s, color=SERIES[0], linewidth=1.4)
    axes.stairs(rates, edges_s, color=SERIES[0], alpha=0.15, fill=True)
    axes.set_ylim(bottom=0, top=max(rates) * 1.08 or 1)
    bucket_s = buckets[0][1] - buckets[0][0]
    total = sum(rate * (end_s - begin_s) for begin_s, end_s, rate in buckets)
    mean = total / 1e6 / (edges_s[-1] - edges_s[0])
    caption = (
        f"All streamers together, in steps of {bucket_s:.2g} s: {_bytes(total)}, "
        f"{mean:.3g} MB/s on average, {max(rates):.3g} MB/s at most."
    )
    yield _Drawing("Throughput", caption, figure)


def _lag(history: History) -> Iterator[_Drawing]:
    found = lags(tracks(history))
    if not found:
        return
    worst = max(found, key=lambda lag: lag.slowest_bytes)
    factor, unit = _scale(worst.slowest_bytes, _DECIMAL)
    figure, axes = blank(_TIME, f"behind the foremost, {unit}")
    times_s = [lag.at_s for lag in found]
    slowest = [lag.slowest_bytes / factor for lag in found]
    axes.plot(times_s, slowest, color=_ALERT, linewidth=1.4, label="slowest")
    middle = [lag.median_bytes / factor for lag in found]
    axes.plot(times_s, middle, color=SERIES[0], linewidth=1.4, linestyle="--", label="median")
    axes.set_ylim(bottom=0, top=max(slowest) * 1.08 or 1)
    axes.legend(loc="best")
    yield _Drawing("Lag", _lag_caption(worst), figure)


def _lag_caption(worst: Lag) -> str:
    caption = "Lag behind the foremost streamer of the same job"
    if not worst.slowest_bytes:
        return f"{caption}: none."
    return (
        f"{caption}: at worst {_bytes(worst.slowest_bytes)}, "
        f"{_label(worst.slowest.label)} at {worst.at_s:.1f} s."
    )


def _usage(history: History) -> Iterator[_Drawing]:
    for usage in usage_curves(history)[:USAGES_MAX]:
        yield _usage_drawing(usage)


def _usage_drawing(usage: UsageCurve) -> _Drawing:
    peak = max(value for _, value in usage.samples)
    top = max(peak, usage.limit or 0)
    factor, unit = _scale(top, _BINARY) if usage.unit == "bytes" else (1.0, _label(usage.unit))
    figure, axes = blank(_TIME, f"used, {unit}")
    times_s = [at_s for at_s, _ in usage.samples]
    values = [value / factor for _, value in usage.samples]
    axes.plot(times_s, values, color=SERIES[0], linewidth=1.4, label="used")
    caption = f"At most {peak / factor:.4g} {unit} used"
    if usage.limit is not None:
        axes.axhline(usage.limit / factor, color=_ALERT, linewidth=1.4, linestyle="--")
        axes.plot([], [], color=_ALERT, linestyle="--", label="limit")
        caption += f", {usage.limit / factor:.4g} {unit} allowed"
        axes.legend(loc="best")
    low = min(0.0, *values)
    axes.set_ylim(bottom=low, top=top / factor * 1.12 or 1)
    return _Drawing(one_line(usage.title, 120), f"{caption}.", figure)


MAKERS: Final[tuple[Callable[[History], Iterable[_Drawing]], ...]] = (
    _timelines,
    _total,
    _lag,
    _usage,
)


def _scale(top: float, scales: Sequence[Scale]) -> Scale:
    return next((each for each in scales if top >= each[0]), scales[-1])


def _bytes(number: float) -> str:
    factor, unit = _scale(number, _DECIMAL)
    return f"{number / factor:.3g} {unit}"


def _label(text: str, characters_max: int = _LABEL_CHARACTERS_MAX) -> str:
    """Return a text for a chart; ASCII, since the font that measures it lacks other glyphs."""
    short = " ".join(text.split())[:characters_max]
    return short.encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS) or "-"


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
