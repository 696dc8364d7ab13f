"""A soak is judged by slope: what comes with each round shows, a step and some unrest do not."""

import random
from collections.abc import Sequence

import pytest

from harness.checks.streams.soak import (
    BOUNDS,
    LOG_BYTES,
    ROUND_BYTES,
    ROUNDS,
    WARM_UP_ROUNDS,
    growth,
    judge_soak,
)
from harness.record.history import Fact, History, Outcome, Stream
from harness.record.verdict import Verdict, merge

ALL_ROUNDS = WARM_UP_ROUNDS + ROUNDS
NAMES = [name for name, _, _ in BOUNDS]


def whole_stream() -> Stream:
    return Stream("whole", "job", Outcome.OK, "OK", "", LOG_BYTES, "", 0.0, 1.0)


def soak(series: dict[str, Sequence[float]]) -> History:
    looks = [
        {name: series[name][at] if name in series else 7 for name in NAMES}
        for at in range(ALL_ROUNDS)
    ]
    enough = ROUNDS * ROUND_BYTES // LOG_BYTES
    return History([*[whole_stream()] * enough, Fact("looks", looks)])


def test_growth_is_that_of_each_round_whatever_one_step_and_wild_values_do() -> None:
    assert growth([5 + 3 * at for at in range(ROUNDS)]) == 3
    assert growth([0] * 25 + [9_000_000] * 15) == 0
    assert growth([7] * 19 + [7000] + [7] * 20) == 0


def test_a_server_at_rest_passes_with_the_unrest_of_a_heap() -> None:
    chance = random.Random(83)
    megabytes = [40e6 + chance.uniform(-2e6, 2e6) for _ in range(ALL_ROUNDS)]
    threads = [21] * (ALL_ROUNDS // 2) + [22] * (ALL_ROUNDS - ALL_ROUNDS // 2)
    assert merge(judge_soak(soak({"bytes of memory": megabytes}))) is Verdict.PASS
    assert merge(judge_soak(soak({"threads": threads}))) is Verdict.PASS


@pytest.mark.parametrize(("name", "most"), [(name, most) for name, most, _ in BOUNDS])
def test_what_grows_with_each_round_fails(name: str, most: float) -> None:
    grows = [1000 + 1.1 * most * at for at in range(ALL_ROUNDS)]
    failed = [each for each in judge_soak(soak({name: grows})) if each.verdict is Verdict.FAIL]
    assert [each.promise for each in failed] == [f"{name} that each round adds"]


def test_growth_in_the_first_rounds_only_is_no_leak() -> None:
    warm = [min(at, WARM_UP_ROUNDS) * 1e6 for at in range(ALL_ROUNDS)]
    assert merge(judge_soak(soak({"bytes of memory": warm}))) is Verdict.PASS


def test_connections_that_stay_fail_although_the_soak_ended_there() -> None:
    history = History([whole_stream(), Fact("never came to rest", 3), Fact("looks", [])])
    assert merge(judge_soak(history)) is Verdict.FAIL


def test_too_few_rounds_say_nothing() -> None:
    looks = [dict.fromkeys(NAMES, 7)] * (ALL_ROUNDS - 1)
    history = History([*[whole_stream()] * 500, Fact("looks", looks)])
    assert merge(judge_soak(history)) is Verdict.BROKEN
