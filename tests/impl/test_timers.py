"""The timers that bound calls."""

import math
import threading
import time
from collections.abc import Iterator

import pytest

from worker_service.timers import Timers

LONG_S = 60.0


def timer_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "rpc_timers"}


@pytest.fixture
def timers() -> Iterator[Timers]:
    before = timer_threads()
    running = Timers()
    yield running
    running.close()
    assert timer_threads() == before


def test_timer_repeats_after_the_seconds_it_returns_until_infinity(timers: Timers) -> None:
    called_at_s: list[float] = []
    done = threading.Event()

    def call() -> float:
        called_at_s.append(time.monotonic())
        if len(called_at_s) < 3:
            return 0.2
        done.set()
        return math.inf

    began_s = time.monotonic()
    with timers.calling(call, 0.2):
        assert done.wait(10)
    assert len(called_at_s) == 3
    assert called_at_s[-1] - began_s > 0.55


def test_timer_fires_before_a_later_one_and_not_after_its_block(timers: Timers) -> None:
    called: list[str] = []
    done = threading.Event()

    def call(name: str) -> float:
        called.append(name)
        done.set()
        return math.inf

    with timers.calling(lambda: call("late"), LONG_S):
        with timers.calling(lambda: call("ended"), 0.2):
            pass
        with timers.calling(lambda: call("soon"), 0.4):
            assert done.wait(LONG_S / 2)
    assert called == ["soon"]


def test_failing_timer_is_logged_and_other_timers_fire(
    timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    def fail() -> float:
        raise ValueError("on purpose")

    def call() -> float:
        done.set()
        return math.inf

    eight_thousand_years_s = 8000 * 365 * 86_400.0
    with (
        timers.calling(lambda: math.inf, eight_thousand_years_s),
        timers.calling(fail, 0.0),
        timers.calling(call, 0.2),
    ):
        assert done.wait(10)
    assert "on purpose" in caplog.text


def test_close_does_not_wait_for_a_callback_that_never_returns() -> None:
    timers = Timers()
    begun, answer = threading.Event(), threading.Event()

    def hang() -> float:
        begun.set()
        answer.wait(60)
        return math.inf

    closer = threading.Thread(target=timers.close, daemon=True)
    try:
        with timers.calling(hang, 0.0):
            assert begun.wait(10)
            closer.start()
            closer.join(20)
            assert not closer.is_alive()
    finally:
        answer.set()
