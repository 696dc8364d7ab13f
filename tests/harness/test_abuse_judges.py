"""Abuse that did not come about is no proof that it was borne."""

import contextlib
from collections.abc import Iterable

import pytest

from harness.checks.abuse.connections import judge_idle
from harness.checks.abuse.half_sent_calls import judge_half_sent
from harness.record.history import Fact, History, Json
from harness.record.verdict import BrokenError, Finding, Verdict


def told(findings: Iterable[Finding]) -> dict[str, Verdict]:
    """What a judge says until it lacks a record."""
    said: dict[str, Verdict] = {}
    with contextlib.suppress(BrokenError):
        for finding in findings:
            said[finding.promise] = finding.verdict
    return said


def history(**facts: Json) -> History:
    return History([Fact(label.replace("_", " "), value) for label, value in facts.items()])


@pytest.mark.parametrize(
    ("wanted", "idle", "verdict"),
    [
        (10_000, 10_000, Verdict.PASS),
        (10_000, 9_999, Verdict.BROKEN),
        (0, 0, Verdict.BROKEN),
    ],
)
def test_idle_connections_that_were_hung_up_on_are_no_load(
    wanted: int, idle: int, verdict: Verdict
) -> None:
    said = told(judge_idle(history(wanted=wanted, idle=idle)))
    assert said["load floor: idle connections that still answer at the end"] is verdict
    assert said["assumption: no connection was refused"] is Verdict.PASS
    refused = told(judge_idle(history(wanted=wanted, idle=idle, refused="after 12: too many")))
    assert refused["assumption: no connection was refused"] is Verdict.BROKEN


@pytest.mark.parametrize(("sent", "verdict"), [(2000, Verdict.PASS), (1999, Verdict.BROKEN)])
def test_calls_that_were_not_sent_are_no_load(sent: int, verdict: Verdict) -> None:
    facts = {"wanted: user": 2000, "half-sent: user": sent}
    records = History([Fact(label, value) for label, value in facts.items()])
    assert told(judge_half_sent(records))["load floor: calls half-sent by user"] is verdict
