"""Compares two servers: pairs of runs beside each other, in random order, a control first.

The control compares A with itself. If it shows a difference, the machine varies too much, and the
comparison is BROKEN. The trial compares B with A in the same way. It FAILs if B is worse by more
than the allowed share and the interval excludes "no difference".

The runs leave labelled results; the conclusion is a fold over these (`conclude`), now or later.
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.record.verdict import BrokenError, Finding, Verdict
from loadtests.figures import Figure, Limit, figure_named
from loadtests.profiles import PROFILES, Profile
from loadtests.results import Comparison, LoadResult, PairRatio, PairsEffect
from loadtests.session import Point, ServerChoice, Session
from loadtests.statistics import PAIRS_MIN, Effect, effect

# A disturbed pair is left out, and replaced by another one.
ATTEMPTS_PER_PAIR: Final = 2
# With a control of this half-width a slowdown of a fifth is found in 19 of 20 trials (simulated
# with the noise that gives this width); at 20 % it is found in two of three.
WIDEST: Final = 0.13
CONTROL: Final = "A and A"
TRIAL: Final = "A and B"
# The labels of a pair's two runs. Those of a control differ too, so that saved runs can be paired.
SIDES: Final[Mapping[str, tuple[str, str]]] = {CONTROL: ("A", "A again"), TRIAL: ("A", "B")}


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared.

    Attributes:
        a, b: the servers.
        profile: the load.
        figure: the compared figure.
        pairs: number of pairs of the trial; the control runs the same number.
        allowed: how much worse B may be, as a share.
        seed: of the random order in which a pair runs.
    """

    a: ServerChoice
    b: ServerChoice
    profile: Profile
    figure: Figure
    pairs: int
    allowed: float
    seed: str

    @property
    def more_is_better(self) -> bool:
        """Whether a larger figure is a better one."""
        return self.figure.limit is Limit.AT_LEAST


@dataclass(frozen=True, slots=True)
class Pairs:
    """The figures of some pairs."""

    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]


def run_pairs(session: Session, question: Question, name: str) -> None:
    """Run pairs of A and A, or of A and B, until enough are usable or too many were run."""
    chance = random.Random(f"{question.seed} {name}")  # noqa: S311 - an order, no secret
    order: list[str] = []
    servers = dict(zip(SIDES[name], (question.a, question.b), strict=True))
    if name == CONTROL:
        servers = dict.fromkeys(SIDES[name], question.a)
    for number in range(ATTEMPTS_PER_PAIR * question.pairs):
        # Both orders equally often: an advantage of the first or the second run cancels out.
        order = chance.sample(sorted(servers), 2) if number % 2 == 0 else order[::-1]
        for side in order:
            labels = {"pairs": name, "pair": str(number + 1), "side": side}
            session.run(Point(question.profile, labels), servers[side])
        if len(usable(session.results, question, name)) == question.pairs:
            break


def usable(
    results: Sequence[LoadResult], question: Question, name: str
) -> Sequence[tuple[float, float]]:
    """Return the figures of the pairs of which both runs have one; at most `question.pairs`.

    Raises:
        BrokenError: the two runs of a pair have the same label, as in runs of older versions.
    """
    pairs: dict[str, dict[str, float | None]] = {}
    for result in results:
        if result.labels.get("pairs") == name:
            pair = pairs.setdefault(result.labels["pair"], {})
            if result.labels["side"] in pair:
                raise BrokenError(f"{name}: both runs of a pair have one label; run it again")
            pair[result.labels["side"]] = _value(result, question.figure)
    first, second = SIDES[name]
    found = [(pair.get(first), pair.get(second)) for pair in pairs.values()]
    return [(a, b) for a, b in found if a is not None and b is not None][: question.pairs]


def pairs_of(results: Sequence[LoadResult], question: Question, name: str) -> Pairs:
    """Return the usable pairs.

    Raises:
        BrokenError: they are too few.
    """
    found = usable(results, question, name)
    if len(found) < PAIRS_MIN:
        raise BrokenError(
            f"{name}: {len(found)} of {question.pairs} pairs have the figure; at least {PAIRS_MIN} "
            "are required"
        )
    return Pairs(name, tuple(a for a, _ in found), tuple(b for _, b in found))


def _value(result: LoadResult, figure: Figure) -> float | None:
    if result.verdict in {Verdict.BROKEN, Verdict.FAIL}:
        return None
    value = figure.of(result.figures)
    return value if value and value > 0 else None


def summarize(question: Question, *done: Pairs) -> Comparison:
    """Return the effects and ratios of pairs, for `results.json`."""
    effects, ratios = [], []
    for pairs in done:
        found = effect(pairs.a, pairs.b)
        effects.append(
            PairsEffect(
                pairs.name,
                sorted(pairs.a)[len(pairs.a) // 2],
                sorted(pairs.b)[len(pairs.b) // 2],
                **dataclasses.asdict(found),
                says=in_words(question, found),
            )
        )
        ratios += [
            PairRatio(pairs.name, number, right / left)
            for number, (left, right) in enumerate(zip(pairs.a, pairs.b, strict=True))
        ]
    return Comparison(
        question.figure.name, question.profile.name, question.seed, question.allowed,
        question.pairs, tuple(effects), tuple(ratios),
    )  # fmt: skip


def in_words(question: Question, found: Effect) -> str:
    """Return an effect in words."""
    if not found.differs:
        return "no difference found"
    better = (found.ratio > 1) == question.more_is_better
    return f"{abs(found.ratio - 1):.1%} {'better' if better else 'worse'}"


def judge_control(question: Question, control: Pairs) -> Finding:
    """Judge whether this machine is steady enough to compare on."""
    found = effect(control.a, control.b)
    varies = found.differs and abs(found.ratio - 1) > question.allowed
    half_width = math.sqrt(found.high / found.low) - 1
    return Finding(
        Verdict.BROKEN if varies or half_width > WIDEST else Verdict.PASS,
        f"A does not differ from itself in {question.figure.name}, and a fifth would be found in "
        "19 of 20 trials",
        f"{_interval(found)}: known to {half_width:.0%}",
        f"1, or at most {question.allowed:.0%} from it; known to {WIDEST:.0%}",
    )


def judge_trial(question: Question, trial: Pairs) -> Finding:
    """Judge B."""
    found = effect(trial.a, trial.b)
    worse = (found.ratio < 1) == question.more_is_better
    fails = found.differs and worse and abs(found.ratio - 1) > question.allowed
    return Finding(
        Verdict.FAIL if fails else Verdict.PASS,
        f"B is not worse than A in {question.figure.name}",
        f"{_interval(found)}: {in_words(question, found)}",
        f"at most {question.allowed:.0%} worse",
    )


def _interval(found: Effect) -> str:
    return (
        f"B / A = {found.ratio:.3f}, {found.confidence:.0%} interval {found.low:.3f} to "
        f"{found.high:.3f}, p = {found.p:.4f}, {found.pairs} pairs"
    )


def run_comparison(session: Session, question: Question) -> tuple[Comparison, Sequence[Finding]]:
    """Run the control, and if it passes the trial; return the comparison and its findings."""
    run_pairs(session, question, CONTROL)
    control = usable(session.results, question, CONTROL)
    if len(control) >= PAIRS_MIN:
        pairs = pairs_of(session.results, question, CONTROL)
        if judge_control(question, pairs).verdict is Verdict.PASS:
            run_pairs(session, question, TRIAL)
    return conclude(question, session.results)


def conclude(
    question: Question, results: Sequence[LoadResult]
) -> tuple[Comparison, Sequence[Finding]]:
    """Return the comparison that results make, and its findings; a pure fold."""
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
    return summarize(question, *done), findings


def question_of(saved: Comparison) -> Question:
    """Return the question of a saved comparison, for `conclude`; its servers are not needed.

    Raises:
        BrokenError: it lacks the question, as in runs of older versions.
    """
    if not saved.asked_pairs:
        raise BrokenError("this comparison was saved without its question")
    return Question(
        ServerChoice(), ServerChoice(), dataclasses.replace(PROFILES[0], name=saved.profile),
        figure_named(saved.figure), saved.asked_pairs, saved.allowed, saved.seed,
    )  # fmt: skip
