"""The fold: records made by hand, with figures that are known in advance."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from harness.record.verdict import BrokenError, Finding, Verdict
from loadtests.emitter import MONOTONIC
from loadtests.figures import FIGURES, LIMITS, Figures
from loadtests.histogram import encoded, hgrm, histogram, merged
from loadtests.jobs import REALTIME
from loadtests.judge import Strictness, judge
from loadtests.metrics import Numbers, Recorded, fold, percentile, read_load
from loadtests.pacer import flood, steady
from loadtests.profiles import Floor, Profile, Storm
from loadtests.record import GeneratorProcess, Load, Sample, StreamEnd, save_load

MS = 1_000_000
COUNT = 1000
PROFILE = Profile(
    "made", "by hand", message_bytes=100, pace=steady(100, 10), streamers=2,
    limits={"latency_p99_ms": 1100},
)  # fmt: skip


def sample(at_ns: int, cpu_s: float, rss_bytes: int) -> Sample:
    return Sample(at_ns, cpu_s, 0.0, rss_bytes, 0, 10, 20, cpu_s, 0.0)


def end(number: int, **changes: object) -> StreamEnd:
    made = StreamEnd(number, "early", "OK", "", "", (COUNT + 1) * 100, 0, 1, 0, 1, 10_000 * MS)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def load(**changes: object) -> Load:
    made = Load(
        PROFILE, {}, MONOTONIC, True, 2, (), 2, 0, sample(0, 0, 1000),
        (sample(0, 1.0, 1000), sample(10_000 * MS, 2.0, 5000)),
        (GeneratorProcess("readers", "readers-0.npz", 0.5, 10.0, {}),), (end(0), end(1)), 0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def rows(latency_ms: Callable[[int], float], late_ms: Callable[[int], float]) -> Numbers:
    """Return rows of messages each 10 ms, begun so late, received after such a latency."""
    planned = np.arange(COUNT) * 10 * MS
    begun = planned + np.array([late_ms(n) * MS for n in range(COUNT)], np.int64)
    received = planned + np.array([latency_ms(n) * MS for n in range(COUNT)], np.int64)
    ready = np.concatenate([[0], begun[:-1]])
    return np.stack([np.arange(1, COUNT + 1), planned, begun, ready, received], axis=1)


def recorded(of: Load, table: Numbers) -> Recorded:
    both = np.concatenate([table, table])
    arrivals = np.stack([both[:, 4], np.full(len(both), 100)], axis=1)
    streams = np.repeat([0, 1], len(table))
    empty = np.zeros((0, 4), np.int64)
    return Recorded(of, both, streams, arrivals, empty, np.full(100, MS, np.int64))


def test_percentiles_are_measured_values() -> None:
    values = np.arange(1, 1001)
    assert [percentile(values, each) for each in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]


def test_latency_counts_from_the_plan_and_observed_from_the_write() -> None:
    # A stall of 2 s: what was due meanwhile is written, and received, at its end.
    def at_end(number: int) -> float:
        return max(0, 2000 - number * 10) if number < 200 else 0

    figures = fold(recorded(load(), rows(lambda n: at_end(n) + 1, at_end)))
    assert figures.latency.max_ms == 2001
    assert figures.latency.p90_ms == 1001
    assert figures.observed.max_ms == figures.observed.p99_ms == 1
    assert figures.rates.asked_per_s == 100


def test_percentile_without_a_value_beyond_it_is_absent() -> None:
    table = rows(lambda _: 1.0, lambda _: 0.0)[:400]
    figures = fold(recorded(load(), table))
    assert figures.latency.p99_ms is not None
    assert figures.latency.p999_ms is None


def test_slow_readers_and_messages_before_the_join_have_no_latency() -> None:
    late = load(streams=(end(0, kind="slow"), end(1, kind="late", began_ns=5_000 * MS)))
    table = rows(lambda n: 5000.0 - n * 10 if n < 500 else 2.0, lambda _: 0.0)
    figures = fold(recorded(late, table))
    assert figures.latency.max_ms == 2


def test_latency_between_two_clocks_counts_from_the_fastest_message() -> None:
    table = rows(lambda n: 70_000.0 + n % 7, lambda _: 0.0)
    figures = fold(recorded(load(clock=REALTIME), table))
    assert figures.latency.max_ms == 6


@pytest.mark.parametrize("ahead_ms", [-90_000, -2000, 0, 2000, 90_000])
def test_messages_due_before_the_join_are_left_out_between_two_clocks(ahead_ms: int) -> None:
    # The readers' clock is so far ahead of the writer's; one of them comes after 5 s.
    shift_ns = ahead_ms * MS
    came = (end(0, began_ns=shift_ns), end(1, kind="late", began_ns=shift_ns + 5000 * MS))
    table = rows(lambda n: ahead_ms + n % 7, lambda _: 0.0)
    found = recorded(load(clock=REALTIME, streams=came), table)
    assert len(found.latencies_ns()) == COUNT + COUNT // 2
    assert fold(found).latency.max_ms == 6


def test_late_joiner_wait_counts_from_planned_join() -> None:
    def first_byte_ms(**changes: int) -> float | None:
        late = end(1, kind="late", began_ns=5500 * MS, first_ns=5600 * MS, **changes)
        table = rows(lambda _: 1.0, lambda _: 0.0)
        return fold(recorded(load(streams=(end(0), late)), table)).streams.first_byte_p99_ms

    assert first_byte_ms(due_ns=5000 * MS) == 600
    assert first_byte_ms() == 100  # of a record that does not say when it was due


def test_starts_and_reconnections_are_counted() -> None:
    stormy = dataclasses.replace(PROFILE, storm=Storm(10, 10), cut_every_bytes=1000)
    of = load(profile=stormy, streams=(end(0, connections=4), end(1, connections=2)))
    planned = np.arange(100) * 100 * MS
    made = recorded(of, rows(lambda _: 1.0, lambda _: 0.0))

    def starts_per_s(begun: Numbers) -> float | None:
        calls = np.stack([planned, begun, begun + MS, begun + 2 * MS], axis=1)
        return fold(dataclasses.replace(made, calls=calls)).storm.achieved_per_s

    assert starts_per_s(planned) == pytest.approx(10)
    assert starts_per_s(planned * 2) == pytest.approx(5, rel=0.01)
    assert fold(made).storm.asked_per_s == 10
    assert fold(made).storm.achieved_per_s == 0
    assert fold(made).streams.reconnections_least == 1


def test_steal_share_is_the_hypervisors_time_per_second() -> None:
    stolen = dataclasses.replace(sample(10_000 * MS, 2.0, 5000), machine_steal_s=1.0)
    of = load(samples=(sample(0, 1.0, 1000), stolen))
    assert fold(recorded(of, rows(lambda _: 1.0, lambda _: 0.0))).machine.steal_share == 0.1


def test_server_figures_are_differences_of_samples() -> None:
    figures = fold(recorded(load(), rows(lambda _: 1.0, lambda _: 0.0)))
    assert figures.server.cpu_s == 1.0
    assert figures.server.cpu_share == 0.1
    assert figures.server.memory_per_streamer_bytes == 2000
    assert figures.generator.cpu_share == 0.05
    assert figures.streams.fairness == 1.0


def test_unequal_streamers_have_low_fairness() -> None:
    unequal = load(streams=(end(0), end(1, checked_bytes=1)))
    figures = fold(recorded(unequal, rows(lambda _: 1.0, lambda _: 0.0)))
    assert figures.streams.fairness == pytest.approx(0.5, abs=0.01)


def test_slowest_share_counts_a_stream_without_a_byte() -> None:
    crowd = dataclasses.replace(PROFILE, pace=flood(COUNT), late=2)
    came = end(0, kind="late", first_ns=2000 * MS)
    for other, share in (
        (dataclasses.replace(came, number=1, last_ns=20_000 * MS), 0.5),
        (end(1, kind="late", code="DEADLINE_EXCEEDED", checked_bytes=0, first_ns=0, last_ns=0), 0),
    ):
        of = load(profile=crowd, streams=(came, other))
        figures = fold(recorded(of, rows(lambda _: 1.0, lambda _: 0.0)))
        assert figures.streams.slowest_share == pytest.approx(share)
        assert figures.streams.completed == (2 if share else 1)


def test_stream_without_a_byte_waited_until_it_gave_up() -> None:
    impatient = dataclasses.replace(PROFILE, late=2, give_up_s=60)
    came = end(0, kind="late", due_ns=1000 * MS, began_ns=1001 * MS, first_ns=3000 * MS)
    starved = end(1, kind="late", due_ns=1000 * MS, began_ns=1001 * MS, first_ns=0, last_ns=0)
    of = load(profile=impatient, streams=(came, starved))
    streams = fold(recorded(of, rows(lambda _: 1.0, lambda _: 0.0))).streams
    assert (streams.first_byte_p50_ms, streams.first_byte_max_ms) == (2000, 60_000)


def test_starts_as_fast_as_they_are_answered() -> None:
    closed = dataclasses.replace(PROFILE, pace=None, storm=Storm(0, 10, 2))
    begun = np.repeat(np.arange(500) * 20 * MS, 2)
    took = np.where(np.arange(1000) < 500, 10 * MS, 15 * MS)
    calls = np.stack([begun, begun, begun + took, np.zeros_like(begun)], axis=1)
    nothing = rows(lambda _: 1.0, lambda _: 0.0)[:0]
    made = recorded(load(profile=closed, streams=()), nothing)
    figures = fold(dataclasses.replace(made, calls=calls))
    assert figures.storm.asked_per_s is None
    assert figures.storm.achieved_per_s == pytest.approx(100, rel=0.01)
    assert (figures.storm.start_p50_ms, figures.storm.start_growth) == (10, 1.5)
    assert figures.storm.stop_p99_ms is None
    assert figures.server.cpu_ms_per_start == 1.0
    assert figures.server.memory_per_streamer_bytes is None
    busy = {"machine_busy_share": 1.0, "starts_achieved_per_s": 100.0, "generator_lag_p99_ms": 90.0}
    assert verdicts(load(profile=dataclasses.replace(closed, limits={}), streams=()), busy) == {}


def test_processor_time_of_a_message_and_of_a_quiet_moment() -> None:
    bursts_of_work = (1.0, 1.0, 1.0, 1.9, 2.0)
    samples = tuple(sample(n * 2500 * MS, cpu_s, 1000) for n, cpu_s in enumerate(bursts_of_work))
    server = fold(recorded(load(samples=samples), rows(lambda _: 1.0, lambda _: 0.0))).server
    assert server.cpu_us_per_message == pytest.approx(1e6 / (2 * COUNT))
    assert server.cpu_median_share == pytest.approx(0.04)


def test_histograms_merge_and_are_written_as_hgrm() -> None:
    values_ns = np.arange(1, 10_001) * 1000
    halves = [encoded(values_ns[:5000]), encoded(values_ns[5000:])]
    both = merged(halves)
    assert both.get_total_count() == 10_000
    whole = histogram(values_ns)
    for percent in (50, 90, 99, 99.9):
        assert both.get_value_at_percentile(percent) == whole.get_value_at_percentile(percent)
        assert both.get_value_at_percentile(percent) == pytest.approx(percent * 100, rel=2e-3)
    lines = hgrm(values_ns).splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert lines[-1].startswith("#[Buckets")


def verdicts(of: Load, figures: Mapping[str, float], *, noisy: bool = False) -> dict[str, Finding]:
    findings = judge(of, Figures.from_names(figures), Strictness({}, noisy=noisy))
    return {each.promise: each for each in findings if each.verdict is not Verdict.PASS}


GOOD = {
    "latency_p99_ms": 5.0, "asked_per_s": 100.0, "achieved_per_s": 100.0,
    "generator_lag_p99_ms": 1.0, "writer_lag_p99_ms": 1.0, "generator_cpu_share": 0.1,
    "server_cpu_share": 0.1, "others_cpu_share": 0.0, "machine_busy_share": 0.3,
    "machine_steal_share": 0.0,
}  # fmt: skip


def test_load_that_was_reached_and_kept_passes() -> None:
    assert verdicts(load(), GOOD) == {}


@pytest.mark.parametrize(
    ("changes", "figures", "verdict"),
    [
        ({}, {"achieved_per_s": 80.0}, Verdict.BROKEN),
        ({}, {"generator_lag_p99_ms": 26.0, "latency_p99_ms": 1000.0}, Verdict.BROKEN),
        ({}, {"writer_lag_p99_ms": 26.0, "latency_p99_ms": 1000.0}, Verdict.BROKEN),
        ({}, {"generator_lag_p99_ms": 20.0, "latency_p99_ms": 20.0}, Verdict.BROKEN),
        ({}, {"writer_lag_p99_ms": 20.0, "latency_p99_ms": 20.0}, Verdict.BROKEN),
        ({}, {"others_cpu_share": 0.6}, Verdict.BROKEN),
        ({}, {"machine_busy_share": 0.85}, Verdict.BROKEN),
        ({}, {"machine_steal_share": 0.06}, Verdict.BROKEN),
        ({}, {"starts_asked_per_s": 30.0, "starts_achieved_per_s": 26.0}, Verdict.BROKEN),
        ({}, {"reconnections_least": 0}, Verdict.BROKEN),
        ({}, {"generator_cpu_share": 0.96}, Verdict.BROKEN),
        ({"joined": 1}, {}, Verdict.BROKEN),
        ({"exit_code": None}, {}, Verdict.BROKEN),
        ({}, {"latency_p99_ms": 1101.0}, Verdict.FAIL),
        ({"streams": (end(0), end(1, wrong="at message 3"))}, {}, Verdict.FAIL),
        ({"streams": (end(0), end(1, code="UNAVAILABLE"))}, {}, Verdict.FAIL),
        ({"streams": (end(0), end(1, checked_bytes=5))}, {}, Verdict.FAIL),
    ],
)
def test_load_is_distrusted_first_and_then_judged(
    changes: dict[str, object], figures: dict[str, float], verdict: Verdict
) -> None:
    [finding] = verdicts(load(**changes), {**GOOD, **figures}).values()
    assert finding.verdict is verdict


@pytest.mark.parametrize(
    "disturbed",
    [
        {"others_cpu_share": 1.0},
        {"achieved_per_s": 80.0},
    ],
)
def test_limits_of_a_disturbed_load_are_not_judged(disturbed: dict[str, float]) -> None:
    figures = {**GOOD, **disturbed, "latency_p99_ms": 9999.0}
    for noisy, verdict in ((False, Verdict.BROKEN), (True, Verdict.SKIPPED)):
        [finding] = verdicts(load(), figures, noisy=noisy).values()
        assert finding.verdict is verdict


@pytest.mark.parametrize(
    "figures",
    [
        {"achieved_per_s": 80.0, "writer_blocked_share": 0.2},
        {"starts_asked_per_s": 30.0, "starts_achieved_per_s": 26.0},
    ],
)
def test_noisy_does_not_excuse_a_server_that_blocks_the_load(
    figures: dict[str, float],
) -> None:
    [finding] = verdicts(load(), {**GOOD, **figures}, noisy=True).values()
    assert finding.verdict is Verdict.BROKEN


def test_figures_of_a_quiet_machine_pass() -> None:
    # The tightest of the kept runs on a quiet machine: lines of 2.5 ms, timers late by 1.1.
    quiet = {"latency_p99_ms": 2.47, "generator_lag_p99_ms": 1.11, "machine_busy_share": 0.25}
    storm = {"starts_asked_per_s": 30.0, "starts_achieved_per_s": 29.9}
    again = {"reconnections_least": 1}
    assert verdicts(load(), {**GOOD, **quiet, **storm, **again}) == {}


@pytest.mark.parametrize(("noisy", "verdict"), [(False, Verdict.BROKEN), (True, Verdict.SKIPPED)])
def test_latency_near_the_generators_lag_is_not_judged(noisy: bool, verdict: Verdict) -> None:
    figures = {**GOOD, "latency_p99_ms": 20.0, "generator_lag_p99_ms": 20.0}
    [finding] = verdicts(load(), figures, noisy=noisy).values()
    assert finding.verdict is verdict
    assert "not separable" in finding.got


def test_own_lag_is_compared_with_the_smallest_latency() -> None:
    figures = {**GOOD, "latency_p99_ms": 50.0, "start_p99_ms": 4.0, "generator_lag_p99_ms": 10.0}
    [finding] = verdicts(load(), figures).values()
    assert "beside start_p99_ms 4.00 ms" in finding.got


def test_busy_machine_does_not_disturb_a_flood() -> None:
    as_fast_as_it_goes = dataclasses.replace(PROFILE, pace=flood(COUNT), limits={})
    figures = {
        "generator_cpu_share": 0.5, "server_cpu_share": 0.9, "machine_busy_share": 1.0,
        "generator_lag_p99_ms": 90.0,
    }  # fmt: skip
    assert verdicts(load(profile=as_fast_as_it_goes), figures) == {}


def only_limit(of: Load, figures: Mapping[str, float], limits: Mapping[str, float]) -> Finding:
    findings = judge(of, Figures.from_names(figures), Strictness(limits))
    [finding] = [each for each in findings if each.verdict is not Verdict.PASS]
    return finding


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("latency_p99_ms", "a p99 needs 100 planned messages"),
        ("latency_max_ms", "latency needs planned messages"),
        ("first_byte_p99_ms", "a profile with late"),
        ("start_p99_ms", "it needs a storm"),
        ("stop_p99_ms", "it needs a storm"),
        ("server_cpu_s_per_gb", "more than 10 MB"),
        ("fairness", "two streamers"),
        ("rate_mb_per_s", "nothing was received"),
    ],
)
def test_limit_without_its_figure_is_broken_with_its_reason(limit: str, says: str) -> None:
    of = load(profile=dataclasses.replace(PROFILE, limits={}))
    figures = {name: value for name, value in GOOD.items() if name != "latency_p99_ms"}
    finding = only_limit(of, figures, {limit: 1.0})
    assert finding.verdict is Verdict.BROKEN
    assert "it could not be judged" in finding.got
    assert says in finding.got


def test_figures_with_limits_have_a_reason_for_their_absence() -> None:
    for limit in LIMITS:
        of = load(local=False, profile=dataclasses.replace(PROFILE, limits={}))
        finding = only_limit(of, {"generator_cpu_share": 0.1}, {limit: 1.0})
        assert FIGURES["server_cpu_s"].absent not in finding.got


def test_profile_limit_on_a_remote_process_is_skipped() -> None:
    name = "memory_per_streamer_bytes"
    elsewhere = load(local=False, profile=dataclasses.replace(PROFILE, limits={name: 1.0}))
    assert only_limit(elsewhere, GOOD, {}).verdict is Verdict.SKIPPED
    asked = only_limit(elsewhere, GOOD, {name: 1.0})
    assert asked.verdict is Verdict.BROKEN
    assert "--launch" in asked.got


def test_reported_missed_bytes_complete_a_stream() -> None:
    told = load(streams=(end(0), end(1, checked_bytes=100, missed_bytes=COUNT * 100)))
    assert verdicts(told, GOOD) == {}


def test_saved_load_is_read_back_equal(tmp_path: Path) -> None:
    original = load(
        options=(("grpc.x", 1),),
        profile=dataclasses.replace(PROFILE, floor=Floor(rate_share=0.3)),
    )
    np.savez(tmp_path / "readers-0.npz", rows=rows(lambda _: 1.0, lambda _: 0.0))
    save_load(original, tmp_path)
    again = read_load(tmp_path)
    assert again.load == original
    assert len(again.rows) == COUNT


def test_directory_without_a_load_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenError, match="no load in"):
        read_load(tmp_path)
    (tmp_path / "load.json").write_text("{}")
    with pytest.raises(BrokenError, match="no load in"):
        read_load(tmp_path)
