"""The table of loads, and what a file of one's own may say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.verdict import BrokenError
from loadtests.metrics import FIGURES
from loadtests.pacer import Pace, bursts, steady
from loadtests.profiles import LIMITS, PROFILES, Floor, Profile, Storm, load_profiles, named
from loadtests.sweep import SWEEPS, points


def test_profiles_have_names_of_their_own_and_limits_that_can_be_measured() -> None:
    assert len({profile.name for profile in PROFILES}) == len(PROFILES)
    assert set(LIMITS) <= set(FIGURES)
    for profile in PROFILES:
        assert profile.limits, f"{profile.name} limits nothing"
        assert profile.floor.rate_share >= 0.9


def test_the_default_loads_are_short() -> None:
    assert sum(profile.duration_s for profile in PROFILES) < 60


def test_a_file_may_have_profiles_of_ones_own(own_profile: Callable[[str], str]) -> None:
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
        ("", "there is none"),
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
        ("[x]\nflood_messages = 1\nlimits = { speed = 1 }", "limits has speed"),
        ("[x]\nflood_messages = 1\nfloor = { speed = 1 }", "it may have rate_share"),
        ("[x]\nflood_messages = 1\nfloor = 1", "must be a table"),
        ("[x]\nrate_per_s = 1\nduration_s = 99999", "at most 3600"),
        ("[x]\nflood_messages = 9999999", "at most 2000000"),
    ],
)
def test_a_file_that_is_not_understood_says_what_is_wrong(
    own_profile: Callable[[str], str], text: str, says: str
) -> None:
    with pytest.raises(BrokenError, match=says):
        load_profiles(Path(own_profile(text)))


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BrokenError, match="there are steady-lines"):
        named(("nope",))


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_every_point_of_every_sweep_can_be_made(sweep: object) -> None:
    [found] = [each for each in SWEEPS if each is sweep]
    values = sum(len(axis.values) for axis in found.axes)
    made = points(found, 2, "seed")
    assert len(made) == 2 * values
    assert made == points(found, 2, "seed")
    assert {each.labels["axis"] for each in made} == {axis.name for axis in found.axes}
