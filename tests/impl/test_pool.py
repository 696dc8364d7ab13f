"""The pool: a thread for every call, whatever threads tell of themselves, and fewer by need."""

import logging
import queue
import threading
from typing import override

import pytest

from worker_service.errors import HostExhaustedError
from worker_service.pool import Pool

WAIT_S = 10


class LateToTell(queue.SimpleQueue[object]):
    """Work of which a thread gets some after it found none, before it can say so."""

    def __init__(self) -> None:
        super().__init__()
        self.found_none, self.may_tell = threading.Event(), threading.Event()

    @override
    def get_nowait(self) -> object:
        try:
            return super().get_nowait()
        except queue.Empty:
            self.found_none.set()
            self.may_tell.wait(WAIT_S)
            raise

    @override
    def get(self, block: bool = True, timeout: float | None = None) -> object:
        self.found_none.set()  # before 3.13 a thread does not ask first
        return super().get(block, timeout)


def test_a_call_has_a_thread_although_another_thread_told_too_late_that_it_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = LateToTell()
    monkeypatch.setattr(queue, "SimpleQueue", lambda: work)
    end = threading.Event()
    begun = [threading.Event() for _ in range(3)]

    def call(number: int) -> None:
        begun[number].set()
        end.wait(WAIT_S)

    with Pool(10) as pool:
        try:
            assert work.found_none.wait(WAIT_S)
            pool.submit(call, 0)
            work.may_tell.set()
            assert begun[0].wait(WAIT_S)
            pool.submit(call, 1)
            pool.submit(call, 2)
            assert all(each.wait(WAIT_S / 2) for each in begun)
        finally:
            end.set()


def test_calls_wait_for_a_thread_where_the_host_gives_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    left = 1

    def start_one(thread: threading.Thread) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    gate = threading.Event()
    with caplog.at_level(logging.WARNING), Pool(3) as pool:
        held = pool.submit(gate.wait, WAIT_S)
        waiting = [pool.submit(str, number) for number in range(2)]
        gate.set()
        assert [each.result(WAIT_S) for each in waiting] == ["0", "1"]
        assert held.result(WAIT_S)
        assert caplog.text.count("no more than 1 threads for calls") == 1
    with pytest.raises(HostExhaustedError, match="a thread for calls: can't start"):
        Pool(3)


def test_a_thread_that_is_free_is_used_before_another_is_started() -> None:
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    class Telling(Pool):
        @override
        def _finish(self, _: object = None) -> None:
            super()._finish()
            ended.put(None)

    with Telling(10) as pool:
        ended.get(timeout=WAIT_S)  # its own first
        for number in range(20):
            pool.submit(str, number)
            ended.get(timeout=WAIT_S)
        assert len(pool._threads) == 1
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(str, 1)
        assert pool._unfinished == 0
