"""Sweeps: the same load repeated, with one thing changed at a time.

An axis is `NAME=VALUE,VALUE,...`. Its name is what it changes:
  streamers, message_bytes, rate_per_s, messages   of the profile
  server:FLAG                                       the launched server gets `--FLAG VALUE`
  client:OPTION                                     gRPC's option of the readers' connections
"""

import dataclasses
import random
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from harness.record.number import Number
from harness.record.verdict import BrokenError
from loadtests.overview import AXIS, ROUND, VALUE
from loadtests.pacer import Pace, bursts, flood, steady
from loadtests.profiles import KIB, MIB, Floor, Profile, accept_number
from loadtests.session import Point

_LOOSE: Final = Floor(generator_lag_p99_ms=100, writer_lag_p99_ms=100)
# This sweep raises the rate until it is not reached, so neither that nor a busy machine is a fault.
# Latency is then seconds, and bounds the lag by its share.
_SATURATING: Final = Floor(
    rate_share=0.0, generator_lag_p99_ms=1000, writer_lag_p99_ms=1000, busy_share=1.0
)

SERVER: Final = "server:"
CLIENT: Final = "client:"
_AXIS_NAME: Final = re.compile(f"({SERVER}|{CLIENT})[A-Za-z0-9][A-Za-z0-9._-]*")
_CHANNEL_NUMBER: Final = Number(-(2**31), 2**31 - 1, whole=True)  # C's int


@dataclass(frozen=True, slots=True)
class Axis:
    """What is changed, and its values."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A named sweep: a profile and its axes; `sized` adapts the profile to a value."""

    name: str
    about: str
    profile: Profile
    axes: tuple[Axis, ...]
    sized: Callable[[Profile, str], Profile] | None = None


def parse_axis(text: str) -> Axis:
    """Return the axis of a text `NAME=VALUE,VALUE,...`.

    Raises:
        BrokenError: it is invalid.
    """
    name, _, values = text.partition("=")
    known = (*_CHANGES, f"{SERVER}FLAG", f"{CLIENT}OPTION")
    if name not in _CHANGES and not _AXIS_NAME.fullmatch(name):
        raise BrokenError(f"--over {text!r}: unknown axis {name!r}; known are {', '.join(known)}")
    if not all(values.split(",")):
        raise BrokenError(f"--over {text!r}; write NAME=VALUE,VALUE,...")
    return Axis(name, tuple(values.split(",")))


def points(sweep: Sweep, rounds: int, seed: str) -> list[Point]:
    """Return the loads of a sweep: every value in each round, in random order.

    A machine gets warm or busy as time passes; in the order of the axis that would look like an
    effect of the axis.

    Raises:
        BrokenError: a value is invalid for its axis.
    """
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    every = []
    for number in range(1, rounds + 1):
        round_ = {ROUND: str(number)} if rounds > 1 else {}
        of_round = [
            _point(sweep, axis, value, round_) for axis in sweep.axes for value in axis.values
        ]
        every += chance.sample(of_round, len(of_round))
    return every


def _point(sweep: Sweep, axis: Axis, value: str, round_: Mapping[str, str]) -> Point:
    labels = {AXIS: axis.name, VALUE: value, **round_}
    if axis.name.startswith(SERVER):
        flag = axis.name.removeprefix(SERVER)
        with_value = f"--{flag} {shlex.quote(value)}"
        words = {"yes": f"--{flag}", "no": f"--no-{flag}"}.get(value, with_value)
        return Point(sweep.profile, labels, flags=words)
    if axis.name.startswith(CLIENT):
        option = axis.name.removeprefix(CLIENT)
        return Point(sweep.profile, labels, options=(channel_option(option, value),))
    profile = (sweep.sized or _CHANGES[axis.name])(sweep.profile, value)
    # A profile's limits are for its own size.
    return Point(dataclasses.replace(profile, limits={}), labels)


def channel_option(name: str, value: str) -> tuple[str, int | str]:
    """Return gRPC's option of a connection; a whole number is given to gRPC as one.

    Raises:
        BrokenError: it is a number outside gRPC's range.
    """
    if not re.fullmatch("[+-]?[0-9]+", value):
        return name, value
    try:
        return name, _CHANNEL_NUMBER.accept_whole(value)
    except ValueError as error:
        raise BrokenError(f"{name} is {value}; it must be {error}") from None


def _with_streamers(profile: Profile, value: str) -> Profile:
    return dataclasses.replace(profile, streamers=accept_number("streamers", value))


def _with_message_bytes(profile: Profile, value: str) -> Profile:
    """Change the size of a message; a flood keeps its size in bytes."""
    size = accept_number("message_bytes", value)
    pace = profile.pace
    if pace is not None and pace.is_flood:
        pace = flood(max(1, pace.count * profile.message_bytes // size))
    return dataclasses.replace(profile, message_bytes=size, pace=pace)


def _with_rate(profile: Profile, value: str) -> Profile:
    rate_per_s = accept_number("rate_per_s", value)
    return dataclasses.replace(profile, pace=steady(rate_per_s, max(1.0, profile.duration_s)))


def _with_messages(profile: Profile, value: str) -> Profile:
    return dataclasses.replace(profile, pace=flood(accept_number("flood_messages", value)))


_CHANGES: Final[Mapping[str, Callable[[Profile, str], Profile]]] = {
    "streamers": _with_streamers,
    "message_bytes": _with_message_bytes,
    "rate_per_s": _with_rate,
    "messages": _with_messages,
}

_TOTAL_BYTES: Final = 1024 * MIB
_LEAST_BYTES: Final = 4 * MIB
_STREAMERS: Final = ("1", "2", "5", "10", "20", "50", "100", "200", "500", "1000")
_LINES_PER_S: Final = 2000
_RATES: Final = ("25", "50", "100", "200", "400", "800", "1600", "3200", "6400", "12800")


def _shared_total(profile: Profile, value: str) -> Profile:
    """Give each streamer less the more they are, so that a point takes seconds, not minutes."""
    streamers = accept_number("streamers", value)
    size_bytes = max(_LEAST_BYTES, _TOTAL_BYTES // streamers)
    pace = flood(size_bytes // profile.message_bytes)
    return dataclasses.replace(profile, streamers=streamers, pace=pace)


def _shared_lines(profile: Profile, value: str) -> Profile:
    """Write 100 lines per second, fewer from 20 streamers on: 2000 deliveries per second."""
    streamers = accept_number("streamers", value)
    pace: Pace = steady(min(100.0, _LINES_PER_S / streamers), 6)
    return dataclasses.replace(profile, streamers=streamers, pace=pace)


_FLOOD: Final = Profile(
    "live", "a job writes as fast as the server reads it, and all follow live",
    message_bytes=64 * KIB, pace=flood(1024), streamers=10, floor=_LOOSE,
)  # fmt: skip
_BURSTS: Final = Profile(
    "bursts", "1 MiB at once every 100 ms, in messages of 64 KiB, to 10 followers",
    message_bytes=64 * KIB, pace=bursts(16, 0.1, 4), streamers=10, floor=_LOOSE,
)  # fmt: skip
_LINES: Final = Profile(
    "lines", "lines of 128 bytes", pace=steady(100, 6), streamers=10, floor=_LOOSE
)
_WINDOWS: Final = (
    Axis("server:message-size", ("64KiB", "128KiB", "256KiB", "512KiB", "1MiB", "4MiB")),
    Axis("server:in-flight", ("4MiB", "64MiB", "256MiB")),
    Axis("server:stream-window", ("64KiB", "4MiB")),
    Axis("server:connection-window", ("yes", "no")),
    Axis("server:frame-size", ("16KiB", "1MiB")),
    Axis("server:log-retention", ("0", "16MiB", "1MiB")),
    Axis("server:max-concurrent-streams", ("1", "1000")),
    Axis("client:grpc.http2.lookahead_bytes", ("65535", "1048576", "8388608")),
    Axis("client:grpc.http2.bdp_probe", ("1", "0")),
    Axis("client:grpc.http2.max_frame_size", ("16384", "1048576")),
)
_FLUSHING: Final = (
    Axis("server:flush-interval", ("0ms", "1ms", "5ms", "20ms", "100ms")),
    Axis("server:flush-size", ("4KiB", "64KiB", "256KiB", "1MiB")),
)

SWEEPS: Final = (
    Sweep(
        "scaling", "live streaming to 1 to 1000 streamers, every byte checked", _FLOOD,
        (Axis("streamers", _STREAMERS),), _shared_total,
    ),
    Sweep(
        "latency", "lines to 1 to 1000 streamers, at most 2000 per second to all together", _LINES,
        (Axis("streamers", _STREAMERS),), _shared_lines,
    ),
    Sweep(
        # With lines the generator, which compares each, would be the bottleneck before the server.
        "rates", "16 KiB at 25 per second and more, to 10 followers, until the rate is not reached",
        dataclasses.replace(
            _LINES, name="rates", about="messages of 16 KiB", message_bytes=16 * KIB,
            pace=steady(100, 3), floor=_SATURATING,
        ),
        (Axis("rate_per_s", _RATES),),
    ),
    Sweep("settings", "the settings of R-STREAM-9, on either side: throughput", _FLOOD, _WINDOWS),
    Sweep("flushing", "interval and size of flushes: latency of lines", _LINES, _FLUSHING),
    Sweep("burst-flushing", "interval and size of flushes: latency of bursts", _BURSTS, _FLUSHING),
    Sweep(
        # The generator compares each message: below 1 KiB it is the bottleneck.
        "message-size", "live streaming of messages of 1 KiB to 1 MiB",
        dataclasses.replace(_FLOOD, pace=flood(256)),
        (Axis("message_bytes", ("1024", "4096", "16384", "65536", "262144", "1048576")),),
    ),
)  # fmt: skip


def named(name: str) -> Sweep:
    """Return the sweep of this name.

    Raises:
        BrokenError: it does not exist; lists those that do.
    """
    for sweep in SWEEPS:
        if sweep.name == name:
            return sweep
    raise BrokenError(
        f"unknown sweep {name!r}; known are {', '.join(each.name for each in SWEEPS)}"
    )
