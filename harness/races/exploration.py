"""Runs a model under many schedules and reports the first that breaks it.

The scheduler is the library `interleave-test`'s; this module and `exhaustive` are the only ones
that know it, so that another can take its place. A technique says which schedules are tried, and
who watches:

  dfs               every schedule with at most two preemptions, at each primitive's operation and
                    at each access that nothing keeps apart (`points`); it must come to its end
  random, pct       schedules of chance, between bytecode instructions; pct after Burckhardt et al.,
                    "A Randomized Scheduler with Probabilistic Guarantees" (ASPLOS 2010)
  detector          schedules of chance, with the happens-before detector watching
  linearizability   as pct, for models that record a history and judge it
"""

import platform
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import interleave_test

from harness.races.detector import Detector
from harness.races.exhaustive import Search, let_others_in, one_point_each
from harness.races.instrumentation import Listener, watched
from harness.races.primitives import traced
from harness.races.report import DataRace, Found
from harness.races.scenario import Scenario
from harness.races.stacks import Stacks
from harness.races.switch_points import Points
from harness.record.verdict import BrokenError

SCHEDULE_MAX_S: Final = 30.0
# Schedules of chance from which an exhaustive search learns what races before it begins, and how
# often it may begin again because it has learnt more.
_LEARNING_SCHEDULES: Final = 30
_SEARCHES_MAX: Final = 4
_OWN_DIRECTORY: Final = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Technique:
    """How schedules are chosen.

    Attributes:
        name: see the module.
        strategy: the library's name for it.
        granularity: "line" or "opcode": the steps of a schedule.
        schedules: how many a scenario gets, unless asked otherwise; at most, where it is
            exhaustive.
        exhaustive: whether it must come to the end of what there is.
        watches: whether the detector watches.
        histories: whether it is for scenarios with histories only.
    """

    name: str
    strategy: str
    granularity: str
    schedules: int
    exhaustive: bool = False
    watches: bool = False
    histories: bool = False


TECHNIQUES: Final = (
    Technique("detector", "random", "line", 100, watches=True),
    Technique("dfs", "dfs", "line", 30_000, exhaustive=True),
    Technique("random", "random", "opcode", 200),
    Technique("pct", "pct", "opcode", 400),
    Technique("linearizability", "pct", "opcode", 400, histories=True),
)


@contextmanager
def one_step(*, of_its_own: bool = True) -> Iterator[None]:
    """Make what a model's surroundings do one step: others come in before it, and then after it.

    Args:
        of_its_own: else it is part of the step before it, and nobody comes in between.
    """
    if of_its_own:
        let_others_in()
    with interleave_test.no_interleave():
        yield


class FoundError(AssertionError):
    """The detector found something in this schedule."""

    def __init__(self, found: Sequence[Found]) -> None:
        super().__init__("\n" + "\n".join(each.text() for each in found))


@dataclass(frozen=True, slots=True)
class ScheduleStep:
    """One decision: which thread went on, and where it stood."""

    thread: str
    place: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that broke a model.

    Attributes:
        kind: "exception" or "deadlock".
        what: the exception with its trace, or who waits for what.
        choices: the schedule.
        granularity: what one choice stands for.
        python: the version that counted so.
        steps: who did what (at most the last 1000 decisions).
        racing: what was known to race, where that decides what one choice stands for.
        found: what the detector found in that schedule, as text, if it watched and `what` is else.
        stacks: where each thread of a deadlock waited, as text.
    """

    kind: str
    what: str
    choices: tuple[int, ...]
    granularity: str
    python: str
    steps: tuple[ScheduleStep, ...] = ()
    racing: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exploration:
    """What became of one scenario under one technique."""

    scenario: str
    technique: str
    seed: int
    schedules: int
    exhausted: bool
    seconds: float
    failure: Failure | None


def technique_named(name: str) -> Technique:
    """Return a technique.

    Raises:
        BrokenError: there is none of that name.
    """
    for technique in TECHNIQUES:
        if technique.name == name:
            return technique
    known = ", ".join(technique.name for technique in TECHNIQUES)
    raise BrokenError(f"no technique is called {name!r}; there are {known}")


def explore(
    scenario: Scenario, technique: Technique, seed: int, schedules: int | None = None
) -> Exploration:
    """Try schedules until one breaks the model or there are no more.

    Raises:
        BrokenError: the model is not determined by the schedule, blocks where no schedule can
            reach, or was to be explored to its end and was not.
    """
    started_s = time.monotonic()
    limit = technique.schedules if schedules is None else schedules
    if technique.exhaustive:
        run = _search_everything(scenario, seed, limit)
    else:
        run = _Run(scenario, technique)
        run.go(technique.strategy, seed, limit)
    return Exploration(
        scenario.name,
        technique.name,
        seed,
        run.result.schedules_run,
        run.result.exhausted,
        time.monotonic() - started_s,
        run.failure(),
    )


def replay(scenario: Scenario, technique: Technique, failure: Failure) -> Failure | None:
    """Run one recorded schedule again; return how it broke, or None.

    Raises:
        BrokenError: the schedule does not fit: another Python, or another code.
    """
    if failure.python != platform.python_version():
        raise BrokenError(
            f"the schedule was recorded with Python {failure.python}, this is "
            f"{platform.python_version()}: choices count instructions, which differ; use that "
            "Python or search again with the same seed"
        )
    schedule = interleave_test.Schedule(
        list(failure.choices), technique.granularity, failure.python
    )
    run = _Run(scenario, technique, frozenset(failure.racing))
    strategy = interleave_test.ReplayStrategy(schedule)  # type: ignore[no-untyped-call]
    run.go(strategy, seed=0, schedules=1)
    return run.failure()


def _search_everything(scenario: Scenario, seed: int, limit: int) -> "_Run":
    technique = technique_named("dfs")
    learnt: set[str] = set()
    run = _Run(scenario, technique, learnt=learnt)
    run.go("random", seed, _LEARNING_SCHEDULES)
    for _ in range(_SEARCHES_MAX):
        if not run.result.ok:
            return run
        known = frozenset(learnt)
        run = _Run(scenario, technique, known, learnt)
        run.go(Search(known, learnt), seed, limit)
        if not run.result.ok or (run.result.exhausted and known == learnt):
            return run
        if run.result.schedules_run == limit:
            break
    raise BrokenError(
        f"{scenario.name}: {run.result.schedules_run} schedules were tried and there are more, so "
        "nothing is said of all of them; make the model smaller or allow more (--technique dfs "
        f"--schedules {2 * limit})"
    )


class _Run:
    """Many schedules of one model under one strategy."""

    result: interleave_test.Result

    def __init__(
        self,
        scenario: Scenario,
        technique: Technique,
        racing: frozenset[str] = frozenset(),
        learnt: set[str] | None = None,
    ) -> None:
        self._scenario = scenario
        self._technique = technique
        self._racing = racing
        self._learnt = set() if learnt is None else learnt
        self._listener: Listener | None = None
        # Of the latest schedule.
        self._found: tuple[str, ...] = ()
        self._stacks = Stacks(_is_the_schedulers)

    def go(self, strategy: interleave_test.Strategy | str, seed: int, schedules: int) -> None:
        """Run.

        Raises:
            BrokenError: threads of the model did not end.
        """
        with warnings.catch_warnings(), self._watched(), self._stacks.watching():
            # Threads that could not be ended are told in the result, and are looked at there.
            warnings.simplefilter("ignore", RuntimeWarning)
            self.result = interleave_test.explore(
                self._model,
                iterations=schedules,
                seed=seed,
                strategy=strategy,
                granularity=self._technique.granularity,
                include=self._scenario.files,
                exclude=[_OWN_DIRECTORY],
                timeout=SCHEDULE_MAX_S,
                raise_on_failure=False,
            )
        if self.result.leaked_threads:
            raise BrokenError(
                f"{self._scenario.name}: {self.result.leaked_threads} threads of its model did not "
                "end; it waits for something that is not of `threading`"
            )

    def failure(self) -> Failure | None:
        """Return how the model broke.

        Raises:
            BrokenError: it is not the model that broke.
        """
        failure = self.result.failure
        if failure is None:
            return None
        if failure.kind == "hang" or isinstance(failure.exception, interleave_test.InterleaveError):
            raise BrokenError(
                f"{self._scenario.name} cannot be explored: {failure.kind}: "
                f"{failure.exception or ''} {failure.details}"
            )
        hangs = failure.kind == "deadlock"
        what = failure.details if hangs else _model_s(failure.traceback or "")
        # It has told them itself: a failure of the detector's.
        told = isinstance(failure.exception, FoundError)
        return Failure(
            failure.kind,
            what.strip("\n"),
            tuple(failure.schedule.choices),
            self._technique.granularity,
            failure.schedule.python,
            tuple(ScheduleStep(step.thread_name, step.location) for step in failure.steps),
            tuple(sorted(self._racing)),
            () if told else self._found,
            self._stacks.texts() if hangs else (),
        )

    def _watched(self) -> AbstractContextManager[None]:
        if self._technique.watches or self._technique.exhaustive:
            return watched(self._scenario.watch, lambda: self._listener)
        return nullcontext()

    def _model(self) -> None:
        # The model's own thread makes, starts, joins and asserts: that is not what is explored.
        self._found = ()
        with interleave_test.no_interleave(), self._stacks.of_a_schedule():
            if self._technique.watches or self._technique.exhaustive:
                self._watch_the_model()
            else:
                self._scenario.model()

    def _watch_the_model(self) -> None:
        detector = Detector()
        self._listener = detector
        if self._technique.exhaustive:
            self._listener = Points(detector, self._racing, let_others_in)
        try:
            with (
                one_point_each() if self._technique.exhaustive else nullcontext(),
                traced(detector),
            ):
                self._scenario.model()
        finally:
            self._listener = None
            found = detector.found
            self._found = tuple(each.text() for each in found)
            self._learnt.update(each.variable for each in found if isinstance(each, DataRace))
        if self._technique.watches and found:
            raise FoundError(found)


def _is_the_schedulers(error: BaseException) -> bool:
    return type(error).__module__.startswith(f"{interleave_test.__name__}.")


def _model_s(trace: str) -> str:
    """Return a trace without the frames that only run the model."""
    ours = "|".join(
        re.escape(f'  File "{own}')
        for own in (_OWN_DIRECTORY, Path(interleave_test.__file__).parent)
    )
    # A frame is its line, and what is indented deeper; the exception's own text is not.
    return re.sub(rf"(?m)^(?:{ours}).*\n(?:    .*\n)*", "", trace)
