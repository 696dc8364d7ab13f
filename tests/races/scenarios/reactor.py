"""The reactor: callbacks from other threads, also while it stops."""

import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from harness.races.instrumentation import Watch
from harness.races.scenario import Scenario
from tests.races.support import JOIN_MAX_S, Kernel, model_kernel, run_threads
from worker_service import reactor as reactor_module
from worker_service.reactor import Reactor

WATCH = Watch((Reactor, reactor_module.Timer))


@contextmanager
def a_reactor() -> Iterator[Reactor]:
    with model_kernel(Kernel()):
        reactor = Reactor("reactor")
        yield reactor
        reactor.stop(JOIN_MAX_S)


def two_hand_in_work() -> None:
    done: list[str] = []
    both = threading.Semaphore(0)
    with a_reactor() as reactor:

        def work(name: str) -> None:
            done.append(name)
            both.release()

        def first() -> None:
            reactor.call_soon(lambda: work("first"))

        def second() -> None:
            reactor.call_soon(lambda: work("second"))

        run_threads(first, second)
        both.acquire()
        both.acquire()
    assert sorted(done) == ["first", "second"], done


def one_hands_in_work_twice() -> None:
    order: list[str] = []
    done = threading.Event()
    with a_reactor() as reactor:

        def later() -> None:
            order.append("first")
            reactor.call_later(1000, lambda: order.append("timer"))

        def last() -> None:
            order.append("second")
            done.set()

        def caller() -> None:
            reactor.call_soon(later)
            reactor.call_soon(last)

        begun_s = time.monotonic()
        run_threads(caller)
        done.wait()
        assert time.monotonic() == begun_s, "a callback waited for a timer"
    assert order == ["first", "second"], order


def a_callback_fails() -> None:
    done: list[str] = []
    logging.getLogger(reactor_module.__name__).disabled = True
    with a_reactor() as reactor:

        def fails() -> None:
            raise ValueError

        def caller() -> None:
            reactor.call_soon(fails)
            reactor.call_soon(lambda: done.append("sound"))

        run_threads(caller)
    assert done == ["sound"]


def work_comes_while_it_stops() -> None:
    done: list[str] = []
    handed_in: list[bool] = []
    wanted: list[str] = []
    # New descriptors get the lowest free numbers, which are those that the reactor closed.
    strangers: list[int] = []
    with model_kernel(Kernel()):
        reactor = Reactor("reactor")

        def caller() -> None:
            reactor.call_soon(lambda: done.append("work"))
            handed_in.append(True)

        def stopper() -> None:
            wanted.extend(["work"] * len(handed_in))
            reactor.stop(JOIN_MAX_S)
            strangers.extend(os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))

        try:
            run_threads(caller, stopper)
            woken = select.select(strangers, [], [], 0)[0]
        finally:
            for fd in strangers:
                os.close(fd)
    assert not woken, "the reactor was woken through a descriptor that it had closed"
    assert done in (wanted, ["work"]), "a callback queued before a stop did not run"


scenario = partial(Scenario, explores=(reactor_module,), watch=WATCH)


SCENARIOS = (
    scenario(
        "reactor.call-soon", "Every callback runs exactly once.",
        two_hand_in_work,
    ),
    scenario(
        "reactor.order", "Callbacks of one thread run in their order, without a time-out.",
        one_hands_in_work_twice,
    ),
    scenario(
        "reactor.failure", "A failing callback does not keep others from running.",
        a_callback_fails,
    ),
    scenario(
        "reactor.stop", "A callback queued before a stop runs; a later one has no effect.",
        work_comes_while_it_stops,
    ),
)  # fmt: skip
