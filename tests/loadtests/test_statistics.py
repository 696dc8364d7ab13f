"""The comparison finds a planted 20 %, and no difference between equals."""

import math
import random

import pytest

from harness.record.verdict import Verdict
from loadtests.compare import Pairs, Question, judge_control, judge_trial, summarize
from loadtests.figures import figure_named
from loadtests.profiles import PROFILES
from loadtests.session import ServerChoice
from loadtests.statistics import critical, effect

# Of one run; on a quiet machine of two cores it was 2 to 5 %.
NOISE = 0.04
TRIES = 300


def question(figure: str = "rate_mb_per_s", allowed: float = 0.05) -> Question:
    return Question(
        ServerChoice(), ServerChoice(), PROFILES[0], figure_named(figure), 10, allowed, "seed"
    )


def noisy_pairs(
    chance: random.Random, ratio: float, count: int = 12, noise: float = NOISE
) -> Pairs:
    """Return pairs with noise of each run, drift of the machine, and now and then an outlier."""
    a: list[float] = []
    b: list[float] = []
    for number in range(count):
        machine = 500 * (1 + 0.3 * number / count)  # it gets faster: both sides of a pair alike
        for side, factor in ((a, 1.0), (b, ratio)):
            hiccup = 0.5 if chance.random() < 0.01 else 1.0
            side.append(machine * factor * hiccup * chance.lognormvariate(0, noise))
    return Pairs("A and B", tuple(a), tuple(b))


@pytest.mark.parametrize(
    ("pairs", "published"),
    # Wilcoxon's signed ranks, two-sided 5 %: Hollander, Wolfe, Chicken; the same in every table.
    [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52), (25, 89), (30, 137)],
)
def test_critical_values_equal_the_published_ones(pairs: int, published: int) -> None:
    assert critical(pairs) == published


def test_planted_slowdown_of_20_percent_is_found() -> None:
    chance = random.Random("planted")
    found = [judge_trial(question(), noisy_pairs(chance, 0.8)) for _ in range(TRIES)]
    assert sum(each.verdict is Verdict.FAIL for each in found) >= 0.95 * TRIES


def test_equal_servers_show_no_difference() -> None:
    chance = random.Random("equal")
    pairs = [noisy_pairs(chance, 1.0) for _ in range(TRIES)]
    found = [judge_trial(question(), each).verdict for each in pairs]
    controls = [judge_control(question(), each).verdict for each in pairs]
    assert found.count(Verdict.FAIL) <= 0.02 * TRIES
    assert controls.count(Verdict.BROKEN) <= 0.03 * TRIES


def test_interval_covers_the_truth_as_often_as_its_confidence() -> None:
    chance = random.Random("interval")
    held = 0
    for _ in range(TRIES):
        pairs = noisy_pairs(chance, 1.1)
        found = effect(pairs.a, pairs.b)
        held += found.low <= 1.1 <= found.high
    assert held >= 0.92 * TRIES


def test_higher_rate_and_lower_latency_are_better() -> None:
    chance = random.Random("faster")
    faster = noisy_pairs(chance, 1.3)
    assert judge_trial(question(), faster).verdict is Verdict.PASS
    assert judge_trial(question("latency_p99_ms"), faster).verdict is Verdict.FAIL


def test_slowdown_within_the_allowance_passes() -> None:
    chance = random.Random("allowed")
    slower = noisy_pairs(chance, 0.8)
    assert judge_trial(question(allowed=0.5), slower).verdict is Verdict.PASS


def test_effect_is_independent_of_the_order_of_pairs() -> None:
    pairs = noisy_pairs(random.Random("order"), 0.9)
    forward, backward = effect(pairs.a, pairs.b), effect(pairs.a[::-1], pairs.b[::-1])
    assert forward.ratio == pytest.approx(backward.ratio)
    inverse = effect(pairs.b, pairs.a)
    assert inverse.ratio == pytest.approx(1 / forward.ratio)
    assert (inverse.low, inverse.high) == pytest.approx((1 / forward.high, 1 / forward.low))
    assert inverse.p == forward.p


def test_equal_values_show_no_difference() -> None:
    found = effect([5.0] * 8, [5.0] * 8)
    assert (found.ratio, found.low, found.high, found.p) == (1.0, 1.0, 1.0, 1.0)
    assert not found.differs


@pytest.mark.parametrize(
    ("a", "b"), [([1.0] * 5, [1.0] * 5), ([1.0] * 6, [1.0] * 7), ([0.0] * 6, [1.0] * 6)]
)
def test_invalid_pairs_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs|positive"):
        effect(a, b)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # All of one sign: only 2 of the 2 ** n signs are as far out.
        ([1, 2, 3, 4, 5, 6], 2 / 2**6),
        # Pairs without a difference say nothing: six are left of eight.
        ([0, 0, 1, 2, 3, 4, 5, 6], 2 / 2**6),
        # 1 and -1 share rank 1.5: against are as few ranks, 1.5, with none or either of the two.
        ([1, -1, 3, 4, 5, 6], 2 * 3 / 2**6),
        # All of one size have rank 3.5: none or one of six is against.
        ([1, 1, 1, 1, 1, -1], 2 * 7 / 2**6),
    ],
)
def test_p_omits_zeros_and_gives_ties_their_mean_rank(differences: list[int], p: float) -> None:
    found = effect([1.0] * len(differences), [math.exp(each / 10) for each in differences])
    assert found.p == pytest.approx(p)


def test_fifth_is_found_after_a_passing_control() -> None:
    chance = random.Random("power")
    passed = seen = 0
    while passed < TRIES:
        noise = chance.choice((0.04, 0.08, 0.12, 0.16))
        control = noisy_pairs(chance, 1.0, noise=noise)
        if judge_control(question(), control).verdict is Verdict.PASS:
            passed += 1
            trial = noisy_pairs(chance, 0.8, noise=noise)
            seen += judge_trial(question(), trial).verdict is Verdict.FAIL
    assert seen >= 0.95 * TRIES


def test_control_of_a_wide_interval_is_broken() -> None:
    # Every pair is 25 % off to one side or the other: known to 25 %.
    a, b = [1.0] * 12, [1.25, 0.8] * 6
    found = judge_control(question(), Pairs("A and A", tuple(a), tuple(b)))
    assert found.verdict is Verdict.BROKEN
    assert "known to 13%" in found.want


def test_summary_has_both_effects_and_every_ratio() -> None:
    chance = random.Random("conclusion")
    control, trial = noisy_pairs(chance, 1.0), noisy_pairs(chance, 0.8)
    found = summarize(question(), control, trial)
    assert [each.pairs for each in found.effects] == [12, 12]
    assert len(found.ratios) == 24
