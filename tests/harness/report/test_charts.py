"""What the pictures show, read back from their SVG."""

import dataclasses
import random
import re
from xml.etree import ElementTree as ET

import pytest

from harness.record.history import Cause, History, Interruption, Outcome, Stream, UsageCurve
from harness.report.charts import LINES_MAX, Chart, draw
from tests.harness.report.sample import reader

SVG = "{http://www.w3.org/2000/svg}"
BLUE, VERMILLION = "var(--series-1, #0072b2)", "var(--series-2, #d55e00)"


def readers(number: int, jobs: int = 1) -> list[Stream]:
    """Return streamers of some jobs: number n receives 1 MB/s less n kB/s, for ten seconds."""
    return [
        Stream(
            label=f"reader-{n}",
            job_id=f"job-{n % jobs}",
            outcome=Outcome.OK,
            code="OK",
            detail="",
            received_bytes=10_000 * (1000 - n),
            sha256="",
            started_s=0.0,
            ended_s=10.0,
            timeline=tuple((k / 10, 100 * (1000 - n) * k) for k in range(1, 101)),
        )
        for n in range(number)
    ]


def root_of(chart: Chart) -> ET.Element:
    return ET.fromstring(chart.svg)  # noqa: S314 - our own


def texts(chart: Chart) -> list[str]:
    return [each.text or "" for each in root_of(chart).iter(f"{SVG}text")]


def curves(chart: Chart, colour: str) -> list[list[tuple[float, float]]]:
    """Return the points, in the picture's own units, of the lines of a colour within the axes."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
        for path in root_of(chart).iter(f"{SVG}path")
        if f"stroke: {colour}" in path.get("style", "") and path.get("clip-path")
    ]


def y_scale(chart: Chart) -> tuple[float, float]:
    """Return where 0 is and how far one unit is, from the first and the last label of the axis."""
    ticks = [
        (float(each.text or ""), float(each.get("y", "")))
        for each in root_of(chart).iter(f"{SVG}text")
        if "text-anchor: end" in each.get("style", "")
    ]
    (low, low_y), (high, high_y) = ticks[0], ticks[-1]
    unit = (low_y - high_y) / (high - low)
    # A label stands a little below its line.
    return low_y + low * unit - 3.8, unit


def values(chart: Chart, colour: str) -> list[list[float]]:
    zero, unit = y_scale(chart)
    return [[(zero - y) / unit for _, y in curve] for curve in curves(chart, colour)]


def test_a_history_without_data_gives_no_picture() -> None:
    assert draw(History([])) == []
    assert draw(History([Interruption(Cause.BROKEN, "no server")])) == []


def test_streamers_are_a_line_each_and_the_slowest_stands_out() -> None:
    streamers = draw(History(readers(200)))[0]
    assert (streamers.title, streamers.caption) == (
        "Streamers",
        "200 streamers of 1 job: how far each one was, over time.",
    )
    ends = sorted(line[-1] for line in values(streamers, BLUE))
    assert len(ends) == 200
    assert ends[0] == pytest.approx(8.01, abs=0.1)
    assert ends[-1] == pytest.approx(10, abs=0.1)
    [slowest] = values(streamers, VERMILLION)
    assert slowest[-1] == pytest.approx(8.01, abs=0.1)
    assert "furthest behind: reader-199" in texts(streamers)
    assert {"time, s", "position in the output, MB"} <= set(texts(streamers))


def test_a_crowd_of_streamers_is_bounded_and_says_so() -> None:
    streamers = draw(History(readers(LINES_MAX + 100)))[0]
    assert f"500 streamers of 1 job; {LINES_MAX} of them drawn" in streamers.caption
    assert len(curves(streamers, BLUE)) == LINES_MAX
    assert len(streamers.svg) < 700_000


def test_two_jobs_have_two_colours_and_a_legend() -> None:
    streamers = draw(History(readers(4, jobs=2)))[0]
    assert len(curves(streamers, BLUE)) == len(curves(streamers, VERMILLION)) == 2
    assert {"job job-0", "job job-1"} <= set(texts(streamers))


def test_throughput_is_drawn_in_megabytes_a_second_with_its_mean_and_peak() -> None:
    chart = draw(History(readers(2)))[1]
    assert chart.title == "Throughput"
    assert chart.caption == (
        "All streamers together, in steps of 0.2 s: 20 MB, 2 MB/s on average, 2 MB/s at most."
    )
    [line] = values(chart, BLUE)
    assert max(line) == pytest.approx(2, abs=0.05)


def test_lag_is_drawn_for_the_slowest_and_the_median_and_names_the_worst() -> None:
    chart = draw(History(readers(101)))[2]
    assert chart.title == "Lag"
    assert chart.caption.endswith("at worst 1 MB: reader-100 at 10.0 s.")
    [slowest], [middle] = values(chart, VERMILLION), values(chart, BLUE)
    assert slowest[-1] == pytest.approx(1, abs=0.02)
    assert middle[-1] == pytest.approx(0.5, abs=0.02)


def test_usage_is_drawn_against_its_limit_in_readable_units() -> None:
    samples = ((0, 2**20), (1, 48 * 2**20), (2, 32 * 2**20))
    [chart] = draw(History([UsageCurve("Memory $x$", "bytes", 64 * 2**20, samples)]))
    assert (chart.title, chart.caption) == (
        "Memory $x$",
        "At most 48 MiB used, 64 MiB allowed.",
    )
    [used], [limit] = values(chart, BLUE), values(chart, VERMILLION)
    assert used == [pytest.approx(each, abs=0.5) for each in (1, 48, 32)]
    assert limit == [pytest.approx(64, abs=0.5)] * 2
    assert "used, MiB" in texts(chart)


def test_usage_without_a_limit_draws_none() -> None:
    [chart] = draw(History([UsageCurve("Processes", "pids", None, ((0, 0), (1, 0)))]))
    assert chart.caption == "At most 0 pids used."
    assert curves(chart, VERMILLION) == []


def test_the_same_history_gives_the_same_bytes() -> None:
    history = History([reader(n, random.Random(n)) for n in range(5)])
    assert draw(history, "p") == draw(history, "p")


def test_ids_are_unique_on_a_page_and_every_reference_finds_its_own() -> None:
    history = History(readers(3))
    charts = draw(history, "p1") + draw(history, "p2")
    every = [found for chart in charts for found in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(every) == len(set(every))
    for chart in charts:
        ids = set(re.findall(r' id="([^"]+)"', chart.svg))
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', chart.svg))
        assert used
        assert {left or right for left, right in used} <= ids


def test_a_picture_does_nothing_to_the_page_around_it() -> None:
    for chart in draw(History(readers(3))):
        assert chart.svg.startswith('<svg role="img" ')
        assert not re.search(r"<(style|script|metadata|\?xml|!DOCTYPE|image)", chart.svg)
        assert "font-family" not in chart.svg
        assert root_of(chart).get("width") is None
        links = set(re.findall(r"https?://[^\"' ]+", chart.svg))
        assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_labels_of_any_kind_are_escaped() -> None:
    nasty = "<script>$\\frac{1}$\x00\x9b漢&\udc80"
    slow, front = (dataclasses.replace(each, label=nasty) for each in reversed(readers(2)))
    streamers = draw(History([front, slow]))[0]
    assert "<script>" not in streamers.svg
    assert "furthest behind: <script>$\\frac{1}$\\x00\\x9b\\u6f22&\\udc80" in texts(streamers)
    [chart] = draw(History([UsageCurve(nasty, nasty, None, ((0, 1),))]))
    assert "<script>" not in chart.svg
    assert "used, <script>$\\frac{1}$\\x00\\x9b\\u6f22&\\udc80" in texts(chart)
