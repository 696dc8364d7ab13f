"""Abuse below its load floor is BROKEN, whatever the server did."""

import dataclasses
from collections.abc import Iterable, Sequence

import pytest

from harness.checks.abuse.concurrent_victim import (
    ConcurrentVictim,
    CountsAfterAbuse,
    judge_victim,
)
from harness.checks.abuse.connections import IdleConnections, judge_idle
from harness.checks.abuse.half_sent_calls import AdminWork, HalfSentCalls, judge_half_sent
from harness.checks.common import ServerCounts
from harness.record.history import Call, History, Outcome, Record, Stream
from harness.record.terms import Terms
from harness.record.verdict import Finding, Verdict

NEWCOMER = Call("newcomer", "QueryJob", Outcome.OK, "OK", "", 1.0, 1.1)
VICTIM = Stream("victim", "id", Outcome.OK, "OK", "", 5, "", 0.0, 2.0)
UNHARMED: Sequence[Record] = (
    ConcurrentVictim(joined=True, written_bytes=5, counts=None), NEWCOMER, VICTIM
)  # fmt: skip
MEANWHILE = dataclasses.replace(NEWCOMER, label="newcomer meanwhile")


def verdicts(findings: Iterable[Finding]) -> dict[str, Verdict]:
    """Return a judge's verdicts by promise."""
    return {finding.promise: finding.verdict for finding in findings}


@pytest.mark.parametrize(
    ("wanted", "alive", "verdict"),
    [
        (10_000, 10_000, Verdict.PASS),
        (10_000, 9_999, Verdict.BROKEN),
        (0, 0, Verdict.BROKEN),
    ],
)
def test_idle_connections_below_floor_are_broken(wanted: int, alive: int, verdict: Verdict) -> None:
    seen = IdleConnections(wanted, "", alive, "meanwhile\n")
    judged = verdicts(judge_idle(History([seen, MEANWHILE, *UNHARMED])))
    assert judged["load floor: idle connections that answer a ping at the end"] is verdict
    assert judged["assumption: no connection was refused"] is Verdict.PASS
    refused = IdleConnections(wanted, "after 12: too many", alive, "meanwhile\n")
    judged = verdicts(judge_idle(History([refused, MEANWHILE, *UNHARMED])))
    assert judged["assumption: no connection was refused"] is Verdict.BROKEN


@pytest.mark.parametrize(("sent", "verdict"), [(2000, Verdict.PASS), (1999, Verdict.BROKEN)])
def test_half_sent_calls_below_floor_are_broken(sent: int, verdict: Verdict) -> None:
    seen = HalfSentCalls("user", 2000, sent, AdminWork(1.0), AdminWork(1.0))
    judged = verdicts(judge_half_sent(History([seen, *UNHARMED])))
    assert judged["load floor: calls half-sent by a user"] is verdict


@pytest.mark.parametrize(
    ("terms", "took_s", "verdict"),
    [
        ([], 12.0, Verdict.FAIL),
        ([Terms(own=False, stop_grace_s=10)], 12.0, Verdict.PASS),
        ([Terms(own=False, stop_grace_s=10)], 21.0, Verdict.FAIL),
    ],
)
def test_a_stop_of_another_kind_of_server_may_take_its_grace_period(
    terms: Sequence[Record], took_s: float, verdict: Verdict
) -> None:
    seen = HalfSentCalls("user", 2000, 2000, AdminWork(1.0), AdminWork(took_s))
    judged = judge_half_sent(History([*terms, seen, *UNHARMED]))
    after = next(finding for finding in judged if " after " in finding.promise)
    assert after.verdict is verdict


def test_admin_that_was_never_answered_fails_with_last_answer() -> None:
    never = AdminWork(None, "StopJob: UNAVAILABLE full")
    seen = HalfSentCalls("user", 2000, 2000, never, AdminWork(1.0))
    beside = next(
        finding for finding in judge_half_sent(History([seen])) if " beside " in finding.promise
    )
    assert beside.verdict is Verdict.FAIL
    assert beside.got == "never; the last answer to StopJob: UNAVAILABLE full"


@pytest.mark.parametrize(("kept", "verdict"), [(6, Verdict.PASS), (7, Verdict.FAIL)])
def test_descriptors_beyond_spare_fail_victim(kept: int, verdict: Verdict) -> None:
    before, after = ServerCounts(10, 20), ServerCounts(10, 20 + kept)
    counts = CountsAfterAbuse(before, after, spare=ServerCounts(20, 6))
    seen = ConcurrentVictim(joined=True, written_bytes=5, counts=counts)
    judged = verdicts(judge_victim(History([seen, NEWCOMER, VICTIM])))
    assert judged["descriptors of the server afterwards"] is verdict
    assert judged["threads of the server afterwards"] is Verdict.PASS
    assert judged["the stream beside the abuse lost nothing"] is Verdict.PASS
