"""The loads: each is one frozen value in a table, or one table in a TOML file of the user's.

A profile has the requested load (`pace`, `streamers`, ...), the conditions for trusting the run
(`floor`: else it is BROKEN), and what a server must keep (`limits`: else it FAILs).
A new profile is one entry in `PROFILES`, which run by default, in `MORE`, which run by name, or one
table in a file, which `profile_file` reads:

    [my-lines]
    about = "a thousand short lines a second"
    streamers = 50
    message_bytes = 100
    rate_per_s = 1000
    duration_s = 5
    limits = { latency_p99_ms = 50 }
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from harness.record.number import Number
from harness.record.verdict import BrokenError
from loadtests.emitter import HEAD_BYTES
from loadtests.figures import LIMITS, figure_named
from loadtests.pacer import Pace, bursts, flood, steady

MESSAGE_MIN_BYTES: Final = HEAD_BYTES + 2
STREAMERS_MAX: Final = 6000
MESSAGES_MAX: Final = 2_000_000
DURATION_MAX_S: Final = 3600.0
KIB: Final = 1024
MIB: Final = 1024 * 1024
# A profile's name is part of the names of its records.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RATE_MAX_PER_S: Final = 1e6
_DURATION_S: Final = Number(0.001, DURATION_MAX_S)
_GIVE_UP_S: Final = Number(0, DURATION_MAX_S)
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
    "give_up_s": _GIVE_UP_S,
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
    "storm.starts_per_s": Number(0, _RATE_MAX_PER_S),
    "storm.duration_s": _DURATION_S,
    "storm.callers": Number(1, 1000, whole=True),
}
_OWN_NUMBERS: Final = (
    "message_bytes", "streamers", "late", "slow", "cut_every_bytes", "give_up_s"
)  # fmt: skip
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
        raise BrokenError(f"{name} is {shown(value)}; it must be {error}") from None


def shown(value: object) -> str:
    """Return a user's value for a message: one line, bounded."""
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
    """Jobs that are started and stopped at planned instants, with or without streams beside.

    Without a rate (`starts_per_s` is 0) each caller starts `true`, which ends by itself, again as
    soon as its last start has returned: that measures the highest rate of starts.
    """

    starts_per_s: float
    duration_s: float
    callers: int = 32

    @property
    def is_closed(self) -> bool:
        """Whether the answers set the pace."""
        return self.starts_per_s == 0


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
        give_up_s: the deadline of each stream; 0: one that a slow server keeps, too.
        beside_plain: whether the same load is also run on plain grpcio (`plain_server`), so that
            its figures are also shares of that.
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
    give_up_s: float = 0.0
    beside_plain: bool = False
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
                raise BrokenError(f"profile {shown(self.name)}: {what}")
        try:
            for name in _OWN_NUMBERS:
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
        return self.is_timed or (self.storm is not None and not self.storm.is_closed)

    @property
    def is_alike(self) -> bool:
        """Whether all streamers have the same bytes to receive from the load's begin on."""
        return self.replay or (self.pace is not None and self.pace.is_flood)

    @property
    def size_bytes(self) -> int:
        """The bytes that the job writes, its first message included."""
        return (self.pace.count + 1) * self.message_bytes if self.pace else 0


# The machine cannot carry the rate that is requested: the rate that it carries is the figure.
_ANY_RATE: Final = Floor(
    rate_share=0.0, generator_lag_p99_ms=1000, writer_lag_p99_ms=1000, busy_share=1.0, lag_share=1e6
)

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
        message_bytes=64 * KIB, pace=flood(6144), beside_plain=True, limits={"rate_mb_per_s": 20},
    ),
    Profile(
        # A single reader of the generator's is the bottleneck as often as the server is.
        "replay", "an ended job's 192 MiB, to 2 readers at once",
        message_bytes=64 * KIB, pace=flood(3072), streamers=2, replay=True, beside_plain=True,
        limits={"rate_mb_per_s": 20},
    ),
    Profile(
        "crowd-replay", "an ended job's 16 MiB, to 50 readers at once",
        message_bytes=64 * KIB, pace=flood(256), streamers=50, replay=True, beside_plain=True,
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


# Run by name only: they take long, or want the whole machine.
MORE: Final = (
    Profile(
        "lines", "a line every 10 ms, to 100 followers: latency, and the cost of a message",
        pace=steady(100, 6), streamers=100, beside_plain=True, floor=Floor(busy_share=1.0),
        limits={"latency_p50_ms": 50, "latency_p99_ms": 200},
    ),
    Profile(
        "live", "1 GiB as fast as the server takes it, in writes of 64 KiB, to 1 follower",
        message_bytes=64 * KIB, pace=flood(16_384), beside_plain=True,
        limits={"rate_mb_per_s": 20},
    ),
    Profile(
        "live-small", "1 GiB as fast as the server takes it, in writes of 8 KiB as of `yes`, to 1",
        message_bytes=8 * KIB, pace=flood(131_072), beside_plain=True,
        limits={"rate_mb_per_s": 20},
    ),
    Profile(
        "replay-large", "an ended job's 1 GiB, to 1 reader",
        message_bytes=64 * KIB, pace=flood(16_384), replay=True, beside_plain=True,
        limits={"rate_mb_per_s": 20},
    ),
    Profile(
        "gusts", "1 MiB at once every 10 ms, 64 MiB in all, to 10 followers",
        message_bytes=64 * KIB, pace=bursts(16, 0.01, 0.64), streamers=10, beside_plain=True,
        floor=_ANY_RATE, limits={"rate_mb_per_s": 20},
    ),
    Profile(
        "crowd", "64 MiB as fast as the server takes it, to 100 followers",
        message_bytes=64 * KIB, pace=flood(1024), streamers=100, beside_plain=True,
        limits={"rate_mb_per_s": 20, "slowest_share": 0.5},
    ),
    Profile(
        "stampede", "1000 readers of 8 MiB connect at once while the job floods",
        message_bytes=64 * KIB, pace=flood(128), streamers=1000, late=1000, give_up_s=60,
        limits={"first_byte_max_ms": 5000, "slowest_share": 0.1},
    ),
    Profile(
        "starts", "`true` is started again and again, by 1 caller",
        storm=Storm(0, 4, 1), beside_plain=True, limits={"start_p50_ms": 20},
    ),
    Profile(
        "starts-8", "`true` is started again and again, by 8 callers at once",
        storm=Storm(0, 4, 8), beside_plain=True, limits={"starts_achieved_per_s": 50},
    ),
    Profile(
        "starts-long", "as starts-8, for 20 s: what thousands of ended jobs cost a start",
        storm=Storm(0, 20, 8), limits={"start_growth": 1.5},
    ),
    Profile(
        "idle-crowd", "a line every 5 s, to 1000 followers: until all have it, what waiting costs",
        pace=steady(0.2, 15), streamers=1000,
        limits={"latency_max_ms": 2000, "server_cpu_median_share": 0.1},
    ),
)  # fmt: skip


def named(names: tuple[str, ...], own: tuple[Profile, ...] = ()) -> tuple[Profile, ...]:
    """Return the profiles of these names, or the default ones; `own` ones come before ours.

    Raises:
        BrokenError: a profile does not exist; lists those that do.
    """
    known = {profile.name: profile for profile in (*PROFILES, *MORE, *own)}
    chosen = names or tuple(profile.name for profile in (own or PROFILES))
    for name in chosen:
        if name not in known:
            raise BrokenError(f"unknown profile {name!r}; known are {', '.join(known)}")
    return tuple(known[name] for name in chosen)
