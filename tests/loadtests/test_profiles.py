"""The table of loads, and profiles from a user's file."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.record.verdict import BrokenError
from loadtests.pacer import Pace, bursts, steady
from loadtests.profiles import PROFILES, Floor, Profile, Storm, load_profiles, named
from loadtests.sweep import SWEEPS, points
from loadtests.sweep import named as named_sweep


def test_profiles_have_unique_names_and_limits() -> None:
    assert len({profile.name for profile in PROFILES}) == len(PROFILES)
    for profile in PROFILES:
        assert profile.limits, f"{profile.name} limits nothing"
        assert profile.floor.rate_share >= 0.9


def test_the_default_loads_are_short() -> None:
    assert sum(profile.duration_s for profile in PROFILES) < 60


def test_profiles_are_read_from_a_file(own_profile: Callable[[str], str]) -> None:
    path = own_profile(
        """
        [lines]
        about = "many short lines"
        streamers = 50
        message_bytes = 100
        rate_per_s = 1000
        duration_s = 5
        limits = { latency_p99_ms = 50 }
        floor = { rate_share = 0.5 }

        [gusts]
        burst = 4
        every_s = 0.5
        duration_s = 2
        storm = { starts_per_s = 5, duration_s = 2 }
        """
    )
    lines, gusts = load_profiles(Path(path))
    assert lines == Profile(
        "lines", "many short lines", 100, steady(1000, 5), 50, limits={"latency_p99_ms": 50.0},
        floor=Floor(rate_share=0.5),
    )  # fmt: skip
    assert gusts.pace == bursts(4, 0.5, 2) == Pace(16, 4, 500_000_000)
    assert gusts.storm == Storm(5, 2)
    assert named(("gusts",), (lines, gusts)) == (gusts,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no table"),
        ("[x", "profiles in"),
        ("x = 1", "must be a table"),
        ("[x]", "neither messages nor a storm"),
        ("[x]\nrate = 5", "known are about"),
        ("[x]\nrate_per_s = 5", "a pace is rate_per_s and duration_s"),
        ("[x]\nrate_per_s = 'fast'\nduration_s = 1", "must be of type float"),
        ("[x]\nrate_per_s = 0\nduration_s = 1", "division"),
        ("[x]\nstreamers = true\nflood_messages = 1", "must be of type int"),
        ("[x]\nstreamers = 0\nflood_messages = 1", "must be 1 to"),
        ("[x]\nflood_messages = 0", "must be at least 1"),
        ("[x]\nflood_messages = 1\nmessage_bytes = 3", "message_bytes is 3"),
        ("[x]\nflood_messages = 1\nslow = 1", "slow readers need"),
        ("[x]\nflood_messages = 1\nlate = 2", "more than the streamers"),
        (
            "[x]\nflood_messages = 1\nlimits = { speed = 1 }",
            "limits: unknown figure 'speed'; known are latency_p50_ms",
        ),
        ("[x]\nflood_messages = 1\nfloor = { speed = 1 }", "it may have rate_share"),
        ("[x]\nflood_messages = 1\nfloor = 1", "must be a table"),
        ("[x]\nrate_per_s = 1\nduration_s = 99999", "at most 3600"),
        ("[x]\nflood_messages = 9999999", "at most 2000000"),
    ],
)
def test_invalid_file_is_broken_with_its_fault(
    own_profile: Callable[[str], str], text: str, says: str
) -> None:
    with pytest.raises(BrokenError, match=says):
        load_profiles(Path(own_profile(text)))


def test_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BrokenError, match="known are steady-lines"):
        named(("nope",))


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_points_of_every_sweep_are_valid_and_reproducible(sweep: object) -> None:
    [found] = [each for each in SWEEPS if each is sweep]
    values = sum(len(axis.values) for axis in found.axes)
    made = points(found, 2, "seed")
    assert len(made) == 2 * values
    assert made == points(found, 2, "seed")
    assert {each.labels["axis"] for each in made} == {axis.name for axis in found.axes}


def test_settings_of_the_docs_are_swept() -> None:
    text = (Path(__file__).parents[2] / "docs" / "load.md").read_text()
    table = text.partition("| setting | acts on |")[2].partition("\n\n")[0]
    swept = {axis.name: axis.values for axis in named_sweep("settings").axes}
    for flag in re.findall(r"^\| `--(?:no-)?([a-z-]+)", table, re.MULTILINE):
        assert flag == "max-receive-size" or f"server:{flag}" in swept, flag
    for option in re.findall(r"`(grpc\.\S+)`", table):
        assert f"client:{option}" in swept
    sizes = re.findall(r"^\| (?:`--message-size` )?\**(\d+) ([KM]iB)", table, re.MULTILINE)
    assert {f"{size}{unit}" for size, unit in sizes} == {
        *swept["server:message-size"], "256MiB"  # the last one is a row of --in-flight
    }  # fmt: skip
    assert {"16MiB", "1MiB"} <= set(swept["server:log-retention"])


def test_rates_are_swept_beyond_the_rate_that_is_reached() -> None:
    made = points(named_sweep("rates"), 1, "seed")
    rates = sorted(each.profile.pace.rate_per_s for each in made if each.profile.pace)
    assert rates[0] == 25
    assert rates[-1] == pytest.approx(12_800)
    for each in made:
        assert each.profile.is_timed
        # A rate that is not reached, on a machine without time to spare, is what it looks for.
        assert (each.profile.floor.rate_share, each.profile.floor.busy_share) == (0.0, 1.0)
