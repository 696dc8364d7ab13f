"""The happens-before detector: accepts ordered accesses, reports unordered ones in every run."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from harness.races.detector import Detector
from harness.races.findings import DataRace, LockCycle
from harness.races.instrumentation import Watch, instrument
from harness.races.primitives import trace_primitives


class Box:
    """Attributes of every kind that is watched."""

    defaulted = 0

    def __init__(self) -> None:
        self.value = 0
        self.published = 0
        self.table: dict[int, int] = {}
        self.work: deque[int] = deque()

    def answer(self) -> int:
        """A method that tests replace by a value."""
        return self.defaulted


WATCH = Watch((Box,), atomic={"Box.published": "a test"})

REAL_THREAD = threading.Thread


@contextmanager
def run_detector() -> Iterator[Detector]:
    detector = Detector()
    with trace_primitives(detector), instrument(WATCH, lambda: detector):
        yield detector


def run(*functions: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def findings_with(
    maker: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
) -> list[str]:
    """Write in one thread, hand over to another that writes; return the findings."""
    with run_detector() as detector:
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
    ready: list[bool] = []

    def notify() -> None:
        with condition:
            ready.append(True)
            condition.notify_all()

    def wait() -> None:
        with condition:
            condition.wait_for(lambda: bool(ready), 10)

    return notify, wait


def a_barrier() -> tuple[Callable[[], object], Callable[[], object]]:
    barrier = threading.Barrier(2)
    return barrier.wait, barrier.wait


@pytest.mark.parametrize(
    "maker", [an_event, a_semaphore, a_queue, a_simple_queue, a_condition, a_barrier]
)
def test_accesses_ordered_by_a_primitive_are_not_reported(
    maker: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    assert findings_with(maker) == []


def test_unordered_writes_are_reported_with_both_stacks() -> None:
    # A lock that the detector does not see orders the writes: the race does not happen.
    unseen = threading.Lock()
    unseen.acquire()

    def maker() -> tuple[Callable[[], object], Callable[[], object]]:
        return unseen.release, unseen.acquire

    (text,) = findings_with(maker)
    assert "DATA RACE on Box.value" in text
    assert "box.value = 1" in text
    assert "box.value = 2" in text
    assert "holding no lock" in text


def test_lock_orders_two_threads_only_if_both_acquire_it() -> None:
    with run_detector() as detector:
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


def test_writes_to_the_contents_of_a_dict_are_reported() -> None:
    with run_detector() as detector:
        box = Box()

        def writer() -> None:
            box.table[threading.get_ident()] = 1

        run(writer, writer)
        assert [found.variable for found in detector.found if isinstance(found, DataRace)] == [
            "contents of Box.table"
        ]


def races_between(*functions: Callable[[Box], object]) -> set[str]:
    """Access one box in threads that run one after the other, unordered; return what races."""
    with run_detector() as detector:
        box = Box()
        for function in functions:
            # Deterministic, since each is joined; the join is the real class's, not recorded.
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
def test_class_default_replaced_method_and_deletion_are_watched(
    variable: str, touch: Callable[[Box], object]
) -> None:
    assert races_between(overwrite(variable), touch) == {f"Box.{variable}"}


def test_read_of_a_class_default_before_any_write_is_watched() -> None:
    assert races_between(lambda box: box.defaulted, overwrite("defaulted")) == {"Box.defaulted"}


def test_calls_of_a_method_are_not_accesses() -> None:
    assert races_between(lambda box: box.answer(), lambda box: box.answer()) == set()


def merge(box: Box) -> None:
    box.table |= {1: 1}


def test_merge_writes_the_contents_of_a_dict() -> None:
    found = races_between(merge, lambda box: 1 in box.table)
    assert "contents of Box.table" in found


def test_deque_orders_append_before_popleft() -> None:
    with run_detector() as detector:
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


def test_atomic_attribute_is_not_reported_and_orders() -> None:
    with run_detector() as detector:
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


def test_thread_start_and_join_order_accesses() -> None:
    with run_detector() as detector:
        box = Box()
        box.value = 1
        run(lambda: setattr(box, "value", 2))
        box.value = 3
        assert detector.found == []


AnyLock = AbstractContextManager[object]  # a Lock or an RLock


def hold_gate(gate: AnyLock, take: Callable[[], None]) -> Callable[[], None]:
    def take_gated() -> None:
        with gate:
            take()

    return take_gated


def take_both(first: AnyLock, second: AnyLock) -> Callable[[], None]:
    def take() -> None:
        with first, second:
            pass

    return take


def take_both_ways(one: AnyLock, other: AnyLock) -> Callable[[], None]:
    def take() -> None:
        take_both(one, other)()
        take_both(other, one)()

    return take


def test_two_lock_orders_are_reported_without_a_deadlock() -> None:
    with run_detector() as detector:
        one, other = threading.Lock(), threading.Lock()
        run(take_both(one, other))
        run(take_both(other, one))
        (found,) = detector.found
        assert isinstance(found, LockCycle)
        assert len(found.steps) == 2
        assert "potential deadlock" in found.text()


def test_two_lock_orders_under_a_common_lock_are_not_reported() -> None:
    with run_detector() as detector:
        gate, one, other = threading.Lock(), threading.Lock(), threading.Lock()

        run(hold_gate(gate, take_both(one, other)))
        run(hold_gate(gate, take_both(other, one)))
        assert detector.found == []


def test_two_lock_orders_of_one_thread_are_not_reported() -> None:
    with run_detector() as detector:
        one, other = threading.Lock(), threading.Lock()

        run(take_both_ways(one, other))
        assert detector.found == []


def test_reacquired_rlock_is_not_a_second_order() -> None:
    with run_detector() as detector:
        outer, inner = threading.RLock(), threading.Lock()

        def again() -> None:
            with outer, inner, outer:
                pass

        run(take_both(outer, inner))
        run(again)
        assert detector.found == []


def test_thread_with_both_lock_orders_does_not_hide_a_later_thread() -> None:
    with run_detector() as detector:
        one, other = threading.Lock(), threading.Lock()

        run(take_both_ways(one, other))
        assert detector.found == []
        run(take_both(one, other))
        assert {type(found) for found in detector.found} == {LockCycle}


def test_two_lock_orders_first_seen_under_a_common_lock_are_reported_without_it() -> None:
    with run_detector() as detector:
        gate, one, other = threading.Lock(), threading.Lock(), threading.Lock()

        for take in (take_both(one, other), take_both(other, one)):
            run(hold_gate(gate, take))
        assert detector.found == []
        for take in (take_both(one, other), take_both(other, one)):
            run(take)
        (found,) = detector.found
        assert isinstance(found, LockCycle)


def test_two_threads_with_one_name_are_distinct() -> None:
    with run_detector() as detector:
        one, other = threading.Lock(), threading.Lock()
        for take in (take_both(one, other), take_both(other, one)):
            thread = threading.Thread(target=take, name="same")
            thread.start()
            thread.join(10)
        (found,) = detector.found
        assert isinstance(found, LockCycle)


def test_lock_cycle_needs_a_different_thread_for_each_step() -> None:
    with run_detector() as detector:
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


def test_instrumentation_restores_every_class() -> None:
    before = (threading.Lock, threading.Event, threading.Thread, queue.SimpleQueue)
    methods = (Box.__getattribute__, Box.__setattr__, Box.__delattr__)
    with run_detector():
        assert threading.Lock is not before[0]
    assert (threading.Lock, threading.Event, threading.Thread, queue.SimpleQueue) == before
    assert (Box.__getattribute__, Box.__setattr__, Box.__delattr__) == methods
