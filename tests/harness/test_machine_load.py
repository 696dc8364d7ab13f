"""The rule for a busy machine: what its load explains is inconclusive, and nothing else is."""

import ast
import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness.checks.check import Check
from harness.host.clock import poll_until
from harness.host.machine_watch import MachineWatch, Used, listening_process, load_between
from harness.host.ports import free_port
from harness.host.repository import ROOT
from harness.judge.promises import answered, assumed, at_most, at_most_s, equal, in_time
from harness.judge.streams import all_exact, identical
from harness.record.history import Call, Cause, History, Interruption, Outcome, Stream
from harness.record.machine_load import MachineLoad
from harness.record.verdict import Duration, Finding, Verdict, merge
from harness.run.judging import judge_check

QUIET = MachineLoad(others_share=0.05, tasks_per_processor=9.0, late_s=0.1)
# Eight busy programs beside the harness, on two processors.
BUSY = MachineLoad(others_share=0.9, tasks_per_processor=4.5, late_s=0.2)
STALLED = MachineLoad(others_share=0.0, tasks_per_processor=0.5, late_s=3.0)


@pytest.mark.parametrize(
    ("load", "took_s", "is_explained"),
    [
        (QUIET, 1.01, False),
        (BUSY, 4.6, True),
        (BUSY, 4.8, False),
        (STALLED, 3.9, True),
        (STALLED, 4.1, False),
        # A thousand readers of the harness itself, or one program beside an idle processor.
        (MachineLoad(0.0, 50.0, 0.0), 1.01, False),
        (MachineLoad(0.5, 0.6, 0.0), 1.01, False),
        (MachineLoad(1.0, 500.0, 0.0), 19.9, True),
        (MachineLoad(1.0, 500.0, 0.0), 20.1, False),
    ],
)
def test_a_load_explains_a_time_up_to_its_slowdown_and_lateness(
    load: MachineLoad, took_s: float, *, is_explained: bool
) -> None:
    assert load.explains(Duration(took_s, bound_s=1.0)) is is_explained


def findings_of(history: History, *findings: Finding) -> list[Verdict]:
    def judge(_: History) -> Iterator[Finding]:
        yield from findings

    check = Check("area.one", "It is so.", lambda _: None, judge)
    return [each.verdict for each in judge_check(check, history)]


LATE = at_most_s("p", 2.0, 1.0)
NEVER = in_time("p", None, 1.0)


@pytest.mark.parametrize("finding", [LATE, NEVER])
def test_what_is_late_is_a_fail_on_a_quiet_machine_and_inconclusive_on_a_busy_one(
    finding: Finding,
) -> None:
    assert findings_of(History([QUIET]), finding) == [Verdict.FAIL]
    assert findings_of(History([]), finding) == [Verdict.FAIL]
    assert findings_of(History([BUSY]), finding) == [Verdict.BROKEN]


def test_a_busy_machine_excuses_neither_wrong_bytes_nor_a_passed_bound_far_beyond_it() -> None:
    findings = (LATE, equal("bytes", "a", "b"), at_most("bytes", 2, 1), at_most_s("p", 99.0, 1.0))
    fail, broken = Verdict.FAIL, Verdict.BROKEN
    assert findings_of(History([BUSY]), *findings) == [broken, fail, fail, fail]
    assert findings_of(History([BUSY]), at_most_s("p", 0.5, 1.0)) == [Verdict.PASS]


STUCK = MachineLoad(others_share=1.0, tasks_per_processor=40.0, late_s=26.0)
UNANSWERED = Call("c", "StopJob", Outcome.UNKNOWN, "DEADLINE_EXCEEDED", "", 0.0, 20.0)
CUT = Stream("s", "job", Outcome.UNKNOWN, "DEADLINE_EXCEEDED", "", 50, "aa", 0.0, 20.0)
GIVEN_UP = dataclasses.replace(CUT, outcome=Outcome.OK, code="OK", unended=True)
WRONG = dataclasses.replace(CUT, wrong_at=3)
UNCONNECTED = dataclasses.replace(
    CUT, outcome=Outcome.ERROR, code="UNAVAILABLE", received_bytes=0, sha256="00"
)
WHOLE = dataclasses.replace(GIVEN_UP, received_bytes=100, unended=False)


@pytest.mark.parametrize(
    "finding",
    [
        answered("p", UNANSWERED),
        all_exact("p", [CUT], 100),
        all_exact("p", [GIVEN_UP], 100),
        all_exact("p", [UNCONNECTED], 100),
        identical("p", [WHOLE, WHOLE, UNCONNECTED]),
    ],
)
def test_what_timed_out_is_inconclusive_only_on_a_machine_that_is_as_slow_as_a_deadline_is_long(
    finding: Finding,
) -> None:
    assert findings_of(History([STUCK]), finding) == [Verdict.BROKEN]
    assert findings_of(History([BUSY]), finding) == [Verdict.FAIL]
    assert findings_of(History([QUIET]), finding) == [Verdict.FAIL]


def test_a_wrong_byte_of_one_stream_is_a_fail_although_another_timed_out() -> None:
    for streams in ([WRONG], [CUT, WRONG], [CUT, dataclasses.replace(CUT, gap="at 5")]):
        assert findings_of(History([STUCK]), all_exact("p", streams, 100)) == [Verdict.FAIL]
    refused = dataclasses.replace(UNCONNECTED, ended_s=0.1)
    assert findings_of(History([STUCK]), all_exact("p", [refused], 100)) == [Verdict.FAIL]
    other = dataclasses.replace(WHOLE, sha256="bb")
    assert findings_of(History([STUCK]), identical("p", [WHOLE, other])) == [Verdict.FAIL]


def test_an_interrupted_run_is_excused_as_one_that_was_judged_and_a_dead_server_never_is() -> None:
    late = Finding(Verdict.FAIL, "a job starts", duration=Duration.past_deadline(20.0))
    interrupted = Interruption(Cause.PROMISE_BROKEN, "late", late)
    assert findings_of(History([interrupted, STUCK])) == [Verdict.BROKEN]
    assert findings_of(History([interrupted, BUSY])) == [Verdict.FAIL]
    died = Interruption(Cause.SERVER_DIED, "by SIGSEGV")
    assert findings_of(History([interrupted, died, STUCK])) == [Verdict.BROKEN, Verdict.FAIL]
    assert findings_of(History([GIVEN_UP, interrupted, STUCK])) == [Verdict.BROKEN] * 2
    assert findings_of(History([GIVEN_UP, interrupted, QUIET])) == [Verdict.FAIL] * 2


def test_a_check_that_timed_out_on_a_busy_machine_says_so() -> None:
    timed_out = Interruption(Cause.HARNESS_FAILED, "the check timed out after 90 s")
    check = Check("area.one", "It is so.", lambda _: None, lambda _: [])
    [finding] = judge_check(check, History([timed_out, BUSY]))
    assert "timed out after 90 s; the machine was too busy" in finding.sentence()
    [finding] = judge_check(check, History([timed_out, QUIET]))
    assert finding.got == "the check timed out after 90 s"


def test_an_inconclusive_finding_says_what_took_the_machine() -> None:
    check = Check("area.one", "It is so.", lambda _: None, lambda _: [LATE])
    [finding] = judge_check(check, History([BUSY]))
    assert "other programs took 90% of its processors" in finding.sentence()
    assert "got 2; want <= 1" in finding.sentence()


def test_every_bound_in_seconds_of_a_check_knows_the_busy_machine() -> None:
    """Processor seconds are not time that others take."""
    for path in (ROOT / "harness" / "checks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "at_most":
                words = ast.unparse(node)
                is_time = re.search(r"_s\b|second", words) and "cpu_s" not in words
                assert not is_time, f"{path.name}:{node.lineno}: use at_most_s: {words}"


def test_a_fail_after_an_assumption_that_is_not_met_is_inconclusive_and_one_before_it_is_not() -> (
    None
):
    unmet = assumed("the job is running", true=False, got="exited")
    wrong = equal("p", 1, 2)
    broken = [Verdict.BROKEN, Verdict.BROKEN]
    assert findings_of(History([]), unmet, wrong) == broken
    assert findings_of(History([]), wrong, unmet) == [Verdict.FAIL, Verdict.BROKEN]
    met = assumed("the job is running", true=True, got="running")
    assert findings_of(History([]), met, wrong) == [Verdict.PASS, Verdict.FAIL]
    check = Check("area.one", "It is so.", lambda _: None, lambda _: [unmet, wrong])
    findings = judge_check(check, History([]))
    assert merge(findings) is Verdict.BROKEN
    assert "since assumption: the job is running" in findings[1].promise


@pytest.mark.parametrize(
    ("all_s", "own_s", "share"), [(1.8, 0.0, 0.9), (1.8, 1.6, 0.1), (1.0, 1.2, 0.0), (2.4, 0, 1)]
)
def test_others_took_what_the_machine_was_busy_with_less_the_harness_own_part(
    all_s: float, own_s: float, share: float
) -> None:
    before, after = Used(10.0, 100.0, 50.0), Used(11.0, 100.0 + all_s, 50.0 + own_s)
    load = load_between(before, after, 2, [3, 5], 0.25)
    assert load == dataclasses.replace(load, tasks_per_processor=2.0, late_s=0.25)
    assert load.others_share == pytest.approx(share)


def test_a_program_that_the_harness_started_is_not_among_the_others() -> None:
    program = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    with MachineWatch() as watch:
        started_s = time.monotonic()
        with subprocess.Popen([sys.executable, "-c", program]) as hog:
            try:
                poll_until(lambda: watch.own_s() > 0.5 or None, 30, "a busy child")
            finally:
                hog.kill()
        # Waited for, its time is still the harness's own.
        assert watch.own_s() > 0.5
        assert 0.0 <= watch.load_since(started_s).others_share <= 1.0


def test_the_server_at_an_address_of_this_host_is_found_by_its_port() -> None:
    port = free_port()
    program = f"import socket, sys; s = socket.create_server(('127.0.0.1', {port})); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as server:
        address = f"127.0.0.1:{port}"
        found = poll_until(lambda: listening_process(address) or None, 20, "a listening server")
        assert found == {server.pid}
        server.kill()
    assert listening_process(address) == set()
    assert listening_process("192.0.2.1:443") == set()
