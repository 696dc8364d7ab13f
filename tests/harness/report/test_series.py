"""The data of the charts."""

import pytest

from harness.record.history import History, Outcome, Stream, UsageCurve
from harness.report.series import lags, throughput, tracks, usage_curves


def stream(
    label: str,
    timeline: list[tuple[float, int]],
    *,
    job: str = "job",
    started_s: float = 0.0,
    ended_s: float = 10.0,
    start_offset: int = 0,
) -> Stream:
    return Stream(
        label=label,
        job_id=job,
        outcome=Outcome.OK,
        code="OK",
        detail="",
        received_bytes=timeline[-1][1] if timeline else 0,
        sha256="",
        started_s=started_s,
        ended_s=ended_s,
        start_offset=start_offset,
        timeline=tuple(timeline),
    )


def steady(bytes_per_s: int, seconds: float) -> list[tuple[float, int]]:
    return [(n / 10, bytes_per_s * n // 10) for n in range(1, round(seconds * 10) + 1)]


def test_track_is_interpolated_linearly_between_its_points() -> None:
    [track] = tracks(History([stream("a", [(0.1, 100), (0.2, 200), (0.4, 600)])]))
    assert [track.received_at(at_s) for at_s in (-1, 0, 0.05, 0.1, 0.3, 0.4, 9)] == [
        0,
        0,
        pytest.approx(50),
        100,
        pytest.approx(400),
        600,
        600,
    ]


def test_track_is_level_during_a_pause() -> None:
    [track] = tracks(History([stream("a", [(0.1, 10), (0.2, 20), (0.3, 30), (5.3, 40)])]))
    assert track.received_at(5.1) == 30
    assert track.received_at(5.25) == pytest.approx(35)


def test_streams_are_tracks_only_if_one_has_enough_points() -> None:
    short = [stream("a", [(0.1, 5), (0.2, 10)]), stream("b", [])]
    assert tracks(History(short)) == []
    long = stream("c", steady(10, 1))
    assert [track.label for track in tracks(History([*short, long]))] == ["a", "c"]


def test_track_position_counts_from_the_start_offset() -> None:
    [track] = tracks(History([stream("a", steady(1000, 2), start_offset=5000)]))
    assert track.position_at(1.0) == pytest.approx(6000)


def test_resampling_keeps_few_points_and_spaces_many_evenly() -> None:
    [track] = tracks(History([stream("a", steady(1000, 10))]))
    assert track.resampled(200) == list(track.points)
    taken = track.resampled(3)
    assert [at_s for at_s, _ in taken] == [0.0, 5.0, 10.0]
    assert [received for _, received in taken] == [0.0, pytest.approx(5000), 10000.0]


def test_throughput_is_the_sum_of_all_streams_in_equal_buckets() -> None:
    history = History([stream("a", steady(1000, 10)), stream("b", steady(3000, 10), job="other")])
    buckets = throughput(tracks(history))
    assert len(buckets) == 50
    assert [rate for _, _, rate in buckets] == [pytest.approx(4000)] * 50
    assert [round(begin_s, 6) for begin_s, _, _ in buckets] == [n / 5 for n in range(50)]
    assert buckets[-1][1] == 10.0


def test_throughput_counts_every_byte_in_a_bounded_number_of_buckets() -> None:
    buckets = throughput(tracks(History([stream("a", [*steady(777, 3), (400.0, 5000)])])))
    assert len(buckets) == 100
    assert sum(rate * (end_s - begin_s) for begin_s, end_s, rate in buckets) == pytest.approx(5000)


def test_lag_is_the_distance_to_the_foremost_streamer_of_the_same_job() -> None:
    history = History(
        [
            stream("front", steady(1000, 10)),
            stream("middle", steady(900, 10)),
            stream("slow", steady(500, 10)),
            stream("of another job", steady(1, 10), job="other"),
        ]
    )
    found = lags(tracks(history))
    last = found[-1]
    assert len(found) == 200
    assert (last.at_s, last.median_bytes, last.slowest_bytes) == (10.0, 1000.0, 5000.0)
    assert last.slowest.label == "slow"
    assert found[0].slowest_bytes == 0


def test_lag_omits_streamers_before_their_begin_and_after_their_end() -> None:
    history = History(
        [
            stream("front", steady(1000, 10)),
            stream("left early", steady(500, 2), ended_s=2.0),
            stream("late", [(9.0 + at_s, 9000 + n) for at_s, n in steady(1000, 1)], started_s=8.95),
        ]
    )
    found = lags(tracks(history))

    def slowest_bytes_by(moment_s: float) -> float:
        return [lag.slowest_bytes for lag in found if lag.at_s <= moment_s][-1]

    assert slowest_bytes_by(2.0) == pytest.approx(1000, rel=0.05)
    assert slowest_bytes_by(5.0) == 0
    assert slowest_bytes_by(9.5) == pytest.approx(0, abs=1)


def test_lag_of_a_single_streamer_is_omitted() -> None:
    assert lags(tracks(History([stream("a", steady(10, 5))]))) == []
    assert throughput([]) == []


def test_usage_curves_without_samples_are_omitted() -> None:
    measured = UsageCurve("Memory", "bytes", 100.0, ((0.0, 1.0),))
    unmeasured = UsageCurve("Memory", "bytes", None, ())
    assert usage_curves(History([measured, unmeasured, measured])) == [measured, measured]
