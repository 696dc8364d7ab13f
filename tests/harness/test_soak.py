"""A soak is judged by slope: growth in each round is found, a single step and noise are not."""

import dataclasses
import random
from collections.abc import Sequence

import pytest

from harness.checks.streams.soak import (
    BOUNDS,
    LOG_BYTES,
    ROUND_BYTES,
    ROUNDS,
    WARM_UP_ROUNDS,
    Bound,
    ServerResources,
    SoakRounds,
    growth,
    judge_soak,
)
from harness.record.history import History, Outcome, Stream
from harness.record.verdict import Verdict, merge

ALL_ROUNDS = WARM_UP_ROUNDS + ROUNDS
FIELDS = ("memory_bytes", "kept_output_bytes", "descriptors", "threads", "children")
SAME = ServerResources(0.0, 7, 7, 7, 7, 7, 7)
WHOLE_STREAM = Stream("whole", "job", Outcome.OK, "OK", "", LOG_BYTES, "", 0.0, 1.0)
ENOUGH_STREAMS = [WHOLE_STREAM] * (ROUNDS * ROUND_BYTES // LOG_BYTES)


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
