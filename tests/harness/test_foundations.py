"""One cause, one finding: what a broken foundation explains is no finding of another check."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.checks.check import Check, Stage
from harness.checks.common import total_bytes
from harness.checks.identity.client_certificates import (
    CertificateAnswer,
    CertificateAnswers,
    judge_certificates,
)
from harness.checks.lifecycle.ending import ReportedEnd
from harness.checks.lifecycle.job_end import JobEnd, ends_as
from harness.checks.streams.delivery import WRITE_PLANS, judge_writes
from harness.checks.streams.message_sizes import ACCEPTED_BYTES, OUTPUT_BYTES, judge_messages
from harness.judge.promises import repeating, resting_on
from harness.record.foundations import (
    ANSWERS,
    COMPLETE,
    ENDS,
    EXACT,
    FOUNDATIONS,
    OWNERS,
    STARTS,
    STOPS,
    SURVIVES,
    WHOLE,
    attributed,
    broken_by,
    version_refused,
)
from harness.record.history import Call, Cause, History, Interruption, Outcome, Record, Stream
from harness.record.results import CheckResult, RunReport, load_report, save_report
from harness.record.terms import Terms, terms_of
from harness.record.verdict import Finding, Verdict, merge
from harness.run import check_runner
from harness.run.check_runner import Options, Silent, run_checks
from harness.run.judging import Judge, judge_again, judge_check
from tests.harness.test_check_runner import EVERYTHING, StandIn

PASS, FAIL, BROKEN = Verdict.PASS, Verdict.FAIL, Verdict.BROKEN


def call(rpc: str, code: str) -> Call:
    return Call("label", rpc, Outcome.OK, code, "", 0, 1)


def stream(**changes: object) -> Stream:
    plain = Stream("reader", "id", Outcome.OK, "OK", "", 5, "", 0, 1)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


RELIES: dict[str, Sequence[Record]] = {
    STARTS: [call("StartJob", "INTERNAL")],
    EXACT: [stream(text="hello")],
    COMPLETE: [stream(received_bytes=100_000)],
    ENDS: [stream(unended=True)],
    ANSWERS: [call("QueryJob", "OK")],
    STOPS: [call("StopJob", "OK")],
}
DOES_NOT: dict[str, Sequence[Record]] = {
    STARTS: [call("StartJob", "OK"), call("StartJob", "NOT_FOUND")],
    EXACT: [stream()],
    COMPLETE: [stream(received_bytes=1000)],
    ENDS: [stream(code="CANCELLED"), stream(outcome=Outcome.ERROR, code="DATA_LOSS")],
    ANSWERS: [call("StopJob", "OK")],
    STOPS: [call("StopJob", "PERMISSION_DENIED")],
}


def judged(promise: str, records: Sequence[Record], *findings: Finding) -> tuple[Finding, ...]:
    broken = [each for each in FOUNDATIONS if each.promise == promise]
    return attributed("area.other", findings, History(records), broken)


@pytest.mark.parametrize("promise", RELIES)
def test_check_that_relied_on_a_broken_promise_could_not_be_judged(promise: str) -> None:
    for verdict in (FAIL, BROKEN):
        findings = judged(promise, RELIES[promise], Finding(verdict, "its own promise"))
        assert merge(findings) is Verdict.SKIPPED
        [finding] = findings
        [owner] = [each.owner for each in FOUNDATIONS if each.promise == promise]
        assert finding.because == owner
        assert finding.promise == f"could not be judged because of {owner}"


@pytest.mark.parametrize("promise", RELIES)
def test_check_that_did_not_rely_on_it_fails_all_the_same(promise: str) -> None:
    finding = Finding(FAIL, "its own promise")
    assert judged(promise, DOES_NOT[promise], finding) == (finding,)


@pytest.mark.parametrize("promise", RELIES)
def test_check_whose_own_promises_are_kept_passes(promise: str) -> None:
    kept = Finding(PASS, "its own promise")
    assert judged(promise, RELIES[promise], kept, Finding(FAIL, promise)) == (kept,)


def test_without_a_broken_foundation_every_finding_stays() -> None:
    finding = Finding(FAIL, ENDS)
    assert attributed("area.other", [finding], History(RELIES[ENDS]), []) == (finding,)


def test_owner_reports_its_own_promise_whatever_else_is_broken() -> None:
    own = Finding(FAIL, ENDS)
    records = History([*RELIES[ENDS], *RELIES[EXACT]])
    findings = attributed("streams.end", [own], records, FOUNDATIONS)
    assert findings == (own,)


def test_probe_that_repeats_a_promise_is_left_out_while_its_owner_fails_for_it() -> None:
    own = Finding(FAIL, "no compression")
    promise = version_refused("TLSv1.2")
    again = repeating(Finding(FAIL, "accepted suites of TLS 1.2"), promise)
    assert judged(promise, [], own, again) == (own,)
    [finding] = judged(promise, [], again)
    assert (finding.verdict, finding.because) == (Verdict.SKIPPED, "identity.versions")
    for other in (EXACT, version_refused("TLSv1.1")):
        assert judged(other, [], own, again) == (own, again)


def test_finding_that_rests_on_a_broken_promise_excuses_no_other_of_its_check() -> None:
    own, kept = Finding(FAIL, "threads afterwards"), Finding(PASS, "a new client is answered")
    victim = resting_on(Finding(FAIL, "the stream lost nothing"), EXACT, ENDS)
    unjudged = Finding(
        Verdict.SKIPPED, "could not be judged because of streams.writes", because="streams.writes"
    )
    assert judged(EXACT, RELIES[EXACT], own, kept, victim) == (own, kept, unjudged)
    assert judged(EXACT, RELIES[EXACT], kept, victim) == (kept, unjudged)
    # However little the check read: what is missing may be what would have been wrong.
    assert judged(EXACT, DOES_NOT[EXACT], own, victim) == (own, unjudged)
    # If its owner keeps it, it is reported.
    assert judged(STOPS, RELIES[EXACT], own, victim) == (own, victim)
    # Another promise that it relied on explains all, and the owner reports its own.
    assert judged(STOPS, RELIES[STOPS], own, victim)[0].because == "lifecycle.stop-twice"
    ends = Finding(FAIL, ENDS, "no end of 1 streams")
    assert judged(ENDS, RELIES[ENDS], own, kept, victim, ends)[:2] == (own, kept)
    assert ends not in judged(ENDS, RELIES[ENDS], own, kept, victim, ends)


def test_unjudged_finding_names_the_check_whose_promise_it_rests_on() -> None:
    records = [*RELIES[EXACT], *RELIES[ENDS]]
    broken = [each for each in FOUNDATIONS if each.promise in {EXACT, ENDS}]
    late = resting_on(Finding(FAIL, "its streams end"), ENDS)
    never = resting_on(Finding(PASS, "its text"), EXACT)
    [_, finding] = attributed("area.other", [late, never], History(records), broken)
    assert finding.because == "streams.end"


MESSAGES = ("live", "replay")


@pytest.mark.parametrize(
    ("received_bytes", "largest_bytes", "verdict"),
    [
        (0, 0, Verdict.SKIPPED),
        (OUTPUT_BYTES, ACCEPTED_BYTES, PASS),
        (OUTPUT_BYTES - 1, ACCEPTED_BYTES + 1, FAIL),
    ],
)
def test_large_output_that_is_lost_has_no_message_to_judge(
    received_bytes: int, largest_bytes: int, verdict: Verdict
) -> None:
    streams = [
        stream(label=label, received_bytes=received_bytes, largest_message_bytes=largest_bytes)
        for label in MESSAGES
    ]
    findings = tuple(judge_messages(History(streams)))
    assert merge(findings) is (FAIL if verdict is Verdict.SKIPPED else verdict)
    assert merge(judged(COMPLETE, [], *findings)) is verdict


@pytest.mark.parametrize(
    ("code", "text", "verdict"), [("OK", "", PASS), ("PERMISSION_DENIED", "", FAIL)]
)
def test_admitted_client_may_lose_output_that_streams_lose(
    code: str, text: str, verdict: Verdict
) -> None:
    answer = CertificateAnswer(1, "admin", "OK", "NOT_FOUND")
    follows = stream(label="stream admin", code=code, text=text)
    records: list[Record] = [CertificateAnswers((answer,)), follows]
    findings = tuple(judge_certificates(History(records)))
    assert merge(findings) is FAIL
    assert merge(judged(WHOLE, [], *findings)) is verdict


def test_exit_code_that_is_reported_wrongly_is_compared_by_its_owner_alone() -> None:
    def judge(history: History) -> Sequence[Finding]:
        got, want = (JobEnd("exited", code) for code in (1, 6))
        return [ends_as("its end is its own", got, want, terms_of(history))]

    other = dataclasses.replace(check_of("area.other"), judge=judge)
    owner = next(each for each in ALL if each.name == "lifecycle.exit-codes")
    ends = [ReportedEnd(JobEnd("exited", code), JobEnd("exited", 1)) for code in range(1, 20)]
    kinds: list[list[Record]] = [[], [Terms(own=False, reports=("status", "exit_code"))]]
    for terms in kinds:
        judges = Judge()
        assert merge(judges(other, History(terms))) is FAIL
        judges.learn(owner, History([*terms, *ends]))
        assert merge(judges(other, History(terms))) is PASS
        assert merge(judges(owner, History([*terms, *ends]))) is FAIL


def test_death_of_the_server_is_explained_by_nothing() -> None:
    death = Finding(FAIL, SURVIVES, "it ended")
    assert judged(EXACT, RELIES[EXACT], death) == (death,)


def test_stream_without_an_end_is_reported_although_the_run_was_interrupted() -> None:
    records: list[Record] = [stream(unended=True), Interruption(Cause.NEED_MISSING, "a tail")]
    findings = judge_check(ALL[0], History(records))
    assert [(each.verdict, each.promise) for each in findings if each.verdict is FAIL] == [
        (FAIL, ENDS)
    ]


def test_foundation_is_broken_by_the_failure_of_its_promise_in_its_owner() -> None:
    [broken] = broken_by("streams.end", [Finding(FAIL, ENDS), Finding(FAIL, EXACT)])
    assert broken.promise == ENDS
    assert broken_by("streams.end", [Finding(PASS, ENDS), Finding(FAIL, "another")]) == ()
    assert broken_by("area.other", [Finding(FAIL, ENDS)]) == ()


def test_every_owner_is_a_check_that_needs_no_other_foundation_check() -> None:
    names = {check.name: check for check in ALL}
    assert set(OWNERS) <= set(names)
    assert not [name for name in OWNERS if names[name].alone]


def check_of(name: str, *findings: Finding, records: Sequence[Record] = ()) -> Check:
    def run(stage: object) -> None:
        for record in records:
            stage.recorder.add(record)  # type: ignore[attr-defined]

    return Check(name, "It is good.", run, lambda _: findings)


CHECKS = [
    check_of("area.other", Finding(FAIL, "the text is right"), records=RELIES[ENDS]),
    check_of("area.kept", Finding(PASS, "the text is right"), records=RELIES[ENDS]),
    check_of("streams.end", Finding(PASS, "it starts"), records=RELIES[ENDS]),
    check_of("area.independent", Finding(FAIL, "roles")),
]


def run(checks: Sequence[Check], directory: Path) -> RunReport:
    results = run_checks(StandIn(), checks, Options("s", directory), Silent(), EVERYTHING)
    return RunReport({}, "", 1.0, tuple(results), (), len(checks))


def verdicts(results: Sequence[CheckResult]) -> dict[str, Verdict]:
    return {each.name: each.verdict for each in results}


EXPECTED = {
    "area.other": Verdict.SKIPPED,
    "area.kept": PASS,
    "streams.end": FAIL,
    "area.independent": FAIL,
}


def test_run_reports_the_cause_once_whatever_the_order_of_checks(tmp_path: Path) -> None:
    for checks in (CHECKS, CHECKS[::-1]):
        report = run(checks, tmp_path)
        assert verdicts(report.results) == EXPECTED
        assert [each.name for each in report.results] == [check.name for check in checks]
    # A skip that a failure explains needs no pattern, and the run fails.
    assert report.unexpected_skips() == []
    assert report.exit_code == 1
    causes = [(each.result.name, each.hides) for each in report.causes()]
    assert causes == [("streams.end", 1), ("area.independent", 0)]


def test_check_that_waits_for_streams_without_an_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_runner, "ENDLESS_LIMIT_S", 0.1)
    monkeypatch.setattr(check_runner, "ENDLESS_LOOK_S", 0.1)
    released = threading.Event()

    def waits(stage: Stage) -> None:
        stage.recorder.add(stream(unended=True))
        released.wait(60)

    check = Check("area.waits", "It is good.", waits, lambda _: (), time_limit_s=60)
    report = run([*CHECKS, check], tmp_path)
    released.set()
    assert verdicts(report.results) == {**EXPECTED, "area.waits": Verdict.SKIPPED}
    assert report.results[-1].findings[0].because == "streams.end"
    assert report.unexpected_skips() == []


@pytest.mark.parametrize(("time_limit_s", "verdict"), [(60.0, FAIL), (0.2, BROKEN)])
def test_check_that_waited_for_no_stream_keeps_its_own_time_limit(
    time_limit_s: float, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_runner, "ENDLESS_LIMIT_S", 0.0)
    monkeypatch.setattr(check_runner, "ENDLESS_LOOK_S", 0.1)
    ended = threading.Event()

    def floods(stage: Stage) -> None:
        stage.recorder.add(stream())
        ended.wait(0.5 if verdict is FAIL else 60.0)

    flood = Check("area.floods", "It is good.", floods, lambda _: [Finding(FAIL, "roles")])
    flood = dataclasses.replace(flood, time_limit_s=time_limit_s)
    report = run([*CHECKS, flood], tmp_path)
    ended.set()
    assert verdicts(report.results) == {**EXPECTED, "area.floods": verdict}


def test_saved_run_is_judged_again_with_the_same_causes(tmp_path: Path) -> None:
    report = run(CHECKS, tmp_path)
    save_report(report, tmp_path)
    assert verdicts(judge_again(load_report(tmp_path), tmp_path, CHECKS).results) == EXPECTED


def test_without_its_owner_a_broken_promise_is_reported_where_it_is_seen(tmp_path: Path) -> None:
    [other, kept] = run(CHECKS[:2], tmp_path).results
    assert (other.verdict, kept.verdict) == (FAIL, FAIL)
    assert kept.decisive[0].promise == ENDS


def test_skip_that_no_failure_explains_is_no_pass(tmp_path: Path) -> None:
    [result, *_] = run(CHECKS, tmp_path).results
    passed = dataclasses.replace(result, name="a.b", verdict=PASS, findings=(Finding(PASS, "p"),))
    for allowed in (None, ("*",)):
        report = RunReport({}, "", 1.0, (result, passed), allowed)
        assert report.exit_code == 2


@pytest.mark.parametrize(("unended", "kept"), [(True, True), (False, False)])
def test_stream_that_has_not_ended_has_not_lost_what_it_lacks(unended: bool, kept: bool) -> None:
    streams = [
        stream(label=name, received_bytes=max(0, total_bytes(steps) - 1), unended=unended)
        for name, steps in WRITE_PLANS.items()
    ]
    complete = next(each for each in judge_writes(History(streams)) if each.promise == COMPLETE)
    assert (complete.verdict is PASS) is kept
