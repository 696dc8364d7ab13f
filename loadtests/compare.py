"""Compares two servers honestly: pairs of runs side by side, in random order, a control first.

First A is compared with itself. When that shows a difference the machine is too restless, and the
comparison is BROKEN. Then B is compared with A in the same way. It FAILs when B is worse by more
than is allowed and the interval leaves out "no difference".

Running leaves results with labels; what they say is a fold over these (`concluded`), now or later.
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.record.verdict import BrokenError, Finding, Verdict
from loadtests.profiles import LIMITS, PROFILES, Profile
from loadtests.results import LoadResult
from loadtests.session import Point, ServerChoice, Session
from loadtests.statistics import PAIRS_MIN, Effect, effect

# A pair that was disturbed is left out, and another one run for it.
ATTEMPTS_PER_PAIR: Final = 2
# A control known no better than this sees a slowdown of a fifth in 19 of 20 trials (simulated with
# the noise that gives this width; at 20 % it is two of three, and a fifth is found by luck).
WIDEST: Final = 0.13
CONTROL: Final = "A and A"
TRIAL: Final = "A and B"
# Of a pair's labels: the two runs of A in a control are told apart, for whoever reads them again.
SIDES: Final[Mapping[str, tuple[str, str]]] = {CONTROL: ("A", "A again"), TRIAL: ("A", "B")}


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


def run_pairs(session: Session, question: Question, name: str) -> None:
    """Run pairs of A and A, or of A and B, until enough gave a figure or too many gave none."""
    chance = random.Random(f"{question.seed} {name}")  # noqa: S311 - an order, no secret
    order: list[str] = []
    servers = dict(zip(SIDES[name], (question.a, question.b), strict=True))
    if name == CONTROL:
        servers = dict.fromkeys(SIDES[name], question.a)
    for number in range(ATTEMPTS_PER_PAIR * question.pairs):
        # Both orders equally often: what favours the first or the second of a pair cancels out.
        order = chance.sample(sorted(servers), 2) if number % 2 == 0 else order[::-1]
        for side in order:
            labels = {"pairs": name, "pair": str(number + 1), "side": side}
            session.run(Point(question.profile, labels), servers[side])
        if len(usable(session.results, question, name)) == question.pairs:
            break


def usable(
    results: Sequence[LoadResult], question: Question, name: str
) -> Sequence[tuple[float, float]]:
    """Return the figures of the pairs of which both sides gave one, at most as many as were asked.

    Raises:
        BrokenError: the sides of a pair are not told apart, as in runs of before that was recorded.
    """
    pairs: dict[str, dict[str, float | None]] = {}
    for result in results:
        if result.labels.get("pairs") == name:
            pair = pairs.setdefault(result.labels["pair"], {})
            if result.labels["side"] in pair:
                raise BrokenError(f"{name}: the two sides of a pair have one name; run it again")
            pair[result.labels["side"]] = _value(result, question.figure)
    first, second = SIDES[name]
    found = [(pair.get(first), pair.get(second)) for pair in pairs.values()]
    return [(a, b) for a, b in found if a is not None and b is not None][: question.pairs]


def pairs_of(results: Sequence[LoadResult], question: Question, name: str) -> Pairs:
    """Return what can be compared.

    Raises:
        BrokenError: too many pairs came to nothing.
    """
    found = usable(results, question, name)
    if len(found) < PAIRS_MIN:
        raise BrokenError(
            f"{name}: {len(found)} of {question.pairs} pairs gave a figure; at least {PAIRS_MIN} "
            "must"
        )
    return Pairs(name, tuple(a for a, _ in found), tuple(b for _, b in found))


def _value(result: LoadResult, figure: str) -> float | None:
    if result.verdict in {Verdict.BROKEN, Verdict.FAIL}:
        return None
    value = result.figures.get(figure)
    return value if value and value > 0 else None


def conclude(question: Question, *done: Pairs) -> dict[str, Any]:
    """Return what pairs came to, as it stands in `results.json`."""
    effects = []
    ratios = []
    for pairs in done:
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
        "allowed": question.allowed, "asked_pairs": question.pairs, "effects": effects,
        "ratios": ratios,
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
        f"A does not differ from itself in {question.figure}, and a fifth would be seen in 19 of "
        "20 trials",
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
    run_pairs(session, question, CONTROL)
    control = usable(session.results, question, CONTROL)
    if len(control) >= PAIRS_MIN:
        pairs = pairs_of(session.results, question, CONTROL)
        if judge_control(question, pairs).verdict is Verdict.PASS:
            run_pairs(session, question, TRIAL)
    return concluded(question, session.results)


def concluded(
    question: Question, results: Sequence[LoadResult]
) -> tuple[Mapping[str, Any], Sequence[Finding]]:
    """Return what the results of a comparison come to, and what that says; a pure fold."""
    findings = []
    done: list[Pairs] = []
    try:
        done.append(pairs_of(results, question, CONTROL))
        findings.append(judge_control(question, done[0]))
        if findings[0].verdict is Verdict.PASS:
            done.append(pairs_of(results, question, TRIAL))
            findings.append(judge_trial(question, done[1]))
    except BrokenError as error:
        findings.append(Finding(Verdict.BROKEN, "enough pairs can be run", str(error)))
    return conclude(question, *done), findings


def asked_again(saved: Mapping[str, Any]) -> Question:
    """Return the question of a saved comparison, for `concluded`; its servers are not needed.

    Raises:
        BrokenError: it does not say what was asked, as runs of before did not.
    """
    try:
        return Question(
            ServerChoice(), ServerChoice(),
            dataclasses.replace(PROFILES[0], name=saved["profile"]),
            saved["figure"], saved["asked_pairs"], saved["allowed"], saved["seed"],
        )  # fmt: skip
    except KeyError as error:
        raise BrokenError(f"this comparison does not say what it asked ({error})") from error
