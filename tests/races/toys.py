"""Small models for the tests of the race detection itself: some correct, some broken."""

import sys
import threading

from harness.races.instrumentation import Watch
from harness.races.linearizability import Model, Operation, OperationHistory
from harness.races.scenario import Scenario
from tests.races.support import run_threads


class Counter:
    """Counts, with a lock or without."""

    def __init__(self) -> None:
        self.value = 0
        self.lock = threading.Lock()

    def careless(self) -> None:
        """Count without the lock."""
        self.value += 1

    def careful(self) -> None:
        """Count under the lock."""
        with self.lock:
            self.value += 1

    def in_two_steps(self) -> int:
        """Read in one critical section, write in the next: no data race, but a lost update."""
        with self.lock:
            seen = self.value
        with self.lock:
            self.value = seen + 1
        return seen + 1


def racy() -> None:
    counter = Counter()
    run_threads(counter.careless, counter.careless)
    assert counter.value == 2, counter.value


def sound() -> None:
    counter = Counter()
    run_threads(counter.careful, counter.careful)
    assert counter.value == 2, counter.value


def deadlocks() -> None:
    one, other = threading.Lock(), threading.Lock()

    def forth() -> None:
        with one, other:
            pass

    def back() -> None:
        with other, one:
            pass

    run_threads(forth, back)


class CounterModel(Model):
    """The sequential model of a counter: each call returns the next number."""

    name = "counter"

    def init(self) -> int:
        return 0

    def step(self, state: int, operation: Operation) -> tuple[bool, int]:
        # A call that raised has no answer, but may have counted.
        return operation.output in {state + 1, None}, state + 1


def not_linearizable() -> None:
    counter = Counter()
    history = OperationHistory()

    def caller() -> None:
        history.call("one", "count", None, counter.in_two_steps)

    def other() -> None:
        history.call("other", "count", None, counter.in_two_steps)

    run_threads(caller, other)
    history.require_linearizable(CounterModel())


RUNS: list[int] = []


def differs_from_run_to_run() -> None:
    RUNS.append(1)
    counter = Counter()
    run_threads(*[counter.careful] * (2 + len(RUNS) % 2))


WATCH = Watch((Counter,))
HERE = (sys.modules[__name__],)

SCENARIOS = (
    Scenario("toy.racy", "Two counts make two.", racy, HERE, WATCH),
    Scenario("toy.sound", "Two counts make two.", sound, HERE, WATCH),
    Scenario("toy.deadlock", "Both threads end.", deadlocks, HERE, WATCH),
    Scenario("toy.history", "Each number is returned once.", not_linearizable, HERE, WATCH, True),
    Scenario(
        "toy.nondeterministic",
        "Each run starts as many threads.",
        differs_from_run_to_run,
        HERE,
        WATCH,
    ),
)
