"""A soak is judged by slope: growth in each round is found, a single step and noise are not."""

import dataclasses
import random
from collections.abc import Sequence

import pytest

from harness.checks.check import Extent
from harness.checks.streams.soak import (
    BOUNDS,
    ROUNDS,
    SOAK,
    WARM_UP_ROUNDS,
    Bound,
    ServerResources,
    SoakRounds,
    growth,
    judge_soak,
)
from harness.checks.streams.soak_work import DENIED, LOG_BYTES, ROUND_BYTES, is_sound
from harness.record.history import Call, History, Outcome, Record, Stream
from harness.record.verdict import BrokenError, Verdict, merge
from harness.run.choice import Choice

ALL_ROUNDS = WARM_UP_ROUNDS + ROUNDS
FIELDS = ("memory_bytes", "kept_output_bytes", "descriptors", "threads", "children", "cgroups")
SAME = ServerResources(0.0, 7, 7, 7, 7, 7, 7)
WHOLE_STREAM = Stream("whole", "job", Outcome.OK, "OK", "", LOG_BYTES, "", 0.0, 1.0)
RESUMED_STREAM = dataclasses.replace(WHOLE_STREAM, label="resumed")
ENOUGH_STREAMS = [RESUMED_STREAM, *[WHOLE_STREAM] * (ROUNDS * ROUND_BYTES // LOG_BYTES)]


def soak(field: str, values: Sequence[float]) -> History:
    after = tuple(dataclasses.replace(SAME, **{field: round(value)}) for value in values)
    return History([*ENOUGH_STREAMS, SoakRounds(after, 0)])


def test_growth_is_that_of_each_round_despite_one_step_and_outliers() -> None:
    assert growth([5 + 3 * at for at in range(ROUNDS)]) == 3
    assert growth([0] * 25 + [9_000_000] * 15) == 0
    assert growth([7] * 19 + [7000] + [7] * 20) == 0


def test_a_server_that_does_not_grow_passes_despite_the_noise_of_a_heap() -> None:
    noise = random.Random(83)
    memory = [40e6 + noise.uniform(-2e6, 2e6) for _ in range(ALL_ROUNDS)]
    threads = [21] * (ALL_ROUNDS // 2) + [22] * (ALL_ROUNDS - ALL_ROUNDS // 2)
    assert merge(judge_soak(soak("memory_bytes", memory))) is Verdict.PASS
    assert merge(judge_soak(soak("threads", threads))) is Verdict.PASS


@pytest.mark.parametrize(("field", "bound"), list(zip(FIELDS, BOUNDS, strict=True)), ids=FIELDS)
def test_growth_in_each_round_fails(field: str, bound: Bound) -> None:
    # Counts are whole, so a slope below 1 is a staircase, whose median slope varies a little.
    grows = [1000 + 1.3 * bound.most * at for at in range(ALL_ROUNDS)]
    failed = [each for each in judge_soak(soak(field, grows)) if each.verdict is Verdict.FAIL]
    assert [each.promise for each in failed] == [f"{bound.what} that each round adds"]


def test_growth_in_the_first_rounds_only_is_not_a_leak() -> None:
    warm = [min(at, WARM_UP_ROUNDS) * 1e6 for at in range(ALL_ROUNDS)]
    assert merge(judge_soak(soak("memory_bytes", warm))) is Verdict.PASS


def test_connections_that_are_left_fail_although_the_soak_ended_there() -> None:
    assert merge(judge_soak(History([WHOLE_STREAM, SoakRounds((), 3)]))) is Verdict.FAIL


def test_too_few_rounds_are_inconclusive() -> None:
    rounds = SoakRounds((SAME,) * (ALL_ROUNDS - 1), 0)
    assert merge(judge_soak(History([*ENOUGH_STREAMS, rounds]))) is Verdict.BROKEN


LONG = ALL_ROUNDS + 10 * ROUNDS


def long_soak(field: str, total: float, *, deletes: bool = True) -> list[str]:
    """Judge a long soak whose judged rounds together leave so much; return what fails."""
    step = total / (LONG - WARM_UP_ROUNDS)
    after = tuple(
        dataclasses.replace(SAME, **{field: 1000 + round(step * at)}) for at in range(LONG)
    )
    rounds = SoakRounds(after, 0, dropped_bytes=LONG * ROUND_BYTES, deletes=deletes)
    findings = judge_soak(History([*ENOUGH_STREAMS, rounds]))
    return [each.promise for each in findings if each.verdict is not Verdict.PASS]


@pytest.mark.parametrize(("field", "bound"), list(zip(FIELDS, BOUNDS, strict=True)), ids=FIELDS)
def test_all_rounds_of_a_long_soak_may_leave_as_much_as_those_of_a_short_one(
    field: str, bound: Bound
) -> None:
    assert long_soak(field, 0.5 * bound.most * ROUNDS) == []
    assert long_soak(field, 2 * bound.most * ROUNDS) == [f"{bound.what} that each round adds"]


def test_jobs_that_are_not_deleted_stay_in_memory_however_long_the_soak() -> None:
    assert long_soak("memory_bytes", 5 * BOUNDS[0].most * ROUNDS, deletes=False) == []


def test_growth_of_many_thousand_rounds_is_that_of_a_round() -> None:
    assert growth([3.0 * at for at in range(30_000)]) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        (WHOLE_STREAM, False),
        (dataclasses.replace(WHOLE_STREAM, received_bytes=LOG_BYTES - 1), True),
        (dataclasses.replace(WHOLE_STREAM, label="half", received_bytes=LOG_BYTES - 1), False),
        (dataclasses.replace(WHOLE_STREAM, wrong_at=7), True),
        (dataclasses.replace(WHOLE_STREAM, outcome=Outcome.ERROR, code="DATA_LOSS"), True),
        (dataclasses.replace(WHOLE_STREAM, label=DENIED, code="CANCELLED"), True),
        (dataclasses.replace(WHOLE_STREAM, label=DENIED, code="UNAUTHENTICATED"), False),
        (Call("delete", "DeleteJob", Outcome.OK, "OK", "", 0.0, 1.0), False),
        (Call("delete", "DeleteJob", Outcome.ERROR, "INTERNAL", "", 0.0, 1.0), True),
    ],
)
def test_later_rounds_keep_the_records_that_show_a_fault(record: Record, *, kept: bool) -> None:
    assert is_sound(record) is not kept


def test_only_checks_that_work_in_rounds_have_an_extent() -> None:
    with pytest.raises(BrokenError, match=r"no chosen check works in rounds.*streams\.soak"):
        Choice(keyword="^lifecycle.ids$", extent=Extent(rounds=3)).checks()
    assert [check.name for check in Choice(keyword="soak", extent=Extent(rounds=3)).checks()] == [
        "streams.soak"
    ]


def test_command_that_repeats_a_run_has_its_extent() -> None:
    long = Choice(keyword="soak", seed="1", extent=Extent(lasting_s=90))
    assert long.rerun("local").endswith("soak --minutes 1.5 --target local --seed 1")
    rounds = Choice(keyword="soak", seed="1", extent=Extent(rounds=7))
    assert "check --target local --seed 1 --rounds 7 -k" in rounds.rerun("local")


def test_extent_adds_to_the_time_limit_of_a_check_that_works_in_rounds() -> None:
    assert SOAK.limit_s(Extent()) == SOAK.time_limit_s
    assert SOAK.limit_s(Extent(lasting_s=3600)) == SOAK.time_limit_s + 3600
    assert SOAK.limit_s(Extent(rounds=9)) == SOAK.time_limit_s + 9 * SOAK.round_limit_s
    one = dataclasses.replace(SOAK, round_limit_s=0.0)
    assert one.limit_s(Extent(rounds=9)) == SOAK.time_limit_s
