"""Figures as a fold over a recorded load: the same files give the same figures, now or in a year.

Percentiles are of the values themselves, never interpolated and never of averages. A percentile is
left out when there are too few values for one beyond it. Latency counts from the planned instant
(`latency_...`); from the instant of the write it is `observed_...`, which hides what a stalled
writer would have sent, and stands beside it to show by how much.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.record.verdict import BrokenError
from loadtests.emitter import MONOTONIC
from loadtests.record import CALL_COLUMNS, LOAD_FILE, MESSAGE_COLUMNS, SLOW, Load, read_json

type Numbers = npt.NDArray[np.int64]

PERCENTILES: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9), ("max", 100.0))
NUMBER, PLANNED, BEGUN, READY, RECEIVED = range(5)
BUCKETS: Final = 60

# Every figure: its name, its unit, what it says. A new figure is a row here and a line in a fold.
FIGURES: Final[Mapping[str, tuple[str, str]]] = {
    "latency_p50_ms": ("ms", "latency of a message from its planned instant, median"),
    "latency_p90_ms": ("ms", "latency of a message from its planned instant, 90th percentile"),
    "latency_p99_ms": ("ms", "latency of a message from its planned instant, 99th percentile"),
    "latency_p999_ms": ("ms", "latency of a message from its planned instant, 99.9th percentile"),
    "latency_max_ms": ("ms", "latency of a message from its planned instant, largest"),
    "observed_p50_ms": ("ms", "latency of a message from its write, median"),
    "observed_p90_ms": ("ms", "latency of a message from its write, 90th percentile"),
    "observed_p99_ms": ("ms", "latency of a message from its write, 99th percentile"),
    "observed_p999_ms": ("ms", "latency of a message from its write, 99.9th percentile"),
    "observed_max_ms": ("ms", "latency of a message from its write, largest"),
    "rate_mb_per_s": ("MB/s", "received by all streamers together"),
    "asked_per_s": ("1/s", "messages a second that were asked of the writer"),
    "achieved_per_s": ("1/s", "messages a second that it wrote"),
    "received_messages": ("", "messages received by all streamers together"),
    "checked_bytes": ("bytes", "bytes that were compared and found right"),
    "missed_bytes": ("bytes", "bytes that retention dropped, as the server said"),
    "first_byte_p50_ms": ("ms", "first byte of a late joiner, from its planned begin, median"),
    "first_byte_p99_ms": ("ms", "first byte of a late joiner, from its plan, 99th percentile"),
    "fairness": ("", "Jain's index of the streamers' rates: 1 is equal, 1/n is one has it all"),
    "worst_stream_p99_ms": ("ms", "99th percentile of the streamer that has it worst"),
    "reconnections_least": ("", "how often the streamer came back that did so least"),
    "starts_asked_per_s": ("1/s", "starts of jobs a second that were asked for"),
    "starts_achieved_per_s": ("1/s", "starts of jobs a second that were made"),
    "start_p50_ms": ("ms", "start of a job, from its planned instant, median"),
    "start_p99_ms": ("ms", "start of a job, from its planned instant, 99th percentile"),
    "stop_p50_ms": ("ms", "stop of a job, until its tree has ended, median"),
    "stop_p99_ms": ("ms", "stop of a job, until its tree has ended, 99th percentile"),
    "server_cpu_s": ("s", "processor time of the server"),
    "server_cpu_share": ("cores", "processor time of the server, per second"),
    "server_cpu_s_per_gb": ("s/GB", "processor time of the server, per 10^9 bytes received"),
    "server_rss_peak_bytes": ("bytes", "the server's resident memory, largest"),
    "log_memory_peak_bytes": ("bytes", "memory of its memfds, largest"),
    "memory_per_streamer_bytes": ("bytes", "growth of its resident memory for each streamer"),
    "server_threads_peak": ("", "its threads, most"),
    "server_fds_peak": ("", "its descriptors, most"),
    "generator_lag_p99_ms": ("ms", "how late the readers' processes woke, 99th percentile"),
    "generator_lag_max_ms": ("ms", "how late the readers' processes woke, largest"),
    "generator_cpu_share": ("cores", "processor time of the busiest process of the generator"),
    "writer_lag_p99_ms": ("ms", "how late the job wrote through no fault of the server's"),
    "writer_blocked_share": ("", "share of its time that the writer waited for the server"),
    "machine_busy_share": ("", "share of all processors that was busy"),
    "machine_steal_share": ("cores", "processor time that the hypervisor gave to others"),
    "others_cpu_share": ("cores", "processor time of neither server, jobs nor generator"),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A load, and its instants: `rows` with the streams they belong to."""

    load: Load
    rows: Numbers
    row_stream: Numbers
    arrivals: Numbers
    calls: Numbers
    hiccups_ns: Numbers

    @property
    def offset_ns(self) -> int:
        """What to take from a receipt's instant before a writer's is compared with it.

        Two machines' clocks differ by nobody knows what: it is told by the fastest message, whose
        own latency is in it. 0 on one machine.
        """
        if self.load.clock == MONOTONIC or not len(self.rows):
            return 0
        return int((self.rows[:, RECEIVED] - self.rows[:, BEGUN]).min())

    def timed_rows(self) -> tuple[Numbers, Numbers]:
        """Return the rows whose latency means something, and their streams.

        Not those of slow readers, whose latency is their own, nor what was due before a streamer
        came: its age on arrival is no latency.
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

        Between two machines, whose clocks differ by nobody knows what, they count from the fastest
        message: what is left is what it varies by.
        """
        rows, _ = self.timed_rows()
        found: Numbers = rows[:, RECEIVED] - rows[:, since] - self.offset_ns
        return found

    def written(self) -> Numbers:
        """Return a row for each message that was written, as one streamer or another saw it."""
        rows = self.rows[self.rows[:, NUMBER] > 0]
        _, first = np.unique(rows[:, NUMBER], return_index=True)
        found: Numbers = rows[first]
        return found


def read_load(directory: Path) -> Recorded:
    """Read a load that `generator` recorded.

    Raises:
        BrokenError: it is not there, or no load.
    """
    try:
        load = read_json((directory / LOAD_FILE).read_text())
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


def fold(recorded: Recorded) -> dict[str, float]:
    """Return a load's figures, in the order of `FIGURES`; what it cannot tell is left out."""
    found = {
        **dict(_latency("latency", recorded.latencies_ns(PLANNED))),
        **dict(_latency("observed", recorded.latencies_ns(BEGUN))),
        **dict(_streams(recorded)),
        **dict(_writer(recorded)),
        **dict(_calls(recorded)),
        **dict(_generator(recorded)),
        **dict(_machine(recorded.load)),
        **dict(_server(recorded)),
    }
    return {name: round(found[name], 6) for name in FIGURES if name in found}


def percentile(values: Numbers, percent: float) -> float:
    """Return the smallest value that so many percent do not exceed."""
    # In thousandths of a percent and with integers: 99.9 % of 1000 are 999 and not a little more.
    rank = -(-len(values) * round(percent * 1000) // 100_000)
    at = max(0, rank - 1)
    return float(np.partition(values, at)[at])


def _latency(name: str, values_ns: Numbers) -> Iterator[tuple[str, float]]:
    for word, percent in PERCENTILES:
        # At least one value lies beyond it; the largest needs none.
        if len(values_ns) * (100 - percent) >= 100 or (percent == 100 and len(values_ns)):  # noqa: PLR2004 - percent
            yield f"{name}_{word}_ms", percentile(values_ns, percent) / 1e6


def _streams(recorded: Recorded) -> Iterator[tuple[str, float]]:
    load = recorded.load
    yield "checked_bytes", sum(end.checked_bytes for end in load.streams)
    yield "missed_bytes", sum(end.missed_bytes for end in load.streams)
    yield "received_messages", len(recorded.rows)
    if (window_s := _window_s(recorded)) > 0:
        yield "rate_mb_per_s", _received_bytes(recorded) / 1e6 / window_s
    late = [end for end in load.streams if end.kind == "late" and end.first_ns]
    if late:
        # As for messages: who came late himself has waited since he was to come. Older records
        # do not tell since when that was.
        waits_ns = np.array([end.first_ns - (end.due_ns or end.began_ns) for end in late], np.int64)
        yield "first_byte_p50_ms", percentile(waits_ns, 50) / 1e6
        yield "first_byte_p99_ms", percentile(waits_ns, 99) / 1e6
    cut = [end.connections - 1 for end in load.streams if end.kind != SLOW]
    if load.profile.cut_every_bytes and cut:
        yield "reconnections_least", min(cut)
    rates = _rates(load)
    if len(rates) > 1:
        yield "fairness", float(rates.sum() ** 2 / (len(rates) * (rates**2).sum()))
    worst = [p99 for _, p99 in stream_p99_ms(recorded)]
    if worst:
        yield "worst_stream_p99_ms", max(worst)


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


def _rates(load: Load) -> npt.NDArray[np.float64]:
    """Return the mean rates of the streamers that had the same to receive in the same time."""
    alike = [end for end in load.streams if end.kind != SLOW and end.last_ns > load.go_ns]
    if not load.profile.replay:
        alike = [end for end in alike if end.kind == "early"]
    return np.array(
        [end.checked_bytes / max(1, end.last_ns - load.go_ns) for end in alike], np.float64
    )


def _received_bytes(recorded: Recorded) -> int:
    arrivals = recorded.arrivals
    return int(arrivals[arrivals[:, 0] >= recorded.load.go_ns, 1].sum())


def _window_s(recorded: Recorded) -> float:
    """Return the seconds from the load's begin to the last byte of a reader that was not slow."""
    ends = [end.last_ns for end in recorded.load.streams if end.kind != SLOW]
    return max(0, max(ends, default=0) - recorded.load.go_ns) / 1e9


def _writer(recorded: Recorded) -> Iterator[tuple[str, float]]:
    pace = recorded.load.profile.pace
    rows = recorded.written()
    if pace is None or recorded.load.profile.replay or len(rows) < 2:  # noqa: PLR2004 - no span
        return
    span_ns = int(rows[-1, BEGUN] - rows[0, PLANNED])
    # From a write's begin until the next could begin: what the pipe, so the server, made it wait.
    waited_ns = (rows[1:, READY] - rows[:-1, BEGUN])[np.diff(rows[:, NUMBER]) == 1]
    yield "writer_blocked_share", float(waited_ns.sum()) / max(1, span_ns)
    if pace.is_flood:
        return
    yield "asked_per_s", pace.rate_per_s
    span_ns += pace.interval_ns
    yield "achieved_per_s", len(rows) * 1e9 / max(1, span_ns)
    lags_ns = rows[:, BEGUN] - np.maximum(rows[:, PLANNED], rows[:, READY])
    yield "writer_lag_p99_ms", percentile(lags_ns, 99) / 1e6


def _calls(recorded: Recorded) -> Iterator[tuple[str, float]]:
    calls, storm = recorded.calls, recorded.load.profile.storm
    if storm is not None:
        yield "starts_asked_per_s", storm.starts_per_s
        yield "starts_achieved_per_s", _starts_per_s(calls, 1e9 / storm.starts_per_s)
    started = calls[calls[:, 2] > 0]
    stopped = calls[calls[:, 3] > 0]
    for name, values_ns in (
        ("start", started[:, 2] - started[:, 0]),
        ("stop", stopped[:, 3] - stopped[:, 2]),
    ):
        if len(values_ns):
            yield f"{name}_p50_ms", percentile(values_ns, 50) / 1e6
            yield f"{name}_p99_ms", percentile(values_ns, 99) / 1e6


def _starts_per_s(calls: Numbers, interval_ns: float) -> float:
    """Return the rate of calls from the first plan to the last begin and the interval after it."""
    if not len(calls):
        return 0.0
    return float(len(calls) * 1e9 / (calls[:, 1].max() - calls[:, 0].min() + interval_ns))


def _generator(recorded: Recorded) -> Iterator[tuple[str, float]]:
    if len(recorded.hiccups_ns):
        yield "generator_lag_p99_ms", percentile(recorded.hiccups_ns, 99) / 1e6
        yield "generator_lag_max_ms", percentile(recorded.hiccups_ns, 100) / 1e6
    shares = [each.cpu_s / each.wall_s for each in recorded.load.processes if each.wall_s > 0]
    yield "generator_cpu_share", max(shares, default=0.0)


def _machine(load: Load) -> Iterator[tuple[str, float]]:
    first, last = load.samples[0], load.samples[-1]
    wall_s = (last.at_ns - first.at_ns) / 1e9
    if wall_s <= 0:
        return
    busy_s = last.machine_busy_s - first.machine_busy_s
    yield "machine_busy_share", busy_s / wall_s / load.cores
    yield "machine_steal_share", (last.machine_steal_s - first.machine_steal_s) / wall_s
    if load.local:
        ours_s = sum(each.cpu_s for each in load.processes)
        ours_s += last.cpu_s - first.cpu_s + last.jobs_cpu_s - first.jobs_cpu_s
        yield "others_cpu_share", max(0.0, busy_s - ours_s) / wall_s


def _server(recorded: Recorded) -> Iterator[tuple[str, float]]:
    load = recorded.load
    if not load.local:
        return
    first, last = load.samples[0], load.samples[-1]
    cpu_s = last.cpu_s - first.cpu_s
    yield "server_cpu_s", cpu_s
    yield "server_cpu_share", cpu_s / max(1e-9, (last.at_ns - first.at_ns) / 1e9)
    received_bytes = _received_bytes(recorded)
    if received_bytes > 10_000_000:  # noqa: PLR2004 - of less than 10 MB other costs are the larger
        yield "server_cpu_s_per_gb", cpu_s / received_bytes * 1e9
    rss_bytes = max(sample.rss_bytes for sample in load.samples)
    yield "server_rss_peak_bytes", rss_bytes
    yield "log_memory_peak_bytes", max(sample.memfd_bytes for sample in load.samples)
    grown_bytes = max(0, rss_bytes - load.before.rss_bytes)
    yield "memory_per_streamer_bytes", grown_bytes / load.profile.streamers
    yield "server_threads_peak", max(sample.threads for sample in load.samples)
    yield "server_fds_peak", max(sample.fds for sample in load.samples)
