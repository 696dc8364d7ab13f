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
    """Work of which a first thread gets some after it found none, before it can say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first_found_none, self.first_may_tell = threading.Event(), threading.Event()
        self.first_has_work, self.second_waits = threading.Event(), threading.Event()

    @override
    def get_nowait(self) -> object:
        first = threading.current_thread().name.endswith("_0")
        if not first:
            self.first_has_work.wait(WAIT_S)
        try:
            return super().get_nowait()
        except queue.Empty:
            if first:
                self.first_found_none.set()
                self.first_may_tell.wait(WAIT_S)
            raise

    @override
    def get(self, block: bool = True, timeout: float | None = None) -> object:
        first = threading.current_thread().name.endswith("_0")
        (self.first_found_none if first else self.second_waits).set()
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
            assert work.first_found_none.wait(WAIT_S)
            pool.submit(call, 0)
            work.first_may_tell.set()
            assert begun[0].wait(WAIT_S)
            work.first_has_work.set()
            if len(pool._threads) > 1:  # as the base has it: two are counted idle, one is
                assert work.second_waits.wait(WAIT_S)
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
    with Pool(10) as pool:
        ended: queue.SimpleQueue[object] = queue.SimpleQueue()
        for number in range(20):
            pool.submit(str, number).add_done_callback(ended.put)
            ended.get(timeout=WAIT_S)
        assert len(pool._threads) == 1
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(str, 1)
        assert pool._unfinished == 0
