"""Figures as a fold over a recorded load: the same files always give the same figures.

Percentiles are measured values, never interpolated and never averages. A percentile is left out if
no value lies beyond it. `Figures.latency` counts from the planned instant. `Figures.observed`
counts from the write and so hides what a blocked writer would have sent; both are shown, so that
the difference is visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.record.verdict import BrokenError
from loadtests.emitter import MONOTONIC
from loadtests.figures import (
    Figures,
    GeneratorFigures,
    LatencyFigures,
    MachineFigures,
    RateFigures,
    ServerFigures,
    StormFigures,
    StreamFigures,
    WriterFigures,
)
from loadtests.profiles import Storm
from loadtests.record import (
    CALL_COLUMNS,
    LATE,
    MESSAGE_COLUMNS,
    SLOW,
    Load,
    Sample,
    StreamEnd,
    load_record,
)

type Numbers = npt.NDArray[np.int64]

NUMBER, PLANNED, BEGUN, READY, RECEIVED = range(5)
BUCKETS: Final = 60
# Of less output the costs that no byte causes are the larger part.
_CPU_PER_GB_MIN_BYTES: Final = 10_000_000
_FIFTH_MIN: Final = 20
_PARTS_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class Recorded:
    """A load and its instants; `row_stream` has the number of each row's stream."""

    load: Load
    rows: Numbers
    row_stream: Numbers
    arrivals: Numbers
    calls: Numbers
    hiccups_ns: Numbers

    @property
    def offset_ns(self) -> int:
        """What to subtract from a receipt's instant before it is compared with a writer's.

        The difference between two machines' clocks is unknown. The fastest message estimates it;
        that message's own latency is part of the estimate. 0 on one machine.
        """
        if self.load.clock == MONOTONIC or not len(self.rows):
            return 0
        return int((self.rows[:, RECEIVED] - self.rows[:, BEGUN]).min())

    def timed_rows(self) -> tuple[Numbers, Numbers]:
        """Return the rows whose latency is the server's, and their streams.

        Left out are those of slow readers, which cause their latency themselves, and messages due
        before the streamer joined: their age on arrival is not a latency.
        """
        if not self.load.profile.is_timed or not len(self.rows):
            return self.rows[:0], self.row_stream[:0]
        count = max(end.number for end in self.load.streams) + 1
        began_ns = np.full(count, np.iinfo(np.int64).max)
        for end in self.load.streams:
            if end.kind != SLOW:
                began_ns[end.number] = end.began_ns
        planned_ns = self.rows[:, PLANNED] + self.offset_ns
        live = (planned_ns >= began_ns[self.row_stream]) & (self.rows[:, NUMBER] > 0)
        return self.rows[live], self.row_stream[live]

    def latencies_ns(self, since: int = PLANNED) -> Numbers:
        """Return the latencies since the planned instant, or since the write.

        Between two machines they count from the fastest message (see `offset_ns`): only the
        variation of latency is known, not its size.
        """
        rows, _ = self.timed_rows()
        found: Numbers = rows[:, RECEIVED] - rows[:, since] - self.offset_ns
        return found

    def written(self) -> Numbers:
        """Return one row for each message that was written, from any streamer."""
        rows = self.rows[self.rows[:, NUMBER] > 0]
        _, first = np.unique(rows[:, NUMBER], return_index=True)
        found: Numbers = rows[first]
        return found


def read_load(directory: Path) -> Recorded:
    """Read a load that `generator` recorded.

    Raises:
        BrokenError: it does not exist, or is not a load.
    """
    load = load_record(directory)
    try:
        files = [np.load(directory / process.file) for process in load.processes]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"no load in {directory}: {error}") from error

    def joined(name: str, width: int) -> Numbers:
        shape = (0, width) if width else (0,)
        found = [np.zeros(shape, np.int64), *(file[name] for file in files if name in file)]
        return np.concatenate(found).astype(np.int64, copy=False)

    try:
        return Recorded(
            load,
            joined("rows", len(MESSAGE_COLUMNS)),
            joined("row_stream", 0),
            joined("arrivals", 2),
            joined("calls", len(CALL_COLUMNS)),
            joined("hiccups", 0),
        )
    finally:
        for file in files:
            file.close()


def fold(recorded: Recorded) -> Figures:
    """Return a load's figures, rounded to a millionth of their unit."""
    return Figures(
        latency=_latency(recorded.latencies_ns(PLANNED)),
        observed=_latency(recorded.latencies_ns(BEGUN)),
        rates=_rates(recorded),
        streams=_streams(recorded),
        storm=_storm(recorded),
        server=_server(recorded),
        generator=_generator(recorded),
        writer=_writer(recorded),
        machine=_machine(recorded.load),
    ).rounded()


def percentile(values: Numbers, percent: float) -> float:
    """Return the smallest value that at least this percentage of the values does not exceed."""
    # In thousandths of a percent and with integers: 99.9 % of 1000 are 999 and not a little more.
    rank = -(-len(values) * round(percent * 1000) // 100_000)
    at = max(0, rank - 1)
    return float(np.partition(values, at)[at])


def _percentile_ms(values_ns: Numbers, percent: float) -> float | None:
    """Return a percentile in ms; None without a value."""
    return percentile(values_ns, percent) / 1e6 if len(values_ns) else None


def _latency(values_ns: Numbers) -> LatencyFigures:
    def known_ms(percent: float) -> float | None:
        beyond = len(values_ns) * (100 - percent) / 100
        return _percentile_ms(values_ns, percent) if round(beyond, 6) >= 1 else None

    return LatencyFigures(
        p50_ms=known_ms(50),
        p90_ms=known_ms(90),
        p99_ms=known_ms(99),
        p999_ms=known_ms(99.9),
        max_ms=_percentile_ms(values_ns, 100),
    )


def _rates(recorded: Recorded) -> RateFigures:
    load, window_s = recorded.load, _window_s(recorded)
    pace, rows = load.profile.pace, recorded.written()
    asked_per_s = achieved_per_s = None
    if pace is not None and load.profile.is_timed and len(rows) > 1:
        asked_per_s = pace.rate_per_s
        span_ns = int(rows[-1, BEGUN] - rows[0, PLANNED]) + pace.interval_ns
        achieved_per_s = len(rows) * 1e9 / max(1, span_ns)
    return RateFigures(
        mb_per_s=_received_bytes(recorded) / 1e6 / window_s if window_s > 0 else None,
        asked_per_s=asked_per_s,
        achieved_per_s=achieved_per_s,
        received_messages=len(recorded.rows),
        checked_bytes=sum(end.checked_bytes for end in load.streams),
        missed_bytes=sum(end.missed_bytes for end in load.streams),
    )


def _streams(recorded: Recorded) -> StreamFigures:
    load = recorded.load
    late = [end for end in load.streams if end.kind == LATE]
    # Waiting counts from the planned join. Older records lack it; for them it counts from the join.
    waits_ns = np.array(
        [end.first_ns - (end.due_ns or end.began_ns) for end in late if end.first_ns]
        # Of a stream that got nothing it is only known that it waited until it gave up.
        + [round(load.profile.give_up_s * 1e9) for end in late if not end.first_ns],
        np.int64,
    )
    returns = [end.connections - 1 for end in load.streams if end.kind != SLOW]
    rates = _mean_rates(load)
    comparable = len(rates) > 1 and rates.max() > 0
    return StreamFigures(
        first_byte_p50_ms=_percentile_ms(waits_ns, 50),
        first_byte_p99_ms=_percentile_ms(waits_ns, 99),
        first_byte_max_ms=_percentile_ms(waits_ns, 100),
        completed=sum(map(partial(_is_whole, load), load.streams)) if load.streams else None,
        fairness=float(rates.sum() ** 2 / (len(rates) * (rates**2).sum())) if comparable else None,
        slowest_share=float(rates.min() / rates.max()) if comparable else None,
        worst_p99_ms=max((p99_ms for _, p99_ms in stream_p99_ms(recorded)), default=None),
        reconnections_least=min(returns, default=None) if load.profile.cut_every_bytes else None,
    )


def _is_whole(load: Load, end: StreamEnd) -> bool:
    return end.code == "OK" and end.checked_bytes + end.missed_bytes == load.profile.size_bytes


def stream_p99_ms(recorded: Recorded) -> list[tuple[int, float]]:
    """Return each streamer's number and its 99th percentile of latency, in ms."""
    rows, streams = recorded.timed_rows()
    latencies_ns = recorded.latencies_ns()
    order = np.argsort(streams, kind="stable")
    numbers, first = np.unique(streams[order], return_index=True)
    groups = np.split(latencies_ns[order], first[1:]) if len(rows) else []
    return [
        (int(number), percentile(group, 99) / 1e6)
        for number, group in zip(numbers, groups, strict=True)
    ]


def _mean_rates(load: Load) -> npt.NDArray[np.float64]:
    """Return the mean rates of the streamers that had the same bytes to receive meanwhile."""
    alike = [end for end in load.streams if end.kind != SLOW]
    if not load.profile.is_alike:
        alike = [end for end in alike if end.kind == "early" and end.last_ns > load.go_ns]
    return np.array(
        [end.checked_bytes / max(1, end.last_ns - load.go_ns) for end in alike], np.float64
    )


def _received_bytes(recorded: Recorded) -> int:
    arrivals = recorded.arrivals
    return int(arrivals[arrivals[:, 0] >= recorded.load.go_ns, 1].sum())


def _window_s(recorded: Recorded) -> float:
    """Return the seconds from the load's begin to the last byte of a reader that is not slow."""
    ends = [end.last_ns for end in recorded.load.streams if end.kind != SLOW]
    return max(0, max(ends, default=0) - recorded.load.go_ns) / 1e9


def _writer(recorded: Recorded) -> WriterFigures:
    pace, rows = recorded.load.profile.pace, recorded.written()
    if pace is None or recorded.load.profile.replay or len(rows) < 2:  # noqa: PLR2004 - no span
        return WriterFigures()
    span_ns = int(rows[-1, BEGUN] - rows[0, PLANNED])
    # From a write's begin until the next could begin: the pipe, so the server, made it wait.
    waited_ns = (rows[1:, READY] - rows[:-1, BEGUN])[np.diff(rows[:, NUMBER]) == 1]
    lags_ns = rows[:, BEGUN] - np.maximum(rows[:, PLANNED], rows[:, READY])
    return WriterFigures(
        lag_p99_ms=None if pace.is_flood else _percentile_ms(lags_ns, 99),
        blocked_share=float(waited_ns.sum()) / max(1, span_ns),
    )


def _storm(recorded: Recorded) -> StormFigures:
    calls, storm = recorded.calls, recorded.load.profile.storm
    started = calls[calls[:, 2] > 0]
    stopped = calls[calls[:, 3] > 0]
    starts_ns, stops_ns = started[:, 2] - started[:, 0], stopped[:, 3] - stopped[:, 2]
    if storm is None:
        return StormFigures()
    return StormFigures(
        asked_per_s=None if storm.is_closed else storm.starts_per_s,
        achieved_per_s=_starts_per_s(calls, storm),
        start_p50_ms=_percentile_ms(starts_ns, 50),
        start_p99_ms=_percentile_ms(starts_ns, 99),
        start_growth=_growth(starts_ns[np.argsort(started[:, 0], kind="stable")]),
        stop_p50_ms=_percentile_ms(stops_ns, 50),
        stop_p99_ms=_percentile_ms(stops_ns, 99),
    )


def _starts_per_s(calls: Numbers, storm: Storm) -> float:
    """Return the rate of calls, to the end of the last planned one's interval, or to its answer."""
    if not len(calls):
        return 0.0
    begin_ns = int(calls[:, 0].min())
    if storm.is_closed:
        return len(calls) * 1e9 / max(1, int(calls[:, 2].max()) - begin_ns)
    return len(calls) * 1e9 / (int(calls[:, 1].max()) - begin_ns + 1e9 / storm.starts_per_s)


def _growth(starts_ns: Numbers) -> float | None:
    """Return the median of the last fifth, relative to that of the first; None for few values."""
    fifth = len(starts_ns) // 5
    if fifth < _FIFTH_MIN:
        return None
    return percentile(starts_ns[-fifth:], 50) / percentile(starts_ns[:fifth], 50)


def _cpu_median_share(samples: Sequence[Sample]) -> float | None:
    shares = sorted(
        (after.cpu_s - before.cpu_s) / max(1e-9, (after.at_ns - before.at_ns) / 1e9)
        for before, after in pairwise(samples)
    )
    return shares[len(shares) // 2] if len(shares) >= _PARTS_MIN else None


def _generator(recorded: Recorded) -> GeneratorFigures:
    shares = [each.cpu_s / each.wall_s for each in recorded.load.processes if each.wall_s > 0]
    return GeneratorFigures(
        lag_p99_ms=_percentile_ms(recorded.hiccups_ns, 99),
        lag_max_ms=_percentile_ms(recorded.hiccups_ns, 100),
        cpu_share=max(shares, default=0.0),
    )


def _machine(load: Load) -> MachineFigures:
    first, last = load.samples[0], load.samples[-1]
    wall_s = (last.at_ns - first.at_ns) / 1e9
    if wall_s <= 0:
        return MachineFigures()
    busy_s = last.machine_busy_s - first.machine_busy_s
    others_share = None
    if load.local:
        ours_s = sum(each.cpu_s for each in load.processes)
        ours_s += last.cpu_s - first.cpu_s + last.jobs_cpu_s - first.jobs_cpu_s
        others_share = max(0.0, busy_s - ours_s) / wall_s
    return MachineFigures(
        busy_share=busy_s / wall_s / load.cores,
        steal_share=(last.machine_steal_s - first.machine_steal_s) / wall_s,
        others_share=others_share,
    )


def _server(recorded: Recorded) -> ServerFigures:
    load = recorded.load
    if not load.local:
        return ServerFigures()
    first, last = load.samples[0], load.samples[-1]
    cpu_s = last.cpu_s - first.cpu_s
    received_bytes = _received_bytes(recorded)
    rss_bytes = max(sample.rss_bytes for sample in load.samples)
    grown_bytes = max(0, rss_bytes - load.before.rss_bytes)
    has_output = received_bytes > _CPU_PER_GB_MIN_BYTES
    messages = int((recorded.rows[:, NUMBER] > 0).sum())
    starts = int((recorded.calls[:, 2] > 0).sum())
    return ServerFigures(
        cpu_s=cpu_s,
        cpu_share=cpu_s / max(1e-9, (last.at_ns - first.at_ns) / 1e9),
        cpu_s_per_gb=cpu_s / received_bytes * 1e9 if has_output else None,
        cpu_us_per_message=cpu_s / messages * 1e6 if messages and load.profile.is_timed else None,
        cpu_ms_per_start=cpu_s / starts * 1e3 if starts and load.profile.pace is None else None,
        cpu_median_share=_cpu_median_share(load.samples),
        rss_peak_bytes=rss_bytes,
        log_memory_peak_bytes=max(sample.memfd_bytes for sample in load.samples),
        memory_per_streamer_bytes=grown_bytes / load.profile.streamers if load.streams else None,
        threads_peak=max(sample.threads for sample in load.samples),
        fds_peak=max(sample.fds for sample in load.samples),
    )
