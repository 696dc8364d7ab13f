"""Whether B differs from A, by pairs of runs: Wilcoxon's exact signed-rank test.

For each pair the logarithm of B / A is taken. The estimate is Hodges and Lehmann's: the median of
all means of two of them. The interval and the p-value are the exact ones of Wilcoxon's signed-rank
test (Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, 3rd edition, 3.1 to 3.3). No
distribution is assumed, only that a disturbance hits A and B of a pair equally likely, which the
random order ensures. An outlier counts by its rank, not by its size. For the p-value, pairs without
a difference are left out, and equal differences share their mean rank, as in Wilcoxon's paper; the
distribution is the exact one of the remaining ranks.

Tested against synthetic data, and against published critical values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby
from statistics import median
from typing import Final

# With fewer pairs no result could be significant at 95 %.
PAIRS_MIN: Final = 6
PAIRS_MAX: Final = 200
CONFIDENCE: Final = 0.95
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Effect:
    """B relative to A.

    Attributes:
        pairs: number of pairs.
        ratio: estimate of B / A.
        low, high: its interval, at `confidence` or slightly above.
        confidence: of the interval.
        p: two-sided probability of ranks at least this one-sided if A and B were equal.
    """

    pairs: int
    ratio: float
    low: float
    high: float
    confidence: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the interval excludes "no difference"."""
        return self.low > 1 or self.high < 1


def effect(a: Sequence[float], b: Sequence[float]) -> Effect:
    """Return B relative to A; `a[i]` and `b[i]` are a pair.

    Raises:
        ValueError: too few pairs or too many, not pairs, or values that are not positive.
    """
    count = len(a)
    if count != len(b) or not PAIRS_MIN <= count <= PAIRS_MAX:
        raise ValueError(
            f"{len(a)} and {len(b)} values; it must be {PAIRS_MIN} to {PAIRS_MAX} pairs"
        )
    if min(*a, *b) <= 0:
        raise ValueError("a value is not positive; ratios need positive ones")
    logs = [math.log(right / left) for left, right in zip(a, b, strict=True)]
    means = sorted((x + y) / 2 for x, y in combinations_with_replacement(logs, 2))
    below = _cumulated(count)
    beyond = critical(count)
    return Effect(
        pairs=count,
        ratio=math.exp(median(means)),
        low=math.exp(means[beyond]),
        high=math.exp(means[-1 - beyond]),
        confidence=1 - 2 * below[beyond],
        p=_p(logs),
    )


def critical(count: int) -> int:
    """Return the largest sum of ranks that is significant at 95 %, two-sided."""
    below = _cumulated(count)
    return max(rank for rank, share in enumerate(below) if share <= (1 - CONFIDENCE) / 2)


def _cumulated(count: int) -> list[float]:
    """Return P(W <= w) for each w, W being the sum of a random half of the ranks 1 to `count`."""
    return _cumulated_of(range(1, count + 1))


def _cumulated_of(ranks: Sequence[int]) -> list[float]:
    """Return P(W <= w) for each w, W being the sum of a random half of these ranks."""
    ways = [1] + [0] * sum(ranks)
    for rank in ranks:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    shares, so_far = [], 0
    for each in ways:
        so_far += each
        shares.append(so_far / 2 ** len(ranks))
    return shares


def _p(logs: Sequence[float]) -> float:
    # Beyond this many digits two differences differ only by the rounding of their logarithms.
    differences = sorted((round(each, _DIGITS) for each in logs if round(each, _DIGITS)), key=abs)
    if not differences:
        return 1.0
    ranks = _twice_the_ranks(differences)
    positive = sum(rank for rank, each in zip(ranks, differences, strict=True) if each > 0)
    return min(1.0, 2 * _cumulated_of(ranks)[min(positive, sum(ranks) - positive)])


def _twice_the_ranks(ordered: Sequence[float]) -> list[int]:
    """Return twice the rank of each ordered value, equal ones sharing their mean: whole numbers."""
    ranks: list[int] = []
    for _, group in groupby(ordered, key=abs):
        count = len(list(group))
        first = len(ranks) + 1
        ranks += [2 * first + count - 1] * count
    return ranks
