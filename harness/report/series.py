"""The data of the charts: a history's streams and measurements as time series.

Pure functions of records. Times are seconds since the run began.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from harness.record.history import History, Stream, UsageCurve

# With fewer points a stream's begin and end are known, but not its course.
POINTS_MIN: Final = 3
BUCKETS_MAX: Final = 100
BUCKET_MIN_S: Final = 0.2  # two steps of a receiver's timeline
MOMENTS: Final = 200
# A receiver samples each message that arrives later than a step after the last sample. So between
# samples several steps apart nothing arrived until right before the later one.
_PAUSE_STEPS: Final = 3

type Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Track:
    """One streamer's progress: points of (seconds, bytes received by then)."""

    label: str
    job_id: str
    start_offset: int
    ended_s: float
    points: tuple[Point, ...]

    @property
    def begin_s(self) -> float:
        """The time of its begin."""
        return self.points[0][0]

    @property
    def last_s(self) -> float:
        """The time of its last byte."""
        return self.points[-1][0]

    def received_at(self, at_s: float) -> float:
        """Return the bytes received by a moment, interpolated linearly between two points."""
        after = bisect_right(self.points, at_s, key=lambda point: point[0])
        if after == 0:
            return 0.0
        if after == len(self.points):
            return self.points[-1][1]
        (left_s, left), (right_s, right) = self.points[after - 1], self.points[after]
        return left + (right - left) * (at_s - left_s) / (right_s - left_s)

    def position_at(self, at_s: float) -> float:
        """Return the offset in the job's output reached by a moment."""
        return self.start_offset + self.received_at(at_s)

    def resampled(self, points_max: int) -> list[Point]:
        """Return its points or, if they are more than `points_max`, that many evenly spaced."""
        if len(self.points) <= points_max:
            return list(self.points)
        times_s = _evenly(self.begin_s, self.last_s, points_max)
        return [(at_s, self.received_at(at_s)) for at_s in times_s]


@dataclass(frozen=True, slots=True)
class Lag:
    """How far streamers lag behind the foremost one of their job at a moment, in bytes."""

    at_s: float
    median_bytes: float
    slowest_bytes: float
    slowest: Track


def tracks(history: History) -> list[Track]:
    """Return the streams with a timeline; none if no timeline has POINTS_MIN points."""
    found = [_track(stream) for stream in history.streams() if stream.timeline]
    has_course = any(_has_course(stream) for stream in history.streams())
    return found if has_course else []


def _has_course(stream: Stream) -> bool:
    return len({at_s for at_s, _ in stream.timeline}) >= POINTS_MIN


def _track(stream: Stream) -> Track:
    points: list[Point] = [(min(stream.started_s, stream.timeline[0][0]), 0.0)]
    step_s = _step_s(stream.timeline)
    for at_s, received in sorted(stream.timeline):
        before_s, before = points[-1]
        if at_s - before_s > _PAUSE_STEPS * step_s:
            points.append((at_s - step_s, before))
        points.append((at_s, float(received)))
    return Track(stream.label, stream.job_id, stream.start_offset, stream.ended_s, tuple(points))


def _step_s(timeline: Sequence[tuple[float, int]]) -> float:
    # The last point is the end of the stream, at any distance from the previous one.
    gaps = [right - left for (left, _), (right, _) in pairwise(timeline[:-1])]
    return min((gap for gap in gaps if gap > 0), default=math.inf)


def _evenly(begin_s: float, end_s: float, number: int) -> list[float]:
    return [begin_s + (end_s - begin_s) * index / (number - 1) for index in range(number)]


def throughput(found: Sequence[Track]) -> list[tuple[float, float, float]]:
    """Return (begin in seconds, end in seconds, bytes per second of all streams) for each bucket.

    There are at most BUCKETS_MAX buckets of equal length, at least BUCKET_MIN_S if possible.
    """
    if not found:
        return []
    begin_s, end_s = min(each.begin_s for each in found), max(each.last_s for each in found)
    number = max(1, min(BUCKETS_MAX, int((end_s - begin_s) / BUCKET_MIN_S)))
    edges_s = _evenly(begin_s, end_s, number + 1)
    totals = [sum(track.received_at(at_s) for track in found) for at_s in edges_s]
    return [
        (left_s, right_s, (after - before) / (right_s - left_s))
        for (left_s, before), (right_s, after) in pairwise(zip(edges_s, totals, strict=True))
        if right_s > left_s
    ]


def lags(found: Sequence[Track]) -> list[Lag]:
    """Return, for evenly spaced moments, how far streamers lag behind the foremost of their job.

    Streamers count from their begin to their end; the foremost also after its end. Jobs with one
    streamer are omitted.
    """
    jobs: dict[str, list[Track]] = {}
    for track in found:
        jobs.setdefault(track.job_id, []).append(track)
    shared = [each for each in jobs.values() if len(each) > 1]
    if not shared:
        return []
    every = [track for job in shared for track in job]
    begin_s, end_s = min(each.begin_s for each in every), max(each.last_s for each in every)
    moments = (_behind(shared, at_s) for at_s in _evenly(begin_s, end_s, MOMENTS))
    return [lag for lag in moments if lag is not None]


def _behind(jobs: Sequence[Sequence[Track]], at_s: float) -> Lag | None:
    behind: list[tuple[float, Track]] = []
    for job in jobs:
        begun = [(track.position_at(at_s), track) for track in job if track.begin_s <= at_s]
        foremost = max((position for position, _ in begun), default=0.0)
        behind += [(foremost - reached, each) for reached, each in begun if at_s <= each.ended_s]
    if not behind:
        return None
    slowest_bytes, slowest = max(behind, key=lambda item: item[0])
    return Lag(at_s, median(each for each, _ in behind), slowest_bytes, slowest)


def usage_curves(history: History) -> list[UsageCurve]:
    """Return the usage curves that have samples."""
    return [curve for curve in history.all(UsageCurve) if curve.samples]
