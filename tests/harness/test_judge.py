"""Promises and judges of streams: which verdict follows, and where the bounds are."""

import dataclasses

import pytest

from harness.checks.common import WriterJob
from harness.checks.lifecycle.ending import LOUD_BYTES, ShortJobs, judge_short_jobs
from harness.checks.streams.pauses import (
    READERS_BESIDE,
    STALLED_READERS,
    ReadBesideStalled,
    judge_stalled,
)
from harness.judge.promises import (
    answered,
    assumed,
    at_least,
    at_most,
    equal,
    floor,
    in_time,
    one_of,
    unseen,
    within,
)
from harness.judge.streams import all_exact, by_job, fault_of, identical, most_at_once
from harness.record.history import Call, Outcome, Recorder, Stream
from harness.record.verdict import BrokenError, Finding, Verdict, merge

GOOD = Stream("good", "job", Outcome.OK, "OK", "", 100, "aa", 0.0, 5.0, first_byte_s=1.0)


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (equal("p", 1, 1), Verdict.PASS),
        (equal("p", 1, 2), Verdict.FAIL),
        (one_of("p", "A", ("A", "B")), Verdict.PASS),
        (one_of("p", "C", ("A", "B")), Verdict.FAIL),
        (within("p", 1.1, 1.0, 0.1001, "why"), Verdict.PASS),
        (within("p", 0.89, 1.0, 0.1, "why"), Verdict.FAIL),
        (at_most("p", 2, 2), Verdict.PASS),
        (at_most("p", 2.1, 2), Verdict.FAIL),
        (at_least("p", 2, 2), Verdict.PASS),
        (at_least("p", 1.9, 2), Verdict.FAIL),
        (in_time("p", 2.0, 2), Verdict.PASS),
        (in_time("p", 2.1, 2), Verdict.FAIL),
        (in_time("p", None, 2), Verdict.FAIL),
        (floor("p", 2, 2), Verdict.PASS),
        (floor("p", 1, 2), Verdict.BROKEN),
        (assumed("p", true=True, got=1), Verdict.PASS),
        (assumed("p", true=False, got=1), Verdict.BROKEN),
        (unseen("p", "its process is hidden"), Verdict.SKIPPED),
    ],
)
def test_a_promise_has_the_verdict_of_its_comparison(finding: Finding, verdict: Verdict) -> None:
    assert finding.verdict is verdict


def test_a_call_is_judged_by_its_status() -> None:
    call = Call("c", "StopJob", Outcome.ERROR, "NOT_FOUND", "no job", 0.0, 1.0)
    assert answered("p", call).verdict is Verdict.FAIL
    assert answered("p", call, "OK", "NOT_FOUND").verdict is Verdict.PASS
    late = dataclasses.replace(call, outcome=Outcome.UNKNOWN, code="DEADLINE_EXCEEDED")
    assert answered("p", late).got == "no answer in 1.0 s"


def test_a_long_value_is_shown_shortened() -> None:
    finding = equal("p", "x" * 10_000, "y")
    assert len(finding.got) < 400
    assert "10000 characters" in finding.got


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"wrong_at": 0}, "a wrong byte at offset 0"),
        ({"gap": "offset 5 after 4"}, "offset 5 after 4"),
        ({"received_bytes": 99}, "ended at offset 99"),
        ({"received_bytes": 101}, "ended at offset 101"),
        ({"received_bytes": 50, "start_offset": 50}, "begins at offset 50"),
        ({"outcome": Outcome.ERROR, "code": "INTERNAL"}, "INTERNAL after 100 bytes"),
        ({"outcome": Outcome.UNKNOWN, "code": "DEADLINE_EXCEEDED"}, "no end in time"),
    ],
)
def test_fault_of_finds_every_fault_of_a_stream(changes: dict[str, object], fault: str) -> None:
    found = fault_of(dataclasses.replace(GOOD, **changes), 100)  # type: ignore[arg-type]
    assert bool(found) is bool(fault)
    assert fault in found


def test_promises_of_streams_fail_without_a_stream() -> None:
    assert all_exact("p", [], 100).verdict is Verdict.FAIL
    assert identical("p", []).verdict is Verdict.FAIL
    assert identical("p", [GOOD, dataclasses.replace(GOOD, sha256="bb")]).verdict is Verdict.FAIL
    assert all_exact("p", [GOOD, GOOD], 100).verdict is Verdict.PASS


def test_streams_count_as_concurrent_from_their_first_byte_to_their_end() -> None:
    later = dataclasses.replace(GOOD, first_byte_s=4.0, ended_s=6.0)
    after = dataclasses.replace(GOOD, first_byte_s=5.5, ended_s=7.0)
    silent = dataclasses.replace(GOOD, first_byte_s=None)
    assert most_at_once([GOOD, later, after, silent]) == 2
    assert most_at_once([silent]) == 0


def test_streams_are_grouped_by_their_job() -> None:
    other = dataclasses.replace(GOOD, job_id="other")
    assert list(by_job([GOOD, other, GOOD])) == [("job", [GOOD, GOOD]), ("other", [other])]


def test_merge_of_nothing_is_broken_and_fail_outweighs_all() -> None:
    findings = {verdict: Finding(verdict, "p") for verdict in Verdict}
    assert merge([]) is Verdict.BROKEN
    assert merge([findings[Verdict.PASS]]) is Verdict.PASS
    assert merge([findings[Verdict.PASS], findings[Verdict.BROKEN]]) is Verdict.BROKEN
    assert merge(findings.values()) is Verdict.FAIL


def test_short_jobs_of_a_server_whose_process_is_unseen_are_judged_but_for_what_it_keeps() -> None:
    recorder = Recorder()
    recorder.add(dataclasses.replace(GOOD, label="loud 0", received_bytes=LOUD_BYTES))
    recorder.add(ShortJobs(queried=3, ended=3, before=None, after=None))
    findings = list(judge_short_jobs(recorder.history()))
    assert [each.verdict for each in findings] == [*[Verdict.PASS] * 3, Verdict.SKIPPED]
    assert "did not launch the server" in findings[-1].promise


def test_unseen_memory_beside_stalled_readers_is_skipped_not_passed() -> None:
    recorder = Recorder()
    recorder.add(WriterJob("job", "seed", total_bytes=100))
    for number in range(READERS_BESIDE):
        recorder.add(dataclasses.replace(GOOD, label=f"reading {number}"))
    call = Call("meanwhile", "QueryJob", Outcome.OK, "OK", "", 0.0, 1.0, {"status": "exited"})
    recorder.add(call)
    recorder.add(dataclasses.replace(call, label="start meanwhile"))
    with pytest.raises(BrokenError, match="ReadBesideStalled"):
        list(judge_stalled(recorder.history()))
    joined = STALLED_READERS + READERS_BESIDE
    recorder.add(ReadBesideStalled(joined, read_after_s=1.0, bound_s=2.0, memory_grown_bytes=None))
    assert merge(judge_stalled(recorder.history())) is Verdict.SKIPPED
