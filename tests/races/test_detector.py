"""The happens-before detector: silent on what is ordered, loud on what is not, whatever happens."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from harness.races.detector import Detector
from harness.races.instrumentation import Watch, watched
from harness.races.primitives import traced
from harness.races.report import DataRace, LockCycle


class Box:
    """Something to race for."""

    defaulted = 0

    def __init__(self) -> None:
        self.value = 0
        self.published = 0
        self.table: dict[int, int] = {}
        self.work: deque[int] = deque()

    def answer(self) -> int:
        """Be replaced."""
        return self.defaulted


WATCH = Watch((Box,), atomic={"Box.published": "a test"})

REAL_THREAD = threading.Thread


@contextmanager
def detecting() -> Iterator[Detector]:
    detector = Detector()
    with traced(detector), watched(WATCH, lambda: detector):
        yield detector


def run(*functions: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def ordered_by(maker: Callable[[], tuple[Callable[[], object], Callable[[], object]]]) -> list[str]:
    """Let one thread write and hand over, another take over and write; return what was found."""
    with detecting() as detector:
        box = Box()
        hand_over, take_over = maker()

        def first() -> None:
            box.value = 1
            hand_over()

        def second() -> None:
            take_over()
            box.value = 2

        run(first, second)
        return [found.text() for found in detector.found]


def an_event() -> tuple[Callable[[], object], Callable[[], object]]:
    event = threading.Event()
    return event.set, event.wait


def a_semaphore() -> tuple[Callable[[], object], Callable[[], object]]:
    semaphore = threading.Semaphore(0)
    return semaphore.release, semaphore.acquire


def a_queue() -> tuple[Callable[[], object], Callable[[], object]]:
    channel: queue.Queue[int] = queue.Queue()
    return lambda: channel.put(1), channel.get


def a_simple_queue() -> tuple[Callable[[], object], Callable[[], object]]:
    channel: queue.SimpleQueue[int] = queue.SimpleQueue()
    return lambda: channel.put(1), channel.get


def a_condition() -> tuple[Callable[[], object], Callable[[], object]]:
    condition = threading.Condition()
    told: list[bool] = []

    def tell() -> None:
        with condition:
            told.append(True)
            condition.notify_all()

    def hear() -> None:
        with condition:
            condition.wait_for(lambda: bool(told), 10)

    return tell, hear


def a_barrier() -> tuple[Callable[[], object], Callable[[], object]]:
    barrier = threading.Barrier(2)
    return barrier.wait, barrier.wait


@pytest.mark.parametrize(
    "maker", [an_event, a_semaphore, a_queue, a_simple_queue, a_condition, a_barrier]
)
def test_what_a_primitive_orders_is_no_race(
    maker: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    assert ordered_by(maker) == []


def test_what_nothing_orders_is_a_race_with_both_stacks() -> None:
    # A lock that the detector does not see keeps them apart: the race does not happen.
    unseen = threading.Lock()
    unseen.acquire()

    def maker() -> tuple[Callable[[], object], Callable[[], object]]:
        return unseen.release, unseen.acquire

    (text,) = ordered_by(maker)
    assert "DATA RACE on Box.value" in text
    assert "box.value = 1" in text
    assert "box.value = 2" in text
    assert "holding no lock" in text


def test_a_lock_keeps_two_threads_apart_only_if_both_take_it() -> None:
    with detecting() as detector:
        box = Box()
        lock = threading.Lock()

        def careful() -> None:
            with lock:
                box.value += 1

        def careless() -> None:
            box.value += 1

        run(careful, careful)
        assert detector.found == []
        run(careful, careless)
        assert {type(found) for found in detector.found} == {DataRace}


def test_what_a_container_holds_is_watched_too() -> None:
    with detecting() as detector:
        box = Box()

        def writer() -> None:
            box.table[threading.get_ident()] = 1

        run(writer, writer)
        assert [found.variable for found in detector.found if isinstance(found, DataRace)] == [
            "what Box.table holds"
        ]


def races_between(*functions: Callable[[Box], object]) -> set[str]:
    """Let threads touch one box, one after the other and with nothing between them."""
    with detecting() as detector:
        box = Box()
        for function in functions:
            # Started before any is joined would be of chance; a join that is not told is not.
            thread = REAL_THREAD(target=function, args=(box,))
            thread.start()
            thread.join(10)
        return {found.variable for found in detector.found if isinstance(found, DataRace)}


def overwrite(name: str) -> Callable[[Box], object]:
    return lambda box: setattr(box, name, 1)


@pytest.mark.parametrize(
    ("variable", "touch"),
    [
        ("defaulted", lambda box: box.defaulted),
        ("answer", lambda box: box.answer),
        ("value", lambda box: delattr(box, "value")),
    ],
)
def test_a_default_a_replaced_method_and_a_deletion_are_seen(
    variable: str, touch: Callable[[Box], object]
) -> None:
    assert races_between(overwrite(variable), touch) == {f"Box.{variable}"}


def test_a_default_is_read_before_anybody_has_written() -> None:
    assert races_between(lambda box: box.defaulted, overwrite("defaulted")) == {"Box.defaulted"}


def test_a_method_that_is_only_called_is_no_value() -> None:
    assert races_between(lambda box: box.answer(), lambda box: box.answer()) == set()


def merge(box: Box) -> None:
    box.table |= {1: 1}


def test_a_merge_writes_what_a_dict_holds() -> None:
    found = races_between(merge, lambda box: 1 in box.table)
    assert "what Box.table holds" in found


def test_a_deque_hands_on_what_its_users_knew() -> None:
    with detecting() as detector:
        box = Box()
        ready = threading.Event()

        def putter() -> None:
            box.value = 1
            box.work.append(1)
            ready.set()

        def taker() -> None:
            ready.wait(10)
            box.work.popleft()
            box.value = 2

        run(putter, taker)
        assert detector.found == []


def test_what_is_declared_atomic_is_no_race_and_orders() -> None:
    with detecting() as detector:
        box = Box()

        def writer() -> None:
            box.value = 7
            box.published = 1

        def reader() -> None:
            while not box.published:
                pass
            assert box.value == 7

        run(writer, reader)
        assert detector.found == []


def test_start_and_join_order() -> None:
    with detecting() as detector:
        box = Box()
        box.value = 1
        run(lambda: setattr(box, "value", 2))
        box.value = 3
        assert detector.found == []


AnyLock = AbstractContextManager[object]  # a Lock or an RLock


def take_both(first: AnyLock, second: AnyLock) -> Callable[[], None]:
    def take() -> None:
        with first, second:
            pass

    return take


def test_two_orders_of_two_locks_are_told_though_nobody_hung() -> None:
    with detecting() as detector:
        one, other = threading.Lock(), threading.Lock()
        run(take_both(one, other))
        run(take_both(other, one))
        (found,) = detector.found
        assert isinstance(found, LockCycle)
        assert len(found.steps) == 2
        assert "can wait for each other for ever" in found.text()


def test_a_lock_around_both_orders_keeps_them_from_hanging() -> None:
    with detecting() as detector:
        gate, one, other = threading.Lock(), threading.Lock(), threading.Lock()

        def gated(take: Callable[[], None]) -> Callable[[], None]:
            def take_gated() -> None:
                with gate:
                    take()

            return take_gated

        run(gated(take_both(one, other)))
        run(gated(take_both(other, one)))
        assert detector.found == []


def test_one_thread_cannot_hang_with_itself() -> None:
    with detecting() as detector:
        one, other = threading.Lock(), threading.Lock()

        def both_ways() -> None:
            take_both(one, other)()
            take_both(other, one)()

        run(both_ways)
        assert detector.found == []


def test_a_lock_that_is_taken_again_by_who_holds_it_is_no_second_order() -> None:
    with detecting() as detector:
        outer, inner = threading.RLock(), threading.Lock()

        def again() -> None:
            with outer, inner, outer:
                pass

        run(take_both(outer, inner))
        run(again)
        assert detector.found == []


def test_who_took_both_orders_first_hides_nobody() -> None:
    with detecting() as detector:
        one, other = threading.Lock(), threading.Lock()

        def both_ways() -> None:
            take_both(one, other)()
            take_both(other, one)()

        run(both_ways)
        assert detector.found == []
        run(take_both(one, other))
        assert {type(found) for found in detector.found} == {LockCycle}


def test_two_orders_that_were_first_taken_behind_a_gate_are_told_without_it() -> None:
    with detecting() as detector:
        gate, one, other = threading.Lock(), threading.Lock(), threading.Lock()

        def gated(take: Callable[[], None]) -> Callable[[], None]:
            def take_gated() -> None:
                with gate:
                    take()

            return take_gated

        for take in (take_both(one, other), take_both(other, one)):
            run(gated(take))
        assert detector.found == []
        for take in (take_both(one, other), take_both(other, one)):
            run(take)
        (found,) = detector.found
        assert isinstance(found, LockCycle)


def test_two_threads_of_one_name_are_two() -> None:
    with detecting() as detector:
        one, other = threading.Lock(), threading.Lock()
        for take in (take_both(one, other), take_both(other, one)):
            thread = threading.Thread(target=take, name="same")
            thread.start()
            thread.join(10)
        (found,) = detector.found
        assert isinstance(found, LockCycle)


def test_two_steps_of_one_thread_are_no_circle_of_three() -> None:
    with detecting() as detector:
        locks = [threading.Lock() for _ in range(3)]

        def two_steps() -> None:
            take_both(locks[0], locks[1])()
            take_both(locks[1], locks[2])()

        run(two_steps)
        run(take_both(locks[2], locks[0]))
        assert detector.found == []
        run(take_both(locks[1], locks[2]))
        (found,) = detector.found
        assert isinstance(found, LockCycle)
        assert len(found.steps) == 3


def test_everything_is_as_it_was_afterwards() -> None:
    before = (threading.Lock, threading.Event, threading.Thread, queue.SimpleQueue)
    methods = (Box.__getattribute__, Box.__setattr__, Box.__delattr__)
    with detecting():
        assert threading.Lock is not before[0]
    assert (threading.Lock, threading.Event, threading.Thread, queue.SimpleQueue) == before
    assert (Box.__getattribute__, Box.__setattr__, Box.__delattr__) == methods
