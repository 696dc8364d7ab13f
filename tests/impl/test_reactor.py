"""The reactor's callbacks: timers, descriptors, errors, and work submitted after its end."""

import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from worker_service.reactor import READABLE, Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    running = Reactor("test")
    yield running
    running.stop(10)


def on_reactor(reactor: Reactor, call: Callable[[], object]) -> None:
    """Run something on the reactor's thread and wait for it."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    reactor.call_soon(run)
    assert done.wait(10)


def test_timer_fires_unless_cancelled(reactor: Reactor) -> None:
    fired = threading.Event()
    cancelled = threading.Event()

    def schedule() -> None:
        reactor.call_later(0.01, cancelled.set).cancel()
        reactor.call_later(0.02, fired.set)

    on_reactor(reactor, schedule)
    assert fired.wait(10)
    assert not cancelled.is_set()


def test_readable_descriptor_calls_back_until_unwatched(reactor: Reactor) -> None:
    read_fd, write_fd = os.pipe()
    calls: list[bytes] = []
    twice = threading.Event()

    def readable() -> None:
        calls.append(os.read(read_fd, 1))
        if len(calls) == 2:
            reactor.unwatch(read_fd)
            twice.set()

    on_reactor(reactor, lambda: reactor.watch(read_fd, READABLE, readable))
    os.write(write_fd, b"abc")
    assert twice.wait(10)
    on_reactor(reactor, lambda: None)
    assert calls == [b"a", b"b"]
    os.close(read_fd)
    os.close(write_fd)


def test_failing_callback_is_logged_and_later_callbacks_run(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise KeyError("no such key")

    reactor.call_soon(fail)
    on_reactor(reactor, lambda: None)
    assert "KeyError" in caplog.text


def test_call_soon_after_stop_writes_to_no_other_descriptor() -> None:
    reactor = Reactor("ended")
    reactor.stop(10)
    # New descriptors get the lowest free numbers: the reactor's own, if it had been closed.
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(20)]
    try:
        reactor.call_soon(lambda: None)
        assert select.select(others, [], [], 0) == ([], [], [])
    finally:
        for fd in others:
            os.close(fd)
