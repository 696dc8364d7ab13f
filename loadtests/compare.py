"""Compares two servers honestly: pairs of runs side by side, in random order, a control first.

First A is compared with itself. When that shows a difference the machine is too restless, and the
comparison is BROKEN. Then B is compared with A in the same way. It FAILs when B is worse by more
than is allowed and the interval leaves out "no difference".
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.verdict import BrokenError, Finding, Verdict
from loadtests.profiles import LIMITS, Profile
from loadtests.session import Point, ServerChoice, Session
from loadtests.statistics import PAIRS_MIN, Effect, effect

# A pair that was disturbed is left out, and another one run for it.
ATTEMPTS_PER_PAIR: Final = 2
# A control whose interval is wider than this cannot tell a slowdown of a fifth.
WIDEST: Final = 0.2
CONTROL: Final = "A and A"
TRIAL: Final = "A and B"


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared.

    Attributes:
        a, b: the servers.
        profile: the load.
        figure: by its name in `metrics.FIGURES`.
        pairs: of runs, for the control and for the trial.
        allowed: how much worse B may be, as a share.
        seed: of the order in which a pair runs.
    """

    a: ServerChoice
    b: ServerChoice
    profile: Profile
    figure: str
    pairs: int
    allowed: float
    seed: str

    @property
    def more_is_better(self) -> bool:
        """Whether a larger figure is a better one."""
        return LIMITS.get(self.figure, False)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The figures of some pairs."""

    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]


def run_pairs(session: Session, question: Question, name: str) -> Pairs:
    """Run pairs of A and A, or of A and B.

    Raises:
        BrokenError: too many pairs came to nothing.
    """
    chance = random.Random(f"{question.seed} {name}")  # noqa: S311 - an order, no secret
    order: list[str] = []
    sides = {"A": question.a, "B": question.a if name == CONTROL else question.b}
    values: dict[str, list[float]] = {"A": [], "B": []}
    for number in range(ATTEMPTS_PER_PAIR * question.pairs):
        # Both orders equally often: what favours the first or the second of a pair cancels out.
        order = chance.sample(sorted(sides), 2) if number % 2 == 0 else order[::-1]
        pair = {}
        for side in order:
            shown = "A" if name == CONTROL else side
            labels = {"pairs": name, "pair": str(number + 1), "side": shown}
            pair[side] = _value(session, question, sides[side], labels)
        if all(value is not None for value in pair.values()):
            for side, value in pair.items():
                values[side].append(value or 0.0)
        if len(values["A"]) == question.pairs:
            break
    if len(values["A"]) < PAIRS_MIN:
        raise BrokenError(
            f"{name}: {len(values['A'])} of {question.pairs} pairs gave a figure; at least "
            f"{PAIRS_MIN} must"
        )
    return Pairs(name, tuple(values["A"]), tuple(values["B"]))


def _value(
    session: Session, question: Question, server: ServerChoice, labels: dict[str, str]
) -> float | None:
    result = session.run(Point(question.profile, labels), server)
    if result.verdict in {Verdict.BROKEN, Verdict.FAIL}:
        return None
    value = result.figures.get(question.figure)
    return value if value and value > 0 else None


def conclude(question: Question, control: Pairs, trial: Pairs | None) -> dict[str, Any]:
    """Return what pairs came to, as it stands in `results.json`."""
    effects = []
    ratios = []
    for pairs in filter(None, (control, trial)):
        found = effect(pairs.a, pairs.b)
        effects.append(
            {
                "name": pairs.name,
                "median_a": sorted(pairs.a)[len(pairs.a) // 2],
                "median_b": sorted(pairs.b)[len(pairs.b) // 2],
                **dataclasses.asdict(found),
                "says": says(question, found),
            }
        )
        ratios += [
            {"name": pairs.name, "pair": number, "ratio": right / left}
            for number, (left, right) in enumerate(zip(pairs.a, pairs.b, strict=True))
        ]
    return {
        "figure": question.figure, "profile": question.profile.name, "seed": question.seed,
        "allowed": question.allowed, "effects": effects, "ratios": ratios,
    }  # fmt: skip


def says(question: Question, found: Effect) -> str:
    """Return a finding in words."""
    if not found.differs:
        return "no difference found"
    better = (found.ratio > 1) == question.more_is_better
    return f"{abs(found.ratio - 1):.1%} {'better' if better else 'worse'}"


def judge_control(question: Question, control: Pairs) -> Finding:
    """Judge whether this machine can compare at all."""
    found = effect(control.a, control.b)
    restless = found.differs and abs(found.ratio - 1) > question.allowed
    half_width = math.sqrt(found.high / found.low) - 1
    return Finding(
        Verdict.BROKEN if restless or half_width > WIDEST else Verdict.PASS,
        f"A does not differ from itself in {question.figure}, and a fifth would be seen",
        f"{_interval(found)}: known to {half_width:.0%}",
        f"1, or no further from it than {question.allowed:.0%}; known to {WIDEST:.0%}",
    )


def judge_trial(question: Question, trial: Pairs) -> Finding:
    """Judge B."""
    found = effect(trial.a, trial.b)
    worse = (found.ratio < 1) == question.more_is_better
    fails = found.differs and worse and abs(found.ratio - 1) > question.allowed
    return Finding(
        Verdict.FAIL if fails else Verdict.PASS,
        f"B is not worse than A in {question.figure}",
        f"{_interval(found)}: {says(question, found)}",
        f"at most {question.allowed:.0%} worse",
    )


def _interval(found: Effect) -> str:
    return (
        f"B / A = {found.ratio:.3f}, {found.confidence:.0%} interval {found.low:.3f} to "
        f"{found.high:.3f}, p = {found.p:.4f}, {found.pairs} pairs"
    )


def run_comparison(
    session: Session, question: Question
) -> tuple[Mapping[str, Any], Sequence[Finding]]:
    """Run the control, and if it is quiet the trial; return what was found, and what it says."""
    try:
        control = run_pairs(session, question, CONTROL)
        findings = [judge_control(question, control)]
        trial = None
        if findings[0].verdict is Verdict.PASS:
            trial = run_pairs(session, question, TRIAL)
            findings.append(judge_trial(question, trial))
    except BrokenError as error:
        return {}, [Finding(Verdict.BROKEN, "enough pairs can be run", str(error))]
    return conclude(question, control, trial), findings
