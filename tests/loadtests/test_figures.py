"""The figures: every field has one name, a unit and a meaning; a name is resolved in one place."""

import dataclasses
import re
from pathlib import Path

import pytest

from harness.record.verdict import BrokenError
from loadtests.figures import FIGURES, LIMITS, Figures, described, figure_named

ROOT = Path(__file__).parents[2]
NAMES = list(FIGURES)


def test_every_field_is_a_figure_with_a_unique_name_and_a_meaning() -> None:
    groups = {each.name: getattr(Figures(), each.name) for each in dataclasses.fields(Figures)}
    places = [(name, each.name) for name, group in groups.items() for each in
              dataclasses.fields(group)]  # fmt: skip
    assert [figure.place for figure in FIGURES.values()] == places
    for name, figure in FIGURES.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]+", name)
        assert figure.about
        assert "{" not in figure.about


@pytest.mark.parametrize("name", NAMES)
def test_unit_of_a_figure_is_the_end_of_its_name(name: str) -> None:
    ends = {
        "ms": "_ms", "s": "_s", "bytes": "_bytes", "MB/s": "_mb_per_s", "1/s": "_per_s",
        "s/GB": "_s_per_gb", "cores": "_share", "us/message": "_us_per_message",
        "ms/start": "_ms_per_start",
    }  # fmt: skip
    unit = FIGURES[name].unit
    assert name.endswith(ends[unit]) if unit else not name.endswith(("_ms", "_s", "_bytes"))


def test_figures_survive_their_names() -> None:
    values = {name: number + 1 for number, name in enumerate(NAMES)}
    figures = Figures.from_names(values)
    assert figures.by_name() == values
    assert [figure.of(figures) for figure in FIGURES.values()] == list(values.values())


def test_unknown_name_of_an_older_run_is_left_out() -> None:
    assert Figures.from_names({"speed": 1.0}).is_empty


def test_value_of_the_wrong_type_is_refused() -> None:
    wrong: dict[str, float] = {"fairness": "high"}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="fairness"):
        Figures.from_names(wrong)


def test_described_is_the_figure_that_a_function_reads() -> None:
    assert described(lambda figures: figures.observed.p99_ms).name == "observed_p99_ms"
    assert described(lambda figures: figures.server.fds_peak) is FIGURES["server_fds_peak"]
    with pytest.raises(TypeError):
        described(lambda _: None)


def test_unknown_name_of_a_user_is_refused_with_the_known_ones() -> None:
    assert figure_named("observed_p99_ms") is FIGURES["observed_p99_ms"]
    with pytest.raises(BrokenError, match="unknown figure 'observed_p99_ms'; known are latency_p5"):
        figure_named("observed_p99_ms", LIMITS)


def test_docs_list_every_figure_as_it_is() -> None:
    text = (ROOT / "docs" / "load.md").read_text()
    section = text.partition("## Figures")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    assert rows == [
        (name, figure.unit or "-", figure.about, figure.limit or "-")
        for name, figure in FIGURES.items()
    ]
