"""A run's pictures over every kind of axis, and its exports for other programs."""

import csv
import json
from pathlib import Path

import pytest

from harness.record.results import RESULTS_FILE
from harness.record.verdict import Finding, Verdict
from loadtests.charts import charts
from loadtests.exports import CSV_FILE, prometheus, write_csv
from loadtests.figures import Figures
from loadtests.overview import ROUND, drawings, in_order, quantity
from loadtests.profiles import PROFILES
from loadtests.report import render, table
from loadtests.results import (
    PLAIN,
    SERVER,
    LoadReport,
    LoadResult,
    beside_plain,
    load_report,
    save_report,
)
from loadtests.sweep import Axis, Sweep, points

LIMITS = {"raw TCP": 4000.0, "plain grpcio": 2000.0}
PASSED = (Finding(Verdict.PASS, "a made up load"),)


def rated(mb_per_s: float, **others: float) -> Figures:
    return Figures.from_names({"rate_mb_per_s": mb_per_s, **others})


def swept(axis: str, values: tuple[str, ...], rounds: int = 1) -> LoadReport:
    sweep = Sweep("made", "", PROFILES[2], (Axis(axis, values),))
    results = tuple(
        LoadResult("flood", point.labels, f"{number:03d}", rated(100.0 + number), PASSED, 1.0)
        for number, point in enumerate(points(sweep, rounds, "seed"))
    )
    return LoadReport("sweep", {}, LIMITS, results)


def series(report: LoadReport) -> list[str]:
    lines = prometheus(report).splitlines()
    return [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(
    "report",
    [
        swept("streamers", ("1", "2"), rounds=3),
        swept("streamers", ("2", "2")),
        LoadReport("run", {}, LIMITS, swept("streamers", ("1",)).results * 3),
    ],
    ids=["rounds", "a value twice", "a profile twice"],
)
def test_prometheus_series_are_unique(report: LoadReport) -> None:
    found = series(report)
    assert len(found) == len(set(found))
    of_rates = [each for each in found if each.startswith("jobworker_load_rate")]
    assert len(of_rates) == len(report.results)


def test_round_is_a_label() -> None:
    report = swept("streamers", ("1", "2"), rounds=2)
    assert sorted(each.labels[ROUND] for each in report.results) == ["1", "1", "2", "2"]
    assert ROUND not in swept("streamers", ("1", "2")).results[0].labels


def test_share_of_plain_grpcio_is_in_every_export(tmp_path: Path) -> None:
    paced = LoadResult("lines", {}, "001", rated(1.0, asked_per_s=5.0), PASSED, 1.0)
    flood = LoadResult("flood", {}, "000", rated(500.0), PASSED, 1.0)
    report = LoadReport("run", {}, LIMITS, (flood, paced))
    save_report(report, tmp_path)
    saved = json.loads((tmp_path / RESULTS_FILE).read_text())["results"]
    assert [each["share_of_plain_grpcio"] for each in saved] == [0.25, None]
    assert load_report(tmp_path) == report
    write_csv(report, tmp_path)
    with (tmp_path / CSV_FILE).open() as file:
        assert [row["share_of_plain_grpcio"] for row in csv.DictReader(file)] == ["0.25", ""]
    assert 'jobworker_load_share_of_plain_grpcio{profile="flood"} 0.25' in prometheus(report)
    assert 'share_of_plain_grpcio{profile="lines"}' not in prometheus(report)


def test_every_figure_is_also_a_share_of_plain_grpcios_under_the_same_load(
    tmp_path: Path,
) -> None:
    def results(mb_per_s: float, p50_ms: float, plain_mb_per_s: float) -> list[LoadResult]:
        named = {SERVER: PLAIN}
        ours = rated(mb_per_s, asked_per_s=5.0, latency_p50_ms=p50_ms, generator_lag_p99_ms=1.0)
        plain = rated(plain_mb_per_s, asked_per_s=5.0, latency_p50_ms=2.0, generator_lag_p99_ms=2.0)
        return [
            LoadResult("lines", {}, "000", ours, PASSED, 1.0),
            LoadResult("lines", named, "001", plain, PASSED, 1.0),
        ]

    found = beside_plain([*results(50.0, 5.0, 100.0), *results(70.0, 3.0, 100.0)])
    report = LoadReport("run", {}, LIMITS, found)
    assert found[0].shares() == {
        "latency_p50_ms": 2.5, "rate_mb_per_s": 0.5, "asked_per_s": 1.0
    }  # fmt: skip
    assert [each.share(LIMITS) for each in found] == [0.5, None, 0.7, None]
    save_report(report, tmp_path)
    assert load_report(tmp_path) == report
    saved = json.loads((tmp_path / RESULTS_FILE).read_text())["results"]
    assert saved[0]["shares"]["latency_p50_ms"] == 2.5
    share = 'jobworker_load_share{profile="lines",repeat="1",figure="latency_p50_ms"} 2.5'
    assert share in prometheus(report)
    assert len(series(report)) == len(set(series(report)))
    assert "| lines | p50 ms | 4.00 | 3.00 to 5.00 | 2.00 | 2.00 |" in table(report)
    assert "<td>5.00 (2.50)</td>" in render(report, tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64KiB", (65536, "bytes")), ("1MiB", (2**20, "bytes")), ("5ms", (0.005, "seconds")),
        ("1.5s", (1.5, "seconds")), ("1e6", (1e6, "")), ("0", (0, "")), ("yes", None),
        ("KiB", None),
    ],
)  # fmt: skip
def test_quantity_of_sizes_times_and_words(text: str, value: tuple[float, str] | None) -> None:
    found = quantity(text)
    assert (found and pytest.approx(found[0])) == (value and value[0])
    assert (found and found[1]) == (value and value[1])


@pytest.mark.parametrize(
    ("axis", "values", "drawn_by"),
    [
        ("streamers", ("1", "10", "100"), "curves"),
        ("server:message-size", ("64KiB", "1MiB", "4MiB"), "curves"),
        ("server:flush-interval", ("0ms", "5ms", "100ms"), "curves"),
        ("server:connection-window", ("yes", "no"), "bars"),
        # 0 keeps everything: it is no size below the others.
        ("server:log-retention", ("0", "16MiB", "1MiB"), "bars"),
    ],
)
def test_axis_has_a_picture_with_its_values(
    axis: str, values: tuple[str, ...], drawn_by: str
) -> None:
    made = drawings(swept(axis, values, rounds=2))
    assert [getattr(each, "func").__name__ for each in made] == [drawn_by]  # noqa: B009 - a partial
    [chart] = charts(made, "test")
    assert chart.title == "Rate"
    for value in values:
        assert f">{value}<" in chart.svg, f"{value} is not at the axis"


def test_table_of_a_sweep_is_ordered_by_size() -> None:
    report = swept("server:message-size", ("4MiB", "64KiB", "1MiB"))
    assert [each.labels["value"] for each in in_order(report)] == ["64KiB", "1MiB", "4MiB"]
