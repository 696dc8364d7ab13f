"""The figures of a load: typed groups of numbers, each with its name, unit and meaning.

Code reads attributes (`figures.latency.p99_ms`). A name such as `latency_p99_ms` is for users and
files: a limit, `--figure`, `results.json`, the exports. `FIGURES` lists the names, `figure_named`
resolves one. A new figure is a field here and a line in `metrics.fold`. The table in docs/load.md
is made from `FIGURES`; a test compares the two.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

import msgspec

from harness.record.verdict import BrokenError

_META: Final = "figure"
_DIGITS: Final = 6


class Limit(StrEnum):
    """Which side of a figure a limit bounds."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure means. The value is in `Figures`; `of` reads it.

    Attributes:
        name: in `results.json`, the exports, limits and `--figure`.
        unit: empty for a count, a share or an index.
        about: the meaning.
        limit: which side a limit bounds; None: the figure cannot be limited.
        absent: why a load may lack the figure, and what to change.
        of_process: whether it needs access to the server's process.
        is_comparable: whether it is the server's, so that it has a share of another server's.
        place: the group and the attribute in `Figures`.
    """

    name: str
    unit: str
    about: str
    limit: Limit | None = None
    absent: str = "the load does not measure it"
    of_process: bool = False
    is_comparable: bool = True
    place: tuple[str, str] = ("", "")

    def of(self, figures: "Figures") -> float | None:
        """Return the value; None if the load lacks it."""
        group, attribute = self.place
        value: float | None = getattr(getattr(figures, group), attribute)
        return value


def _figure(name: str, unit: str, about: str, **more: Any) -> Any:  # noqa: ANN401 - a dataclass's default
    """Declare a figure. `{of}` and `{since}` are filled in by the group that it is in."""
    return field(default=None, metadata={_META: Figure(name, unit, about, **more)})


_PLANNED: Final = "latency needs planned messages: a profile with rate_per_s or burst"
_LATE: Final = "it needs streamers that join late: a profile with late, or a replay"
_STORM: Final = "it needs a storm in the profile"
_LATENCY: Final = "latency of a message from {since}, "


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFigures:
    """Percentiles of messages' latencies; those of slow readers and of a catch-up are left out."""

    p50_ms: float | None = _figure(
        "{of}_p50_ms", "ms", f"{_LATENCY}median", limit=Limit.AT_MOST, absent=_PLANNED
    )
    p90_ms: float | None = _figure("{of}_p90_ms", "ms", f"{_LATENCY}90th percentile")
    p99_ms: float | None = _figure(
        "{of}_p99_ms", "ms", f"{_LATENCY}99th percentile", limit=Limit.AT_MOST,
        absent="a p99 needs 100 planned messages: a profile with rate_per_s or burst",
    )  # fmt: skip
    p999_ms: float | None = _figure("{of}_p999_ms", "ms", f"{_LATENCY}99.9th percentile")
    max_ms: float | None = _figure(
        "{of}_max_ms", "ms", f"{_LATENCY}largest", limit=Limit.AT_MOST, absent=_PLANNED
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateFigures:
    """What was requested, written and received."""

    mb_per_s: float | None = _figure(
        "rate_mb_per_s", "MB/s", "received by all streamers together", limit=Limit.AT_LEAST,
        absent="nothing was received",
    )  # fmt: skip
    asked_per_s: float | None = _figure(
        "asked_per_s", "1/s", "messages per second that the profile requests"
    )
    achieved_per_s: float | None = _figure(
        "achieved_per_s", "1/s", "messages per second that the job wrote"
    )
    received_messages: int | None = _figure(
        "received_messages", "", "messages received by all streamers together"
    )
    checked_bytes: int | None = _figure(
        "checked_bytes", "bytes", "bytes that were compared and correct"
    )
    missed_bytes: int | None = _figure(
        "missed_bytes", "bytes", "bytes that retention dropped, as reported by the server"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFigures:
    """Differences between streamers."""

    first_byte_p50_ms: float | None = _figure(
        "first_byte_p50_ms", "ms", "first byte of a late joiner, from its planned join, median"
    )
    first_byte_p99_ms: float | None = _figure(
        "first_byte_p99_ms", "ms",
        "first byte of a late joiner, from its planned join, 99th percentile",
        limit=Limit.AT_MOST, absent=_LATE,
    )  # fmt: skip
    first_byte_max_ms: float | None = _figure(
        "first_byte_max_ms", "ms", "first byte of a late joiner, from its planned join, last",
        limit=Limit.AT_MOST, absent=_LATE,
    )  # fmt: skip
    completed: int | None = _figure(
        "streams_completed", "", "streams that ended with all of the job's bytes",
        limit=Limit.AT_LEAST, absent="it needs streamers",
    )  # fmt: skip
    fairness: float | None = _figure(
        "fairness", "", "Jain's index of the streamers' rates: 1: equal, 1/n: one receives all",
        limit=Limit.AT_LEAST,
        absent="it needs at least two streamers that have the same bytes to receive",
    )  # fmt: skip
    slowest_share: float | None = _figure(
        "slowest_share", "", "rate of the slowest streamer, as a share of the fastest one's",
        limit=Limit.AT_LEAST,
        absent="it needs at least two streamers that have the same bytes to receive",
    )  # fmt: skip
    worst_p99_ms: float | None = _figure(
        "worst_stream_p99_ms", "ms", "99th percentile of latency of the slowest streamer"
    )
    reconnections_least: int | None = _figure(
        "reconnections_least", "", "reconnections of the streamer with the fewest"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StormFigures:
    """Starts and stops of jobs."""

    asked_per_s: float | None = _figure(
        "starts_asked_per_s", "1/s", "starts of jobs per second that the profile requests"
    )
    achieved_per_s: float | None = _figure(
        "starts_achieved_per_s", "1/s", "starts of jobs per second that were made",
        limit=Limit.AT_LEAST, absent=_STORM,
    )  # fmt: skip
    start_p50_ms: float | None = _figure(
        "start_p50_ms", "ms", "start of a job, from its planned instant, median",
        limit=Limit.AT_MOST, absent=_STORM,
    )  # fmt: skip
    start_p99_ms: float | None = _figure(
        "start_p99_ms", "ms", "start of a job, from its planned instant, 99th percentile",
        limit=Limit.AT_MOST, absent=_STORM,
    )  # fmt: skip
    start_growth: float | None = _figure(
        "start_growth", "", "median start of the load's last fifth, relative to its first fifth's",
        limit=Limit.AT_MOST, absent="it needs a storm of at least 100 starts",
    )  # fmt: skip
    stop_p50_ms: float | None = _figure(
        "stop_p50_ms", "ms", "stop of a job, until its process tree has ended, median"
    )
    stop_p99_ms: float | None = _figure(
        "stop_p99_ms", "ms", "stop of a job, until its process tree has ended, 99th percentile",
        limit=Limit.AT_MOST, absent=_STORM,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """The server's process; all are None if it is not on this machine."""

    cpu_s: float | None = _figure("server_cpu_s", "s", "processor time of the server")
    cpu_share: float | None = _figure(
        "server_cpu_share", "cores", "processor time of the server, per second"
    )
    cpu_s_per_gb: float | None = _figure(
        "server_cpu_s_per_gb", "s/GB", "processor time of the server, per 10^9 bytes received",
        limit=Limit.AT_MOST, of_process=True,
        absent="it needs more than 10 MB of output, and the server's process",
    )  # fmt: skip
    cpu_us_per_message: float | None = _figure(
        "server_cpu_us_per_message", "us/message",
        "processor time of the server, per message that a streamer received",
        limit=Limit.AT_MOST, of_process=True, absent=_PLANNED,
    )  # fmt: skip
    cpu_ms_per_start: float | None = _figure(
        "server_cpu_ms_per_start", "ms/start", "processor time of the server, per start of a job",
        limit=Limit.AT_MOST, of_process=True, absent="it needs a storm without streams beside it",
    )  # fmt: skip
    cpu_median_share: float | None = _figure(
        "server_cpu_median_share", "cores",
        "processor time of the server, per second, median of the load's fifths of a second",
        limit=Limit.AT_MOST, of_process=True, absent="it needs a load of a second",
    )  # fmt: skip
    rss_peak_bytes: int | None = _figure(
        "server_rss_peak_bytes", "bytes", "largest resident memory of the server"
    )
    log_memory_peak_bytes: int | None = _figure(
        "log_memory_peak_bytes", "bytes", "largest memory of the server's memfds"
    )
    memory_per_streamer_bytes: float | None = _figure(
        "memory_per_streamer_bytes", "bytes", "growth of its resident memory per streamer",
        limit=Limit.AT_MOST, of_process=True,
    )  # fmt: skip
    threads_peak: int | None = _figure("server_threads_peak", "", "most threads of the server")
    fds_peak: int | None = _figure("server_fds_peak", "", "most open descriptors of the server")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFigures:
    """The generator's own processes."""

    lag_p99_ms: float | None = _figure(
        "generator_lag_p99_ms", "ms", "how late the readers' processes woke, 99th percentile"
    )
    lag_max_ms: float | None = _figure(
        "generator_lag_max_ms", "ms", "how late the readers' processes woke, largest"
    )
    cpu_share: float | None = _figure(
        "generator_cpu_share", "cores",
        "processor time per second of the generator's busiest process",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterFigures:
    """The writing job."""

    lag_p99_ms: float | None = _figure(
        "writer_lag_p99_ms", "ms",
        "how late the job wrote although the server did not block it, 99th percentile",
    )  # fmt: skip
    blocked_share: float | None = _figure(
        "writer_blocked_share", "", "share of the load's time that the job waited for the server"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFigures:
    """The machine that the generator runs on."""

    busy_share: float | None = _figure(
        "machine_busy_share", "", "share of all processors' time that was busy"
    )
    steal_share: float | None = _figure(
        "machine_steal_share", "cores", "processor time that the hypervisor gave to other machines"
    )
    others_share: float | None = _figure(
        "others_cpu_share", "cores",
        "processor time of processes other than server, jobs and generator",
    )  # fmt: skip


# What is filled into the declarations of a group that is there twice.
_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "latency": {"of": "latency", "since": "its planned instant"},
    "observed": {"of": "observed", "since": "its write"},
}
_NOT_THE_SERVERS: Final = ("generator", "writer", "machine")
# A latency from the write hides a blocked writer: nothing to judge a server by.
_NEVER_LIMITED: Final = "observed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All figures of a load; None where the load has no such figure."""

    latency: LatencyFigures = LatencyFigures()
    observed: LatencyFigures = LatencyFigures()
    rates: RateFigures = RateFigures()
    streams: StreamFigures = StreamFigures()
    storm: StormFigures = StormFigures()
    server: ServerFigures = ServerFigures()
    generator: GeneratorFigures = GeneratorFigures()
    writer: WriterFigures = WriterFigures()
    machine: MachineFigures = MachineFigures()

    @property
    def is_empty(self) -> bool:
        """Whether the load has no figure at all: it could not be run."""
        return self == Figures()

    def by_name(self) -> dict[str, float]:
        """Return the figures that the load has, by name, in the order of `FIGURES`."""
        found = ((name, figure.of(self)) for name, figure in FIGURES.items())
        return {name: value for name, value in found if value is not None}

    def rounded(self) -> "Figures":
        """Return the same figures to a millionth of their unit."""
        return self.from_names(
            {name: round(each, _DIGITS) for name, each in self.by_name().items()}
        )

    @classmethod
    def from_names(cls, values: Mapping[str, float]) -> Self:
        """Return figures by their names.

        Raises:
            ValueError: a value has the wrong type.
        """
        return msgspec.convert(grouped(values), type=cls)


def grouped(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return named values as `Figures` holds them, without names that no figure has any more."""
    groups: dict[str, dict[str, float]] = {}
    for name, figure in FIGURES.items():
        if name in values:
            group, attribute = figure.place
            groups.setdefault(group, {})[attribute] = values[name]
    return groups


def _described() -> Iterator[Figure]:
    for group in dataclasses.fields(Figures):
        for each in dataclasses.fields(getattr(Figures(), group.name)):
            figure: Figure = each.metadata[_META]
            words = _WORDS.get(group.name, {})
            yield dataclasses.replace(
                figure,
                is_comparable=group.name not in _NOT_THE_SERVERS,
                name=figure.name.format(**words),
                about=figure.about.format(**words),
                limit=None if group.name == _NEVER_LIMITED else figure.limit,
                place=(group.name, each.name),
            )


# Every figure by its name, in the order in which reports and exports show them.
FIGURES: Final[Mapping[str, Figure]] = {figure.name: figure for figure in _described()}
# Those that a profile or `--limit` may bound.
LIMITS: Final[Mapping[str, Figure]] = {
    name: figure for name, figure in FIGURES.items() if figure.limit is not None
}
# Each figure has its position in `FIGURES` as its value: what a function reads identifies it.
_NUMBERED: Final = Figures.from_names({name: at for at, name in enumerate(FIGURES)})

type Read = Callable[[Figures], float | None]


def described(read: Read) -> Figure:
    """Return the description of the figure that a function reads.

    `described(lambda figures: figures.latency.p99_ms)` is that of `latency_p99_ms`: no name to
    misspell, and the type checker knows the attribute.
    """
    at = read(_NUMBERED)
    if at is None:
        raise TypeError("the function does not return a figure")
    return tuple(FIGURES.values())[int(at)]


def figure_named(name: str, known: Mapping[str, Figure] = FIGURES) -> Figure:
    """Return the figure that a user names.

    Raises:
        BrokenError: it does not exist, or not among the `known` ones; lists these.
    """
    if name not in known:
        raise BrokenError(f"unknown figure {name!r}; known are {', '.join(known)}")
    return known[name]
