"""The table of loads, and profiles from a user's file."""

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.record.verdict import BrokenError
from loadtests.figures import LIMITS
from loadtests.pacer import Pace, bursts, steady
from loadtests.profile_file import load_profiles
from loadtests.profiles import MORE, NUMBERS, PROFILES, Floor, Profile, Storm, named
from loadtests.sweep import SWEEPS, Sweep, channel_option, parse_axis, points
from loadtests.sweep import named as named_sweep


def test_profiles_have_unique_names_and_limits() -> None:
    every = (*PROFILES, *MORE)
    assert len({profile.name for profile in every}) == len(every)
    for profile in every:
        assert profile.limits, f"{profile.name} limits nothing"
    for profile in PROFILES:
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
        ("[x]\nabout = 5", "about is 5; it must be of type str"),
        ("[x]\nreplay = 1", "replay is 1; it must be of type bool"),
        ("[x]\nlimits = 1", "limits is 1; it must be a table"),
        ("['../x']\nflood_messages = 1", "its name must match"),
        ("[x]\nstorm = { starts_per_s = 1 }", "storm has no duration_s"),
        ("[x]\nstorm = { starts_per_s = 10000, duration_s = 3600 }", "at most 2000000"),
        ("[x]\nrate_per_s = 1e6\nduration_s = 3600", "at most 2000000"),
        ("x = " + "[" * 5000, "maximum recursion depth"),
        ("x = " + "9" * 5000, "limit"),
        ("[x]\nflood_messages = 0x" + "f" * 5000, "flood_messages is an integer of thousands"),
        ("[x]\nflood_messages = 1\nmessage_bytes = 3", "message_bytes is 3"),
        ("[x]\nflood_messages = 1\nslow = 1", "slow readers need"),
        ("[x]\nflood_messages = 1\nlate = 2", "more than the streamers"),
        (
            "[x]\nflood_messages = 1\nlimits = { speed = 1 }",
            "limits has 'speed'; known are latency_p50_ms",
        ),
        (
            "[x]\nflood_messages = 1\nfloor = { speed = 1 }",
            "'speed'; known are rate_share",
        ),
        ("[x]\nflood_messages = 1\nfloor = 1", "must be a table"),
        ("[x]\nrate_per_s = 1\nduration_s = 99999", "it must be a number from 0.001 to 3600"),
        ("[x]\nflood_messages = 9999999", "it must be a whole number from 1 to 2000000"),
    ],
)
def test_invalid_file_is_broken_with_its_fault(
    own_profile: Callable[[str], str], text: str, says: str
) -> None:
    with pytest.raises(BrokenError, match=says):
        load_profiles(Path(own_profile(text)))


def table_with(name: str, value: str) -> str:
    """Return a valid profile, except for the value of one number."""
    table, _, key = name.rpartition(".")
    values = {"message_bytes": "128", "streamers": "1", "slow_bytes_per_s": "1"}
    if key in {"rate_per_s", "duration_s"}:
        values |= {"rate_per_s": "1", "duration_s": "1"}
    elif key in {"burst", "every_s"}:
        values |= {"burst": "1", "every_s": "1", "duration_s": "1"}
    else:
        values |= {"flood_messages": "1"}
    if table == "storm":
        storm = {"starts_per_s": "1", "duration_s": "1", key: value}
        values["storm"] = "{" + ", ".join(f"{name} = {storm[name]}" for name in storm) + "}"
    else:
        values[name] = value
    return "[x]\n" + "".join(f"{name} = {values[name]}\n" for name in values)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    ["inf", "-inf", "nan", "-1", "1e300", "9" * 30, "true", "'one'", "[]", "{}", "1979-05-27"],
)
def test_number_of_a_file_outside_its_range_is_refused(
    own_profile: Callable[[str], str], name: str, value: str
) -> None:
    assert load_profiles(Path(own_profile(table_with(name, str(NUMBERS[name].lowest or 1)))))
    with pytest.raises(BrokenError, match=rf"{name} is .*; it must be a (whole )?number from"):
        load_profiles(Path(own_profile(table_with(name, value))))


@pytest.mark.parametrize("figure", LIMITS)
@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e300", "true", "[]"])
def test_limit_that_is_never_exceeded_or_never_kept_is_refused(
    own_profile: Callable[[str], str], figure: str, value: str
) -> None:
    text = f"[x]\nflood_messages = 1\nlimits = {{ {figure} = {value} }}"
    with pytest.raises(BrokenError, match=f"{figure} is .*; it must be a number from 0 to"):
        load_profiles(Path(own_profile(text)))


def test_every_field_of_a_profile_has_its_rule() -> None:
    kinds = {"": Profile, "floor.": Floor, "storm.": Storm}
    numeric = {
        f"{prefix}{each.name}"
        for prefix, kind in kinds.items()
        for each in dataclasses.fields(kind)
        if each.type in {int, float}
    }
    assert numeric <= set(NUMBERS)


def test_profile_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_bytes(b"[x]\nabout = 'caf\xe9'\nflood_messages = 1\n")
    with pytest.raises(BrokenError, match=r"profiles in .*'utf-8' codec can't decode"):
        load_profiles(path)


@pytest.mark.parametrize("axis", ["streamers", "message_bytes", "rate_per_s", "messages"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1", "0", "1e300", "9" * 30, "\u0663", "lots"])
def test_value_of_an_axis_outside_its_range_is_refused(axis: str, value: str) -> None:
    for each in SWEEPS:
        sweep = dataclasses.replace(each, axes=(parse_axis(f"{axis}={value}"),), sized=None)
        with pytest.raises(BrokenError, match=r"is .*; it must be a"):
            points(sweep, 1, "seed")


@pytest.mark.parametrize("text", ["server:=1", "client:=1", "server:a b=1", "server:x=", "speed=1"])
def test_axis_without_a_name_or_a_value_is_refused(text: str) -> None:
    with pytest.raises(BrokenError, match="--over"):
        parse_axis(text)


def test_value_of_a_server_axis_is_one_word() -> None:
    sweep = Sweep("s", "", PROFILES[0], (parse_axis("server:x=it's {a}"),))
    [point] = points(sweep, 1, "seed")
    assert shlex.split(point.flags) == ["--x", "it's {a}"]


@pytest.mark.parametrize("value", ["2147483648", "-2147483649", "9" * 5000])
def test_channel_option_outside_the_range_of_grpc_is_refused(value: str) -> None:
    with pytest.raises(BrokenError, match="it must be a whole number from -2147483648"):
        channel_option("grpc.http2.bdp_probe", value)


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
