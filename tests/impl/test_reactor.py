"""The reactor's callbacks: timers, descriptors, errors, and work submitted after its end."""

import os
import queue
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.descriptors import open_descriptors
from tests.support.reactor import on_reactor
from worker_service.reactor import READABLE, Guarded, Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    running = Reactor("test")
    yield running
    running.stop(10)


@contextmanager
def eventfd(value: int) -> Iterator[int]:
    """Return a descriptor that is readable if the value is not 0."""
    fd = os.eventfd(value, os.EFD_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def test_timer_fires_unless_cancelled(reactor: Reactor) -> None:
    fired = threading.Event()
    cancelled = threading.Event()

    def schedule() -> None:
        reactor.call_later(0.01, cancelled.set).cancel()
        reactor.call_later(0.02, fired.set)

    on_reactor(reactor, schedule)
    assert fired.wait(10)
    assert not cancelled.is_set()


def test_timer_of_ten_years_leaves_the_thread_running(reactor: Reactor) -> None:
    calls: list[int] = []
    on_reactor(reactor, lambda: reactor.call_later(10 * 365 * 24 * 3600.0, lambda: None))
    for number in (1, 2):  # the first may come before the poll that waits for the timer
        on_reactor(reactor, partial(calls.append, number))
    assert calls == [1, 2]


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


def test_event_of_an_unwatched_descriptor_is_not_taken_for_that_of_its_number_s_next_owner(
    reactor: Reactor,
) -> None:
    calls: list[str] = []
    with eventfd(1) as one, eventfd(1) as two, eventfd(0) as silent:

        def first(own: int, other: int) -> None:
            """Do as the end of a job and the start of the next; the other's event is there."""
            calls.append("first")
            reactor.unwatch(own)
            reactor.unwatch(other)
            os.dup2(silent, other)
            reactor.watch(other, READABLE, lambda: calls.append("without an event"))

        def watch_both() -> None:
            reactor.watch(one, READABLE, lambda: first(one, two))
            reactor.watch(two, READABLE, lambda: first(two, one))

        on_reactor(reactor, watch_both)
        for _ in range(2):  # the round of both events has ended then
            on_reactor(reactor, lambda: None)
        assert calls == ["first"]
        for fd in (one, two):
            on_reactor(reactor, partial(reactor.unwatch, fd))


def test_failing_callback_is_logged_and_later_callbacks_run(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise KeyError("no such key")

    reactor.call_soon(fail)
    on_reactor(reactor, lambda: None)
    assert "KeyError" in caplog.text


def test_descriptor_whose_callback_fails_is_not_watched_any_more(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    with eventfd(1) as fails, eventfd(0) as works:

        def fail() -> None:
            calls.append("fails")
            raise KeyError("no such key")

        def succeed() -> None:
            os.eventfd_read(works)
            calls.append("works")

        on_reactor(reactor, lambda: reactor.watch(fails, READABLE, fail))
        on_reactor(reactor, lambda: reactor.watch(works, READABLE, succeed))
        for _ in range(3):  # three more turns of the loop; the first descriptor stays readable
            os.eventfd_write(works, 1)
            on_reactor(reactor, lambda: None)
        assert calls == ["fails", "works", "works", "works"]
        on_reactor(reactor, lambda: reactor.unwatch(fails))
        on_reactor(reactor, lambda: reactor.unwatch(works))
    assert caplog.text.count("KeyError") == 2, "it is logged once: as a trace, and its last line"


def test_guarded_callbacks_that_fail_are_reported_to_their_owner(reactor: Reactor) -> None:
    reported: queue.Queue[Exception] = queue.Queue()
    guarded = Guarded(reactor, reported.put)

    def fail() -> None:
        guarded.unwatch(readable)
        raise KeyError("no such key")

    with eventfd(1) as readable:
        on_reactor(reactor, lambda: guarded.watch(readable, READABLE, fail))
        assert isinstance(reported.get(timeout=10), KeyError)
        on_reactor(reactor, lambda: guarded.call_later(0.01, fail))
        assert isinstance(reported.get(timeout=10), KeyError)


def test_descriptor_that_cannot_be_watched_is_not_watched(reactor: Reactor, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # a directory is always ready: epoll_ctl(2) refuses it
    try:
        with pytest.raises(PermissionError):
            reactor.watch(fd, READABLE, lambda: None)
        reactor.unwatch(fd)  # nothing to do: the kernel would refuse that, too
    finally:
        os.close(fd)


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


def test_stopped_reactors_leave_no_descriptor() -> None:
    before = open_descriptors()
    for _ in range(5):
        Reactor("test").stop(10)
    assert open_descriptors() == before
