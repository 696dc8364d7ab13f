"""The pool: a thread for every call, and no more threads than needed or possible."""

import gc
import logging
import threading
import weakref

import pytest

from harness.host.clock import poll_until
from worker_service.errors import HostExhaustedError
from worker_service.pool import Pool

WAIT_S = 10


def threads() -> int:
    return sum(thread.name.startswith("rpc_") for thread in threading.enumerate())


def test_every_call_below_the_maximum_gets_a_thread_at_once() -> None:
    end = threading.Event()
    begun = [threading.Semaphore(0) for _ in range(20)]

    def call(number: int) -> None:
        begun[number].release()
        end.wait(6 * WAIT_S)  # longer than the test waits for the last one

    with Pool(20) as pool:
        try:
            for number in range(20):
                pool.submit(call, number)
            assert all(each.acquire(timeout=WAIT_S) for each in begun)
            waiting = pool.submit(call, 0)
            assert not waiting.running()
        finally:
            end.set()
        waiting.result(WAIT_S)


def test_call_submitted_while_a_call_ends_gets_a_thread() -> None:
    # The thread of the first call still runs its callbacks; the second call needs no other thread,
    # the third does.
    submitted, go_on, end = threading.Event(), threading.Event(), threading.Event()

    def at_end(_: object) -> None:
        submitted.set()
        go_on.wait(WAIT_S)

    with Pool(10) as pool:
        before = threads()
        held = threading.Event()
        first = pool.submit(held.wait, WAIT_S)
        first.add_done_callback(at_end)
        held.set()
        assert submitted.wait(WAIT_S)
        second = pool.submit(end.wait, WAIT_S)
        assert threads() == before
        third = pool.submit(str, 3)
        assert threads() == before + 1
        go_on.set()
        assert third.result(WAIT_S) == "3"
        end.set()
        assert second.result(WAIT_S)


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


def test_free_thread_is_reused_before_another_is_started() -> None:
    before = threads()
    with Pool(10) as pool:
        for _ in range(20):
            assert pool.submit(str, 1).result(WAIT_S) == "1"
        assert threads() - before == 1


def test_errors_of_calls_are_in_their_futures_and_end_no_thread() -> None:
    def end_thread(error: BaseException) -> None:
        raise error

    with Pool(1) as pool:
        for error in (ValueError("wrong"), SystemExit(3), KeyboardInterrupt()):
            assert pool.submit(end_thread, error).exception(WAIT_S) is error
        assert pool.submit(str, 1).result(WAIT_S) == "1"


def test_finished_call_is_not_kept() -> None:
    class Request:
        pass

    with Pool(1) as pool:
        request = Request()
        kept = weakref.ref(request)
        pool.submit(id, request).result(WAIT_S)
        with pytest.raises(TypeError):
            pool.submit(int, request).result(WAIT_S)  # type: ignore[arg-type]
        del request
        gc.collect()  # the test's own exception
        poll_until(lambda: kept() is None or None, WAIT_S, "the idle thread to drop the request")


def test_submit_after_shutdown_is_refused() -> None:
    with Pool(1) as pool:
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after the shutdown"):
            pool.submit(str, 1)


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_runs_or_cancels_the_calls_that_wait(cancel: bool) -> None:
    before = threads()
    begun, go = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return go.wait(WAIT_S)

    pool = Pool(1)
    running = pool.submit(wait)
    waiting = [pool.submit(str, number) for number in range(3)]
    assert begun.wait(WAIT_S)
    pool.shutdown(wait=False, cancel_futures=cancel)
    assert [each.cancelled() for each in waiting] == [cancel] * 3
    go.set()
    pool.shutdown()
    assert running.result(0)
    assert [each.done() for each in waiting] == [True] * 3
    assert threads() == before


def test_cancelled_call_does_not_run_and_frees_its_thread() -> None:
    before = threads()
    gate = threading.Event()
    with Pool(1) as pool:
        pool.submit(gate.wait, WAIT_S)
        ran: list[int] = []
        waiting = pool.submit(ran.append, 1)
        assert waiting.cancel()
        gate.set()
        assert pool.submit(str, 1).result(WAIT_S) == "1"
        assert not ran
        assert threads() == before + 1
