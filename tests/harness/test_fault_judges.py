"""Crashes and clock steps are judged by their records: a broken promise fails, and only it."""

import dataclasses
from signal import SIGKILL

import pytest

from harness.checks.lifecycle.clock_steps import STEPS, ClockStep, judge_clock_steps
from harness.checks.limits.crashes import CrashPlan, CrashRound, Kill, judge_crashes
from harness.record.history import Call, History, Outcome, Record, Stream
from harness.record.verdict import Finding, Verdict

ROUNDS = 12
KILL = Kill(-SIGKILL, 10.0, 10.1, 1.0, cgroups=7, processes=9)


def call(label: str, code: str = "OK", started_s: float = 9.0, ended_s: float = 9.5) -> Call:
    outcome = Outcome.OK if code == "OK" else Outcome.ERROR
    return Call(label, "Rpc", outcome, code, "", started_s, ended_s)


def stream(label: str, code: str = "OK", ended_s: float = 10.2, text: str = "") -> Stream:
    outcome = Outcome.OK if code == "OK" else Outcome.ERROR
    return Stream(label, "job", outcome, code, "", 100, "", 9.0, ended_s, text=text)


def crashes(*more: Record, **changes: object) -> list[Finding]:
    """Judge rounds in which all is right but for the first round's changes; return what fails."""
    records: list[Record] = [CrashPlan(ROUNDS, 1.0, 15.0)]
    for number in range(1, ROUNDS + 1):
        seen = CrashRound(number, KILL, 3.0, cgroups=0, processes=0)
        records += [
            dataclasses.replace(seen, **changes) if number == 1 else seen,  # type: ignore[arg-type]
            call(f"{number} call: start"),
            call(f"{number} call: start", "UNAVAILABLE", 9.9, 10.2),
            stream(f"{number} stream: writing", "UNAVAILABLE"),
            call(f"{number} old: query", "NOT_FOUND"),
            call(f"{number} next: start"),
            stream(f"{number} next: output", text="works\n"),
        ]
    return [
        each
        for each in judge_crashes(History([*records, *more]))
        if each.verdict is not Verdict.PASS
    ]


def test_kept_promises_of_crashes_pass() -> None:
    assert crashes() == []


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (crashes(cgroups=1), "cgroups of a killed server's jobs after the next start"),
        (crashes(processes=1), "processes of a killed server's jobs after the next start"),
        (crashes(recovered_s=15.1), "seconds from the next launch to its first job, worst of 12"),
        (crashes(call("3 old: stop")), "a killed server's jobs are unknown to the next one"),
        (crashes(stream("3 old: stream")), "a killed server's jobs are unknown to the next one"),
        (
            crashes(stream("3 stream: silent", "UNKNOWN")),
            "the status of those that the kill cuts",
        ),
        (
            crashes(call("12 call: stop", "UNAVAILABLE", 9.0, 15.2)),
            "seconds from a kill to the last of them",
        ),
        (
            crashes(call("2 call: start", "UNAVAILABLE", 9.0, 9.9)),
            "calls and streams that fail before the kill",
        ),
        (
            crashes(dataclasses.replace(stream("2 stream: writing", "UNAVAILABLE"), wrong_at=5)),
            "streams with a byte that is wrong or lost before the kill",
        ),
        (crashes(call("2 next: start a job", "INTERNAL")), "the next server starts jobs at once"),
    ],
)
def test_broken_promise_of_crashes_fails_alone(findings: list[Finding], words: str) -> None:
    assert [(each.verdict, each.promise) for each in findings] == [(Verdict.FAIL, words)]


def test_server_that_was_not_killed_and_kills_that_cut_nothing_are_inconclusive() -> None:
    alive = crashes(kill=dataclasses.replace(KILL, exit_code=None))
    assert Verdict.BROKEN in {each.verdict for each in alive}
    idle = dataclasses.replace(KILL, cgroups=0)
    history = History(
        [CrashPlan(1, 1.0, 15.0), CrashRound(1, idle, 3.0, 0, 0), stream("1 next: output")]
    )
    assert Verdict.BROKEN in {each.verdict for each in judge_crashes(history)}


SPAN_S = 4.0
LABELS = {"new connection": "OK", "denied": "UNAUTHENTICATED", "no longer denied": "OK"}
TICKS = Stream("ticks", "job", Outcome.OK, "OK", "", 50, "", 0.0, 9.0)
EXPIRING = Stream(
    "expiring", "job", Outcome.ERROR, "UNAUTHENTICATED", "", 50, "", 0.0, 3.5
)  # fmt: skip


def clock_steps(**changed: Record) -> list[str]:
    """Judge steps of the clock in which all is right but for some records, by their labels."""
    records: dict[str, Record] = {
        "ticks": dataclasses.replace(TICKS, timeline=tuple((at, at) for at in range(10))),
        "expiring": EXPIRING,
    }
    for name, wanted_s in STEPS.items():
        records[f"{name}: step"] = ClockStep(name, wanted_s, wanted_s, SPAN_S, 2.0, 2.5, 4.5)
        records[f"{name}: stop"] = call("stop", "OK", 1.0, 5.1)
        records[f"{name}: deadline"] = call("deadline", "DEADLINE_EXCEEDED", 1.0, 5.1)
        records[f"{name}: start"] = call("start", "OK", 1.5, 1.6)
        records[f"{name}: known"] = call("known", "OK", 2.5, 2.6)
        refused = "UNAUTHENTICATED" if wanted_s else "OK"
        records[f"{name}: short certificate"] = call("query", refused)
        for label, code in LABELS.items():
            records[f"{name}: {label}"] = call(label, code)
    labelled = [
        dataclasses.replace(each, label=label) if isinstance(each, Call) else each
        for label, each in {**records, **changed}.items()
    ]
    findings = judge_clock_steps(History(labelled))
    return [f"{each.verdict} {each.promise}" for each in findings if each.verdict != Verdict.PASS]


def test_kept_promises_at_steps_of_the_clock_pass() -> None:
    assert clock_steps() == []


@pytest.mark.parametrize(
    ("label", "record", "words"),
    [
        ("forward: stop", call("", "OK", 1.0, 2.6), "FAIL forward: seconds that it takes"),
        ("back: stop", call("", "OK", 1.0, 11.0), "FAIL back: seconds that it takes"),
        ("forward: known", call("", "NOT_FOUND", 2.5, 2.6),
         "FAIL forward: an ended job is known for its time to live"),
        ("back: step", ClockStep("back", 0.0, 0.0, SPAN_S, 2.0, 2.5, None),
         "FAIL back: and forgotten then (seconds)"),
        ("back: step", ClockStep("back", 0.0, 3600.0, SPAN_S, 2.0, 2.5, 4.5),
         "BROKEN assumption: back: the clock is set while all waits last"),
        ("back: denied", call("", "OK"), "FAIL back: the deny list is reloaded"),
        ("ticks", dataclasses.replace(TICKS, timeline=((1.0, 1), (8.0, 2))),
         "FAIL seconds without a byte of its job's lines"),
        ("expiring", dataclasses.replace(EXPIRING, code="CANCELLED"),
         "FAIL a stream ends when the clock passes its certificate's end"),
        ("expiring", dataclasses.replace(EXPIRING, ended_s=1.0),
         "FAIL seconds from the step to its end"),
        ("expiring", dataclasses.replace(EXPIRING, ended_s=8.0),
         "FAIL seconds from the step to its end"),
        ("forward: short certificate", call("", "OK"), "FAIL the certificate is refused then"),
        ("back: short certificate", call("", "UNAUTHENTICATED"),
         "FAIL it is valid again when the clock is back"),
    ],
)  # fmt: skip
def test_broken_promise_at_a_step_fails_alone(label: str, record: Record, words: str) -> None:
    assert clock_steps(**{label: record}) == [words]
