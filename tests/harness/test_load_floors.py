"""A load floor that the server's own fault leaves unmet does not excuse that fault.

Each history below has both: the fault, and the floor that it keeps the harness from reaching.
"""

import dataclasses
import functools
from collections.abc import Sequence

import pytest

from harness.checks.abuse.concurrent_victim import ConcurrentVictim
from harness.checks.abuse.connections import (
    IDLE_CONNECTIONS,
    WINDOWS,
    IdleConnections,
    StalledReaders,
)
from harness.checks.abuse.crowds import CROWDS, CallsBesideCrowd
from harness.checks.abuse.half_sent_calls import HALF_SENT_CALLS, AdminWork, HalfSentCalls
from harness.checks.abuse.http2_floods import CALL_RESETS, CallResets
from harness.checks.check import Check
from harness.checks.identity.stalled_streams import STALLED, StalledSlot, StalledSlots
from harness.checks.lifecycle.forgetting import JOB_TTL, ForgottenJob
from harness.checks.lifecycle.stopping import STOP_RACE
from harness.checks.limits.memory import MEMORY_BOMB, MemoryBombEnd
from harness.checks.streams.slots import SLOTS, SlotsOfGoneClients
from harness.judge.promises import assumed, equal
from harness.record.history import Call, History, Outcome, Record, Stream
from harness.record.scopes import separately
from harness.record.verdict import Verdict, merge
from harness.run.judging import judge_check

OK = Call("newcomer", "QueryJob", Outcome.OK, "OK", "", 0.0, 0.1)
WHOLE = Stream("victim", "id", Outcome.OK, "OK", "", 5, "", 0.0, 2.0)
VICTIM: Sequence[Record] = (ConcurrentVictim(joined=True, written_bytes=5, counts=None), OK, WHOLE)


def call(label: str, code: str = "OK", took_s: float = 0.1) -> Call:
    outcome = Outcome.OK if code == "OK" else Outcome.ERROR
    return dataclasses.replace(OK, label=label, code=code, outcome=outcome, ended_s=took_s)


def reported(label: str, **response: object) -> Call:
    return dataclasses.replace(OK, label=label, response=response)


def stream(label: str, code: str, received_bytes: int = 0) -> Stream:
    return dataclasses.replace(
        WHOLE, label=label, code=code, outcome=Outcome.ERROR, received_bytes=received_bytes
    )


QUERIES = {"QueryJob": {"OK": 1}}
CASES: dict[str, tuple[Check, Sequence[Record], str]] = {
    "one stream at a time": (
        WINDOWS,
        [
            StalledReaders(log_bytes=100, started=False, filled=None, freed_after_s=1.0),
            stream("reader beside them", "DEADLINE_EXCEEDED"),
            *VICTIM,
        ],
        "a reader beside them receives everything",
    ),
    "idle connections crowd out a job": (
        IDLE_CONNECTIONS,
        [IdleConnections(30, "after 12: reset", 12, ""), call("newcomer meanwhile"), *VICTIM],
        "a job runs meanwhile",
    ),
    "resets hang the server": (
        CALL_RESETS,
        [CallResets(10_000, (), streaming=0), call("between the floods", "UNAVAILABLE"), *VICTIM],
        "another client is answered between two floods",
    ),
    "half-sent calls hang the server": (
        HALF_SENT_CALLS,
        [HalfSentCalls("user", 2000, 12, AdminWork(None, "StartJob"), AdminWork(1.0)), *VICTIM],
        "an admin starts, queries and stops a job beside the calls half-sent by a user (seconds)",
    ),
    "calls beside a crowd are slow": (
        CROWDS,
        [
            CallsBesideCrowd("stops", 1, QUERIES, 300.0, {"OK": 12}),
            CallsBesideCrowd("streams", 3, QUERIES, 0.1, {"CANCELLED": 4}),
        ],
        "seconds of the slowest call beside a crowd of stops",
    ),
    "queries beside a bomb are slow": (
        MEMORY_BOMB,
        [
            call("meanwhile", took_s=6.0),
            MemoryBombEnd(by_itself=True),
            reported("final", status="signaled", signal=9),
            call("another"),
        ],
        "it answers soon, in s",
    ),
    "killed clients did not join, vanished ones keep their slots": (
        SLOTS,
        [
            SlotsOfGoneClients("killed", 0, None),
            SlotsOfGoneClients("vanished", 4, None),
            stream("full before killed", "OK"),
            stream("full before vanished", "RESOURCE_EXHAUSTED"),
        ],
        "the slot of a client that is vanished is freed (seconds)",
    ),
    "the first job is queried late, the second one is not forgotten": (
        JOB_TTL,
        [
            ForgottenJob("first", 2.5, 2.5),
            ForgottenJob("second", None, None),
            *(call(f"start {name}") for name in ("first", "second")),
            call("query first", "NOT_FOUND", took_s=9.0),
            reported("query second", status="exited"),
            reported("query running", status="running"),
            reported("list", jobs=[{"jobId": "running"}]),
        ],
        "the second job is forgotten after its time (seconds)",
    ),
    "a stop never succeeds": (
        STOP_RACE,
        [
            call("stop 0", "INTERNAL"),
            *(reported(f"{which} 0", status="exited", exitCode=5) for which in ("first", "second")),
            dataclasses.replace(WHOLE, label="stream 0"),
        ],
        "the stop succeeds, or is refused since the job has ended",
    ),
    "the expired client held no slot, the denied one keeps it": (
        STALLED,
        [
            StalledSlots(
                expired=StalledSlot(was_held=False, freed_after_s=-9.0),
                denied=StalledSlot(was_held=True, freed_after_s=None),
            ),
            call("an admin"),
        ],
        "a stalled client loses its slot when its certificate is denied (seconds)",
    ),
}


@pytest.mark.parametrize("fault", CASES)
def test_a_floor_that_a_fault_leaves_unmet_does_not_excuse_the_fault(fault: str) -> None:
    check, records, promise = CASES[fault]
    findings = judge_check(check, History(records))
    assert merge(findings) is Verdict.FAIL
    assert [each.promise for each in findings if each.verdict is Verdict.FAIL] == [promise]
    assert Verdict.BROKEN in {each.verdict for each in findings}


def test_an_assumption_of_one_group_excuses_its_own_findings_alone() -> None:
    unmet, wrong = assumed("it runs", true=False, got="no"), equal("p", 1, 2)
    right = equal("q", 1, 1)
    for groups in ([[unmet, wrong], [right, wrong]], [[right, wrong], [unmet, wrong]]):
        judge = functools.partial(lambda groups, _: separately(groups), groups)
        check = Check("area.one", "It is so.", lambda _: None, judge)
        verdicts = [each.verdict for each in judge_check(check, History([]))]
        assert verdicts == [Verdict.PASS, Verdict.FAIL, Verdict.BROKEN, Verdict.BROKEN]
