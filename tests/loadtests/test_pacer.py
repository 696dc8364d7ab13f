"""Pacing is arithmetic: a table of what is due when, whatever the clock says."""

import pytest

from loadtests.pacer import NS_PER_S, Pace, bursts, flood, steady

MS = 1_000_000


@pytest.mark.parametrize(
    ("pace", "number", "due_ns"),
    [
        (steady(100, 1), 0, 0),
        (steady(100, 1), 1, 10 * MS),
        (steady(100, 1), 99, 990 * MS),
        (steady(1, 5), 4, 4 * NS_PER_S),
        (bursts(3, 0.5, 2), 2, 0),
        (bursts(3, 0.5, 2), 3, 500 * MS),
        (bursts(3, 0.5, 2), 11, 1500 * MS),
        (flood(1000), 999, 0),
    ],
)
def test_due_instant_depends_on_the_number_alone(pace: Pace, number: int, due_ns: int) -> None:
    assert pace.due_ns(number) == due_ns


@pytest.mark.parametrize(
    ("elapsed_ns", "wait_ns"),
    [(0, 20 * MS), (19 * MS, MS), (20 * MS, 0), (21 * MS, 0), (9 * NS_PER_S, 0)],
)
def test_late_writer_does_not_wait(elapsed_ns: int, wait_ns: int) -> None:
    assert steady(100, 1).wait_ns(2, elapsed_ns) == wait_ns


@pytest.mark.parametrize(
    ("pace", "count", "rate_per_s", "duration_s"),
    [
        (steady(100, 6), 600, 100.0, 6.0),
        (bursts(16, 0.1, 5), 800, 160.0, 5.0),
        (flood(7), 7, float("inf"), 0.0),
        (steady(10, 0.01), 1, 10.0, 0.1),
    ],
)
def test_pace_has_its_count_rate_and_duration(
    pace: Pace, count: int, rate_per_s: float, duration_s: float
) -> None:
    assert (pace.count, pace.rate_per_s) == (count, rate_per_s)
    assert pace.duration_ns == duration_s * NS_PER_S
    assert pace.due_ns(pace.count - 1) <= pace.duration_ns


@pytest.mark.parametrize("values", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_invalid_pace_is_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        Pace(*values)
