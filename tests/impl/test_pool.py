"""The pool: a thread for every call, and no more threads than needed or possible."""

import logging
import queue
import threading
from typing import override

import pytest

from worker_service.errors import HostExhaustedError
from worker_service.pool import Pool

WAIT_S = 10


class LateIdleReport(queue.SimpleQueue[object]):
    """A work queue that delays a thread which found it empty, until it has work again."""

    def __init__(self) -> None:
        super().__init__()
        self.found_none, self.may_report = threading.Event(), threading.Event()

    @override
    def get_nowait(self) -> object:
        try:
            return super().get_nowait()
        except queue.Empty:
            self.found_none.set()
            self.may_report.wait(WAIT_S)
            raise

    @override
    def get(self, block: bool = True, timeout: float | None = None) -> object:
        self.found_none.set()  # before 3.13 a thread does not call get_nowait first
        return super().get(block, timeout)


def test_call_gets_a_thread_although_a_busy_thread_still_counts_as_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = LateIdleReport()
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
            work.may_report.set()
            assert begun[0].wait(WAIT_S)
            pool.submit(call, 1)
            pool.submit(call, 2)
            assert all(each.wait(WAIT_S / 2) for each in begun)
        finally:
            end.set()


def test_calls_wait_if_the_host_allows_no_more_threads(
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
        assert caplog.text.count("only 1 threads for calls") == 1
    with pytest.raises(HostExhaustedError, match="a thread for calls: can't start"):
        Pool(3)


def run_call(pool: Pool) -> None:
    """Run a call, and return once the pool has counted its end."""
    go, ended = threading.Event(), threading.Event()
    # Added while the call runs, so it is called after the pool's own callback.
    pool.submit(go.wait, WAIT_S).add_done_callback(lambda _: ended.set())
    go.set()
    assert ended.wait(WAIT_S)


def test_free_thread_is_reused_before_another_is_started() -> None:
    def threads() -> int:
        return sum(thread.name.startswith("rpc") for thread in threading.enumerate())

    before = threads()
    with Pool(10) as pool:
        run_call(pool)  # the pool's own first call may still run beside it
        started = threads() - before
        for _ in range(20):
            run_call(pool)
        assert threads() - before == started <= 2


def test_submit_after_shutdown_is_refused() -> None:
    with Pool(1) as pool:
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(str, 1)
