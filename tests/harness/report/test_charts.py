"""Charts: the words that a reader sees, and what they must not do to the page."""

import dataclasses
import random
import re
from xml.etree import ElementTree as ET

from harness.record.history import Cause, History, Interruption, Outcome, Stream, UsageCurve
from harness.report.charts import LINES_MAX, draw
from harness.report.theme import Chart
from tests.harness.report.sample import reader

SVG = "{http://www.w3.org/2000/svg}"


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


def test_history_without_data_has_no_charts() -> None:
    assert draw(History([])) == []
    assert draw(History([Interruption(Cause.HARNESS_FAILED, "no server")])) == []


def test_streamers_chart_names_the_job_count_and_the_slowest_streamer() -> None:
    streamers = draw(History(readers(200)))[0]
    assert (streamers.title, streamers.caption) == (
        "Streamers",
        "200 streamers of 1 job: the position of each one over time.",
    )
    assert "furthest behind: reader-199" in texts(streamers)
    assert {"time, s", "position in the output, MB"} <= set(texts(streamers))


def test_streamers_chart_is_bounded_and_its_caption_says_how_many_are_drawn() -> None:
    streamers = draw(History(readers(LINES_MAX + 100)))[0]
    assert f"500 streamers of 1 job; {LINES_MAX} of them drawn" in streamers.caption
    assert len(streamers.svg) < 700_000


def test_streamers_chart_of_two_jobs_has_a_legend() -> None:
    streamers = draw(History(readers(4, jobs=2)))[0]
    assert {"job job-0", "job job-1"} <= set(texts(streamers))


def test_throughput_chart_has_unit_mean_and_peak() -> None:
    chart = draw(History(readers(2)))[1]
    assert chart.title == "Throughput"
    assert chart.caption == (
        "All streamers together, in steps of 0.2 s: 20 MB, 2 MB/s on average, 2 MB/s at most."
    )
    assert "received, MB/s" in texts(chart)


def test_lag_chart_has_slowest_and_median_and_its_caption_names_the_worst() -> None:
    chart = draw(History(readers(101)))[2]
    assert (chart.title, chart.caption) == (
        "Lag",
        "Lag behind the foremost streamer of the same job: at worst 1 MB, reader-100 at 10.0 s.",
    )
    assert {"slowest", "median"} <= set(texts(chart))


def test_usage_chart_has_its_limit_in_readable_units() -> None:
    samples = ((0, 2**20), (1, 48 * 2**20), (2, 32 * 2**20))
    [chart] = draw(History([UsageCurve("Memory $x$", "bytes", 64 * 2**20, samples)]))
    assert (chart.title, chart.caption) == (
        "Memory $x$",
        "At most 48 MiB used, 64 MiB allowed.",
    )
    assert {"used, MiB", "used", "limit"} <= set(texts(chart))


def test_usage_chart_without_a_limit_mentions_none() -> None:
    [chart] = draw(History([UsageCurve("Processes", "pids", None, ((0, 0), (1, 0)))]))
    assert chart.caption == "At most 0 pids used."
    assert "limit" not in texts(chart)


def test_same_history_gives_the_same_bytes_and_another_gives_others() -> None:
    def history(slow: int) -> History:
        return History([reader(n, random.Random(n), slow=n == slow) for n in range(5)])

    charts = draw(history(1), "p")
    assert charts == draw(history(1), "p")
    others = draw(history(2), "p")
    assert [chart.title for chart in charts] == [other.title for other in others]
    assert all(chart.svg != other.svg for chart, other in zip(charts, others, strict=True))


def test_chart_ids_are_unique_on_a_page_and_references_resolve() -> None:
    history = History(readers(3))
    charts = draw(history, "p1") + draw(history, "p2")
    every = [found for chart in charts for found in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(every) == len(set(every))
    for chart in charts:
        ids = set(re.findall(r' id="([^"]+)"', chart.svg))
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', chart.svg))
        assert used
        assert {left or right for left, right in used} <= ids


def test_chart_has_no_style_script_or_external_link() -> None:
    for chart in draw(History(readers(3))):
        assert chart.svg.startswith('<svg role="img" ')
        assert not re.search(r"<(style|script|metadata|\?xml|!DOCTYPE|image)", chart.svg)
        assert "font-family" not in chart.svg
        assert root_of(chart).get("width") is None
        links = set(re.findall(r"https?://[^\"' ]+", chart.svg))
        assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_chart_labels_are_escaped() -> None:
    nasty = "<script>$\\frac{1}$\x00\x9b漢&\udc80"
    slow, front = (dataclasses.replace(each, label=nasty) for each in reversed(readers(2)))
    streamers = draw(History([front, slow]))[0]
    assert "<script>" not in streamers.svg
    assert "furthest behind: <script>$\\frac{1}$\\x00\\x9b\\u6f22&\\udc80" in texts(streamers)
    [chart] = draw(History([UsageCurve(nasty, nasty, None, ((0, 1),))]))
    assert "<script>" not in chart.svg
    assert "used, <script>$\\frac{1}$\\x00\\x9b\\u6f22&\\udc80" in texts(chart)
