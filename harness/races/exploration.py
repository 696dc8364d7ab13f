"""Runs a model under many schedules and reports the first that breaks it.

The scheduler is the library `interleave-test`'s. Only this module and `exhaustive` import it, so
that another scheduler can replace it. A technique defines the schedules that are tried:

  dfs               every schedule with at most two preemptions, at each operation on a primitive
                    and each unordered access (`switch_points`); must finish
  random, pct       random schedules that switch between bytecode instructions; pct as in
                    Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of
                    Finding Bugs" (ASPLOS 2010)
  detector          random schedules under the happens-before detector
  linearizability   as pct, for models that record an operation history and check it
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
from harness.races.exhaustive import ExhaustiveSearch, switch_point, use_single_point_primitives
from harness.races.findings import DataRace, RaceFinding
from harness.races.instrumentation import Listener, instrument
from harness.races.primitives import trace_primitives
from harness.races.scenario import Scenario
from harness.races.stacks import Stacks
from harness.races.switch_points import SwitchPoints
from harness.record.verdict import BrokenError

SCHEDULE_MAX_S: Final = 30.0
# Random schedules from which an exhaustive search learns what races before it begins, and how often
# it may restart because it has learnt more.
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
        schedules: the default number of schedules per scenario; the maximum if exhaustive.
        exhaustive: whether it must try every schedule.
        watches: whether the detector watches, and a race alone is a failure.
        histories: whether it is only for scenarios that record an operation history.
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
def atomic_step(*, switch_before: bool = True) -> Iterator[None]:
    """Run the body, code of a model's environment, as one step that no other thread interrupts.

    Args:
        switch_before: whether other threads may run before it; if not, it joins the previous step.
    """
    if switch_before:
        switch_point()
    with interleave_test.no_interleave():
        yield


class RaceFoundError(AssertionError):
    """The detector found a race or a lock-order cycle in this schedule."""

    def __init__(self, found: Sequence[RaceFinding]) -> None:
        super().__init__("\n" + "\n".join(each.text() for each in found))


@dataclass(frozen=True, slots=True)
class ScheduleStep:
    """One decision of the scheduler: the thread that ran next, and its location."""

    thread: str
    place: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that broke a model.

    Attributes:
        kind: "exception" or "deadlock".
        what: the exception with its traceback, or which thread waits for what.
        choices: the schedule.
        granularity: the unit of one choice, see `Technique`.
        python: the version whose lines or instructions the choices count.
        steps: at most the last 1000 decisions.
        racing: the variables known to race, where those decide what one choice counts.
        found: the detector's findings in that schedule, as text, unless `what` has them.
        stacks: the stack of each thread in a deadlock, as text.
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
    """The result of one scenario under one technique."""

    scenario: str
    technique: str
    seed: int
    schedules: int
    exhausted: bool
    seconds: float
    failure: Failure | None


def find_technique(name: str) -> Technique:
    """Return a technique.

    Raises:
        BrokenError: no technique has that name.
    """
    for technique in TECHNIQUES:
        if technique.name == name:
            return technique
    known = ", ".join(technique.name for technique in TECHNIQUES)
    raise BrokenError(f"unknown technique {name!r}; known: {known}")


def explore(
    scenario: Scenario, technique: Technique, seed: int, schedules: int | None = None
) -> Exploration:
    """Try schedules until one breaks the model or all were tried.

    Raises:
        BrokenError: the schedule does not determine the model, the model blocks on something that
            the scheduler does not control, or an exhaustive search did not finish.
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
    """Run one recorded schedule again; return the failure, or None if the model no longer breaks.

    Raises:
        BrokenError: the schedule is of another Python version, or of other code.
    """
    if failure.python != platform.python_version():
        raise BrokenError(
            f"the schedule was recorded with Python {failure.python}, this is "
            f"{platform.python_version()}: choices count instructions, which differ between "
            "versions; use that Python, or explore again with the same seed"
        )
    schedule = interleave_test.Schedule(
        list(failure.choices), technique.granularity, failure.python
    )
    run = _Run(scenario, technique, frozenset(failure.racing))
    strategy = interleave_test.ReplayStrategy(schedule)  # type: ignore[no-untyped-call]
    run.go(strategy, seed=0, schedules=1)
    return run.failure()


def _search_everything(scenario: Scenario, seed: int, limit: int) -> "_Run":
    technique = find_technique("dfs")
    learnt: set[str] = set()
    run = _Run(scenario, technique, learnt=learnt)
    run.go("random", seed, _LEARNING_SCHEDULES)
    for _ in range(_SEARCHES_MAX):
        if not run.result.ok:
            return run
        known = frozenset(learnt)
        run = _Run(scenario, technique, known, learnt)
        run.go(ExhaustiveSearch(known, learnt), seed, limit)
        if not run.result.ok or (run.result.exhausted and known == learnt):
            return run
        if run.result.schedules_run == limit:
            break
    raise BrokenError(
        f"{scenario.name}: the exhaustive search did not finish within {run.result.schedules_run} "
        "schedules; make the model smaller or allow more (--technique dfs "
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
        # The findings of the latest schedule.
        self._found: tuple[str, ...] = ()
        self._stacks = Stacks(_is_scheduler_error)

    def go(self, strategy: interleave_test.Strategy | str, seed: int, schedules: int) -> None:
        """Try schedules; the outcome is in `result`.

        Raises:
            BrokenError: threads of the model did not end.
        """
        with warnings.catch_warnings(), self._watch(), self._stacks.record():
            # The library warns of threads that did not end; `result` counts them too.
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
                "end; the model waits for something other than primitives of `threading`"
            )

    def failure(self) -> Failure | None:
        """Return how the model broke.

        Raises:
            BrokenError: the model cannot be explored.
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
        what = failure.details if hangs else _without_runner_frames(failure.traceback or "")
        # The text of such a failure is the detector's findings.
        in_text = isinstance(failure.exception, RaceFoundError)
        return Failure(
            failure.kind,
            what.strip("\n"),
            tuple(failure.schedule.choices),
            self._technique.granularity,
            failure.schedule.python,
            tuple(ScheduleStep(step.thread_name, step.location) for step in failure.steps),
            tuple(sorted(self._racing)),
            () if in_text else self._found,
            self._stacks.texts() if hangs else (),
        )

    def _watch(self) -> AbstractContextManager[None]:
        if self._technique.watches or self._technique.exhaustive:
            return instrument(self._scenario.watch, lambda: self._listener)
        return nullcontext()

    def _model(self) -> None:
        # The model's main thread only creates, starts, joins and asserts: that is not explored.
        self._found = ()
        with interleave_test.no_interleave(), self._stacks.begin_schedule():
            if self._technique.watches or self._technique.exhaustive:
                self._run_watched_model()
            else:
                self._scenario.model()

    def _run_watched_model(self) -> None:
        detector = Detector()
        self._listener = detector
        if self._technique.exhaustive:
            self._listener = SwitchPoints(detector, self._racing, switch_point)
        try:
            with (
                use_single_point_primitives() if self._technique.exhaustive else nullcontext(),
                trace_primitives(detector),
            ):
                self._scenario.model()
        finally:
            self._listener = None
            found = detector.found
            self._found = tuple(each.text() for each in found)
            self._learnt.update(each.variable for each in found if isinstance(each, DataRace))
        if self._technique.watches and found:
            raise RaceFoundError(found)


def _is_scheduler_error(error: BaseException) -> bool:
    return type(error).__module__.startswith(f"{interleave_test.__name__}.")


def _without_runner_frames(trace: str) -> str:
    """Return a traceback without the frames that only run the model."""
    ours = "|".join(
        re.escape(f'  File "{own}')
        for own in (_OWN_DIRECTORY, Path(interleave_test.__file__).parent)
    )
    # A frame is one line and the more deeply indented lines after it, unlike the exception's text.
    return re.sub(rf"(?m)^(?:{ours}).*\n(?:    .*\n)*", "", trace)
