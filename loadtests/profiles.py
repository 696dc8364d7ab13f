"""The loads: each is one frozen value in one table, or one table in a TOML file of the user's.

A profile has the requested load (`pace`, `streamers`, ...), the conditions for trusting the run
(`floor`: else it is BROKEN), and what a server must keep (`limits`: else it FAILs).
A new profile is one entry in `PROFILES`, or one table in a file:

    [my-lines]
    about = "a thousand short lines a second"
    streamers = 50
    message_bytes = 100
    rate_per_s = 1000
    duration_s = 5
    limits = { latency_p99_ms = 50 }
"""

import dataclasses
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.record.number import Number
from harness.record.verdict import BrokenError
from loadtests.emitter import HEAD_BYTES
from loadtests.figures import LIMITS, figure_named
from loadtests.pacer import Pace, bursts, flood, steady

MESSAGE_MIN_BYTES: Final = HEAD_BYTES + 2
STREAMERS_MAX: Final = 4000
MESSAGES_MAX: Final = 2_000_000
DURATION_MAX_S: Final = 3600.0
KIB: Final = 1024
MIB: Final = 1024 * 1024
# A profile's name is part of the names of its records.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RATE_MAX_PER_S: Final = 1e6
_DURATION_S: Final = Number(0.001, DURATION_MAX_S)
_LAG_MS: Final = Number(0, 1e10)
_CORES: Final = Number(0, 4096)
_SHOWN_CHARACTERS_MAX: Final = 80

# The numbers of a profile, whoever gives them: a file, an axis of a sweep, or a variable.
NUMBERS: Final[Mapping[str, Number]] = {
    "message_bytes": Number(MESSAGE_MIN_BYTES, MIB, whole=True),
    "streamers": Number(1, STREAMERS_MAX, whole=True),
    "late": Number(0, STREAMERS_MAX, whole=True),
    "slow": Number(0, STREAMERS_MAX, whole=True),
    "slow_bytes_per_s": Number(0, 1e12),
    "cut_every_bytes": Number(0, 2**53, whole=True),
    "rate_per_s": Number(0.001, _RATE_MAX_PER_S),
    "duration_s": _DURATION_S,
    "burst": Number(1, MESSAGES_MAX, whole=True),
    "every_s": Number(0.001, DURATION_MAX_S),
    "flood_messages": Number(1, MESSAGES_MAX, whole=True),
    "floor.rate_share": Number(0, 1),
    "floor.generator_lag_p99_ms": _LAG_MS,
    "floor.writer_lag_p99_ms": _LAG_MS,
    "floor.others_cores": _CORES,
    "floor.busy_share": Number(0, 1),
    "floor.steal_cores": _CORES,
    "floor.lag_share": Number(0, 1e6),
    "storm.starts_per_s": Number(0.001, _RATE_MAX_PER_S),
    "storm.duration_s": _DURATION_S,
    "storm.callers": Number(1, 1000, whole=True),
}
# A limit may be any number that figures can have; with another one it would never be exceeded.
LIMIT: Final = Number(0, 1e15)


def accept_number(name: str, value: object) -> Any:  # noqa: ANN401 - int or float
    """Return a number of a profile, from a text or a TOML value.

    Raises:
        BrokenError: it is invalid; has the name, the value, and the accepted ones.
    """
    return _accepted(name, NUMBERS[name], value)


def accept_limit(name: str, value: object) -> float:
    """Return the limit of a figure, from a text or a TOML value.

    Raises:
        BrokenError: the limit is invalid, or no figure of this name can be limited.
    """
    return float(_accepted(figure_named(name, LIMITS).name, LIMIT, value))


def _accepted(name: str, rule: Number, value: object) -> float:
    try:
        return rule.accept(value)
    except ValueError as error:
        raise BrokenError(f"{name} is {_shown(value)}; it must be {error}") from None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # TOML's hexadecimal integers have no bound, decimal texts of them have
        return "an integer of thousands of digits"
    # A representation is one line, and has no control characters.
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}..."


@dataclass(frozen=True, slots=True)
class Floor:
    """The conditions for trusting a run; one that misses them is BROKEN.

    Attributes:
        rate_share: least share of the requested messages and starts per second.
        generator_lag_p99_ms: how late the readers' processes may wake.
        writer_lag_p99_ms: how late the job may write although the server did not block it.
        others_cores: processor time per second that other programs may use.
        busy_share: how busy all processors may be under a load with planned instants. In kept runs
            of all profiles a quiet machine of two cores was 8 to 25 % busy, up to 49 % with half a
            core used by others; at 75 % and more the latencies were the machine's.
        steal_cores: processor time per second that the hypervisor may give to other machines: in
            more than a hundred kept loads it was at most 0.004.
        lag_share: largest share of a latency that the readers' or the job's own lag may be, at the
            same percentile. In kept runs on a quiet machine it was at most 0.45.
    """

    rate_share: float = 0.9
    generator_lag_p99_ms: float = 25.0
    writer_lag_p99_ms: float = 25.0
    others_cores: float = 0.5
    busy_share: float = 0.8
    steal_cores: float = 0.05
    lag_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Storm:
    """Jobs that are started and stopped at planned instants, with or without streams beside."""

    starts_per_s: float
    duration_s: float
    callers: int = 32


@dataclass(frozen=True, slots=True)
class Profile:
    """One load.

    Attributes:
        name: for the command line.
        about: the load, in words.
        message_bytes: of each message; messages are numbered, stamped, and checked byte by byte.
        pace: when each message is due; None if `storm` is the whole load.
        streamers: number of followers, each on a connection of its own.
        replay: whether the job ends before the first one joins.
        late: number of them that join during the load, evenly over its time.
        slow: number of them that read at most `slow_bytes_per_s`, and leave at the load's end.
        slow_bytes_per_s: see `slow`.
        cut_every_bytes: each one disconnects after this many bytes and resumes there; 0: never.
        storm: see `Storm`.
        floor: see `Floor`.
        limits: bounds of figures, by their names in `figures.LIMITS`.
    """

    name: str
    about: str
    message_bytes: int = 128
    pace: Pace | None = None
    streamers: int = 1
    replay: bool = False
    late: int = 0
    slow: int = 0
    slow_bytes_per_s: float = 0.0
    cut_every_bytes: int = 0
    storm: Storm | None = None
    floor: Floor = Floor()
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a load that cannot be run.

        Raises:
            BrokenError: names the wrong value and the allowed ones.
        """
        for what, wrong in self._faults():
            if wrong:
                raise BrokenError(f"profile {_shown(self.name)}: {what}")
        try:
            for name in ("message_bytes", "streamers", "late", "slow", "cut_every_bytes"):
                accept_number(name, getattr(self, name))
        except BrokenError as error:
            raise BrokenError(f"profile {self.name!r}: {error}") from error
        try:
            for name, limit in self.limits.items():
                accept_limit(name, limit)
        except BrokenError as error:
            raise BrokenError(f"profile {self.name!r}: limits: {error}") from error

    def _faults(self) -> list[tuple[str, bool]]:
        messages = self.pace.count if self.pace else 0
        starts = self.storm.starts_per_s * self.storm.duration_s if self.storm else 0
        return [
            (f"its name must match {_NAME.pattern}", not _NAME.fullmatch(self.name)),
            ("it has neither messages nor a storm", self.pace is None and self.storm is None),
            (f"it has {messages} messages; at most {MESSAGES_MAX}", messages > MESSAGES_MAX),
            (f"it starts {starts:.0f} jobs; at most {MESSAGES_MAX}", starts > MESSAGES_MAX),
            (
                f"it takes {self.duration_s:.0f} s; at most {DURATION_MAX_S:.0f}",
                self.duration_s > DURATION_MAX_S,
            ),
            (
                "late and slow together are more than the streamers",
                self.late + self.slow > self.streamers,
            ),
            ("slow readers need slow_bytes_per_s", self.slow > 0 and self.slow_bytes_per_s <= 0),
        ]

    @property
    def duration_s(self) -> float:
        """The planned duration; 0 for a flood."""
        streams_s = self.pace.duration_ns / 1e9 if self.pace else 0.0
        return max(streams_s, self.storm.duration_s if self.storm else 0.0)

    @property
    def is_timed(self) -> bool:
        """Whether messages have planned instants, so that there is a latency."""
        return self.pace is not None and not self.pace.is_flood and not self.replay

    @property
    def is_planned(self) -> bool:
        """Whether messages, or starts and stops, have planned instants."""
        return self.is_timed or self.storm is not None

    @property
    def size_bytes(self) -> int:
        """The bytes that the job writes, its first message included."""
        return (self.pace.count + 1) * self.message_bytes if self.pace else 0


PROFILES: Final = (
    Profile(
        "steady-lines", "100 lines of 128 bytes a second, to 10 followers",
        pace=steady(100, 6), streamers=10, limits={"latency_p99_ms": 100},
    ),
    Profile(
        "bursts", "1 MiB at once every 100 ms, in messages of 64 KiB, to 10 followers",
        message_bytes=64 * KIB, pace=bursts(16, 0.1, 5), streamers=10,
        limits={"latency_p99_ms": 500, "fairness": 0.9},
    ),
    Profile(
        "flood", "384 MiB as fast as the server takes it, to 1 follower",
        message_bytes=64 * KIB, pace=flood(6144), limits={"rate_mb_per_s": 20},
    ),
    Profile(
        # A single reader of the generator's is the bottleneck as often as the server is.
        "replay", "an ended job's 192 MiB, to 2 readers at once",
        message_bytes=64 * KIB, pace=flood(3072), streamers=2, replay=True,
        limits={"rate_mb_per_s": 20},
    ),
    Profile(
        "crowd-replay", "an ended job's 16 MiB, to 50 readers at once",
        message_bytes=64 * KIB, pace=flood(256), streamers=50, replay=True,
        limits={"rate_mb_per_s": 20, "fairness": 0.5},
    ),
    Profile(
        "idle-followers", "a line every second, to 200 followers: the cost of waiting streams",
        pace=steady(1, 5), streamers=200,
        limits={"latency_p99_ms": 1000, "memory_per_streamer_bytes": 2 * MIB},
    ),
    Profile(
        "late-joiners", "16 KiB 100 times a second; 15 of 20 followers join late and catch up",
        message_bytes=16 * KIB, pace=steady(100, 6), streamers=20, late=15,
        limits={"latency_p99_ms": 500, "first_byte_p99_ms": 1000},
    ),
    Profile(
        "mixed-readers", "16 KiB 100 times a second; 5 of 20 followers read at most 64 KiB/s",
        message_bytes=16 * KIB, pace=steady(100, 6), streamers=20, slow=5,
        slow_bytes_per_s=64 * KIB, limits={"latency_p99_ms": 500},
    ),
    Profile(
        "storm", "30 jobs a second started and stopped, beside 100 lines a second to 5 followers",
        pace=steady(100, 5), streamers=5, storm=Storm(30, 5),
        limits={"start_p99_ms": 1000, "stop_p99_ms": 3000, "latency_p99_ms": 500},
    ),
    Profile(
        "reconnect", "16 KiB 100 times a second, to 10 followers that reconnect after every 1 MiB",
        message_bytes=16 * KIB, pace=steady(100, 5), streamers=10, cut_every_bytes=MIB,
        limits={"latency_p99_ms": 1000},
    ),
)  # fmt: skip


def named(names: tuple[str, ...], own: tuple[Profile, ...] = ()) -> tuple[Profile, ...]:
    """Return the profiles of these names, or all; `own` ones take precedence over ours.

    Raises:
        BrokenError: a profile does not exist; lists those that do.
    """
    known = {profile.name: profile for profile in (*PROFILES, *own)}
    chosen = names or tuple(profile.name for profile in (own or PROFILES))
    for name in chosen:
        if name not in known:
            raise BrokenError(f"unknown profile {name!r}; known are {', '.join(known)}")
    return tuple(known[name] for name in chosen)


_PLAIN: Final[Mapping[str, type]] = {
    "about": str, "message_bytes": int, "streamers": int, "replay": bool, "late": int, "slow": int,
    "slow_bytes_per_s": float, "cut_every_bytes": int,
}  # fmt: skip
_PACING: Final[tuple[str, ...]] = ("rate_per_s", "duration_s", "burst", "every_s", "flood_messages")
_TABLES: Final = ("floor", "limits", "storm")


def load_profiles(path: Path) -> tuple[Profile, ...]:
    """Read profiles from a TOML file, one table each.

    Raises:
        BrokenError: it cannot be read, or is not valid; names the place and the fault.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenError(f"profiles in {path}: {error.strerror}") from error
    # Not only its own error: it lets through those of integers with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise BrokenError(f"profiles in {path}: {error}") from error
    if not tables:
        raise BrokenError(f"profiles in {path}: the file has no table [NAME]")
    try:
        return tuple(_profile(name, table) for name, table in tables.items())
    except BrokenError as error:
        raise BrokenError(f"profiles in {path}: {error}") from error


def _profile(name: str, values: object) -> Profile:
    place = f"[{name}]"
    table = _table(place, values, (*_PLAIN, *_PACING, *_TABLES))
    try:
        plain = {key: _value(key, value) for key, value in table.items() if key in _PLAIN}
        pacing = {key: accept_number(key, table[key]) for key in _PACING if key in table}
        limits = _table("limits", table.get("limits", {}), LIMITS)
        storm = _made("storm", Storm, table["storm"]) if "storm" in table else None
        return Profile(
            name,
            plain.pop("about", "a profile of your own"),
            pace=_pace(pacing),
            floor=_made("floor", Floor, table.get("floor", {})),
            storm=storm,
            limits={key: accept_limit(key, value) for key, value in limits.items()},
            **plain,
        )
    except BrokenError as error:
        raise BrokenError(f"{place}: {error}") from error


def _table(place: str, values: object, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise BrokenError(f"{place} is {_shown(values)}; it must be a table")
    for key in values:
        if key not in known:
            raise BrokenError(f"{place} has {_shown(key)}; known are {', '.join(known)}")
    return values


def _value(key: str, value: object) -> Any:  # noqa: ANN401 - as it is in the file
    if key in NUMBERS:
        return accept_number(key, value)
    kind = _PLAIN[key]
    if not isinstance(value, kind):
        raise BrokenError(f"{key} is {_shown(value)}; it must be of type {kind.__name__}")
    return value


def _made[Made](key: str, kind: type[Made], values: object) -> Made:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    table = _table(key, values, [each.name for each in fields])
    for each in fields:
        if each.default is dataclasses.MISSING and each.name not in table:
            raise BrokenError(f"{key} has no {each.name}")
    return kind(**{name: accept_number(f"{key}.{name}", value) for name, value in table.items()})


def _pace(pacing: Mapping[str, Any]) -> Pace | None:
    match sorted(pacing):
        case []:
            return None
        case ["flood_messages"]:
            return flood(pacing["flood_messages"])
        case ["duration_s", "rate_per_s"]:
            return steady(pacing["rate_per_s"], pacing["duration_s"])
        case ["burst", "duration_s", "every_s"]:
            return bursts(pacing["burst"], pacing["every_s"], pacing["duration_s"])
        case other:
            raise BrokenError(
                f"it has {', '.join(other)}; a pace is rate_per_s and duration_s, or burst, "
                "every_s and duration_s, or flood_messages"
            )
