"""Streams: admission slots, the shared byte budget, and a stream concurrent with its cancel."""

import threading
import time

from harness.races.instrumentation import Watch
from harness.races.linearizability import Model, Operation, OperationHistory
from harness.races.scenario import Scenario
from tests.races.support import run_threads
from tests.support.log import append
from worker_service import follow as follow_module
from worker_service import log as log_module
from worker_service.errors import CapacityReachedError
from worker_service.follow import MESSAGE_MIN_BYTES, Admission, Batching, ByteBudget, Slot, follow
from worker_service.log import LogReader, OutputLog

WATCH = Watch((Admission, Slot, ByteBudget, OutputLog, LogReader))


def admit(admission: Admission) -> Slot | None:
    try:
        return admission.admit()
    except CapacityReachedError:
        return None


def one_slot_for_two() -> None:
    admission = Admission(1)
    slots: list[Slot | None] = []

    def first() -> None:
        slots.append(admit(admission))

    def second() -> None:
        slots.append(admit(admission))

    run_threads(first, second)
    assert slots.count(None) == 1, "the slot has two streams, or none"
    assert admission.taken() == 1


def a_slot_is_freed_twice() -> None:
    admission = Admission(2)
    slot = admission.admit()
    admission.admit()
    run_threads(slot.release, slot.release)
    assert admission.taken() == 1, (
        f"{admission.taken()} of 2 slots are taken after one was released"
    )


class SlotsModel(Model):
    """The sequential model of slots: one is given while one is free."""

    name = "slots"

    def init(self) -> int:
        return 0

    def step(self, state: int, operation: Operation) -> tuple[bool, int]:
        if operation.f == "admit":
            admitted = state < 1
            return operation.output == admitted, state + admitted
        if operation.f == "release":
            return state > 0, state - 1
        return operation.output == state, state


def slots_have_an_order() -> None:
    admission = Admission(1)
    history = OperationHistory()

    def streams(name: str) -> None:
        slots: list[Slot | None] = []

        def admitted() -> bool:
            slots.append(admit(admission))
            return slots[-1] is not None

        if history.call(name, "admit", None, admitted):
            history.call(name, "release", None, slots[-1].release)  # type: ignore[union-attr]

    def first() -> None:
        streams("first")

    def second() -> None:
        streams("second")

    def observer() -> None:
        history.call("observer", "taken", None, admission.taken)

    run_threads(first, second, observer)
    history.require_linearizable(SlotsModel())


def the_budget_holds() -> None:
    limit_bytes = 4 * MESSAGE_MIN_BYTES
    budget = ByteBudget(limit_bytes)
    budget.join()
    budget.join()
    both = threading.Semaphore(0)
    most: list[int] = []

    def stream() -> None:
        granted_bytes = budget.reserve(limit_bytes)
        most.append(budget.held_bytes())
        both.release()
        budget.release(granted_bytes)
        budget.leave()

    def other() -> None:
        stream()

    run_threads(stream, other)
    assert max(most) <= limit_bytes, f"{max(most)} of {limit_bytes} bytes are held"
    assert budget.held_bytes() == 0, f"{budget.held_bytes()} bytes are never released"


def a_stream_against_its_cancel() -> None:
    log = OutputLog()
    budget = ByteBudget(10 * MESSAGE_MIN_BYTES)
    reader = log.reader_at(0)
    data = bytearray()
    batching = Batching(flush_interval_s=0)

    def stream() -> None:
        for chunk in follow(reader, batching, budget, lease=lambda: 1e6):
            data.extend(chunk.data)

    def writer() -> None:
        append(log, b"abc")
        log.close()

    run_threads(stream, writer, reader.cancel)
    assert bytes(data) in {b"", b"abc"}, bytes(data)
    assert budget.held_bytes() == 0, f"{budget.held_bytes()} bytes are never released"


def a_silent_stream_is_cancelled() -> None:
    log = OutputLog()
    admission = Admission(1)
    slot = admission.admit()
    reader = log.reader_at(0)

    def stream() -> None:
        # As in the service: the slot is released however the stream ends.
        try:
            list(follow(reader, Batching(), ByteBudget(1), lease=lambda: threading.TIMEOUT_MAX))
        finally:
            slot.release()

    def client() -> None:
        reader.cancel()

    begun_s = time.monotonic()
    run_threads(stream, client)
    assert time.monotonic() == begun_s, "the cancel was noticed only at a time-out"
    assert admission.taken() == 0


EXPLORED = (follow_module,)


SCENARIOS = (
    Scenario(
        "follow.admission", "One of two streams gets the only slot, the other is refused.",
        one_slot_for_two, EXPLORED, WATCH,
    ),
    Scenario(
        "follow.release", "A slot that two threads release is released once.",
        a_slot_is_freed_twice, EXPLORED, WATCH,
    ),
    Scenario(
        "follow.slots", "Admissions and releases are linearizable: one order explains all.",
        slots_have_an_order, EXPLORED, WATCH, linearizable=True,
    ),
    Scenario(
        "follow.budget", "All streams together hold at most the budget, and nothing at the end.",
        the_budget_holds, EXPLORED, WATCH,
    ),
    Scenario(
        "follow.stream", "A cancelled stream ends and holds no budget.",
        a_stream_against_its_cancel, (follow_module, log_module), WATCH,
    ),
    Scenario(
        "follow.silent", "A cancelled stream of a silent job releases its slot.",
        a_silent_stream_is_cancelled, (follow_module, log_module), WATCH,
    ),
)  # fmt: skip
