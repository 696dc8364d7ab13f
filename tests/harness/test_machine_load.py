"""The rule for a busy machine: what its load explains is inconclusive, and nothing else is."""

import ast
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.checks.check import Check
from harness.checks.identity.stalled_streams import STALLED as STALLED_STREAMS
from harness.checks.identity.stalled_streams import StalledSlot, StalledSlots
from harness.checks.limits.disk import WEIGHT, CompetingReads
from harness.checks.streams.delivery import SURVIVOR, SurvivorConditions
from harness.checks.streams.slots import CANCEL, CancelledStreams
from harness.host import machine_watch
from harness.host.clock import poll_until
from harness.host.machine_watch import MachineWatch, Used, load_between, server_processes
from harness.host.ports import free_port
from harness.host.repository import ROOT
from harness.judge.promises import answered, assumed, at_most, at_most_s, equal, in_time
from harness.judge.streams import all_exact, identical
from harness.record.history import Call, Cause, History, Interruption, Outcome, Record, Stream
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


def test_what_is_late_is_a_fail_on_a_quiet_machine_and_inconclusive_on_a_busy_one() -> None:
    assert findings_of(History([QUIET]), LATE) == [Verdict.FAIL]
    assert findings_of(History([]), LATE) == [Verdict.FAIL]
    assert findings_of(History([BUSY]), LATE) == [Verdict.BROKEN]


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
        in_time("p", None, 10.0),
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


QUERIED = Call("another", "QueryJob", Outcome.OK, "OK", "", 0.0, 0.1, {"status": "exited"})
HELD = StalledSlot(was_held=True, freed_after_s=1.0)
NEVER: dict[str, tuple[Check, Sequence[Record]]] = {
    "a slot of a stalled client": (
        STALLED_STREAMS,
        [
            StalledSlots(dataclasses.replace(HELD, freed_after_s=None), HELD),
            dataclasses.replace(QUERIED, label="an admin"),
        ],
    ),
    "slots of cancelled streams": (CANCEL, [CancelledStreams(40, 3, 20, 20, settled=True)]),
    "threads of cancelled streams": (CANCEL, [CancelledStreams(40, 0, 20, 60, settled=False)]),
    "the end of a child": (
        SURVIVOR,
        [
            SurvivorConditions(has_cgroups=False, has_added_fields=True),
            *(
                record
                for label, rest in (("child", "after\n"), ("escaped child", ""))
                for record in (
                    dataclasses.replace(WHOLE, label=label, text=f"before\nchild\n{rest}"),
                    dataclasses.replace(
                        QUERIED, label=label, response={"status": "exited", "exit_code": 4}
                    ),
                )
            ),
        ],
    ),
}


@pytest.mark.parametrize("what", NEVER)
def test_what_never_happened_is_inconclusive_only_on_a_machine_that_is_as_slow(what: str) -> None:
    check, records = NEVER[what]
    assert merge(judge_check(check, History([*records, BUSY]))) is Verdict.FAIL
    findings = judge_check(check, History([*records, STUCK]))
    assert [each.verdict for each in findings if each.verdict is not Verdict.PASS] == [
        Verdict.BROKEN
    ]


def test_a_ratio_is_not_excused_by_seconds() -> None:
    """A second of lateness is a fifth of the five that were measured, not one more of a ratio."""
    late = MachineLoad(others_share=0.0, tasks_per_processor=0.5, late_s=1.0)
    reads = CompetingReads(light=1.0, heavy=3.0)
    assert merge(judge_check(WEIGHT, History([reads, late]))) is Verdict.FAIL


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
        load = watch.load_since(started_s)
        assert load is not None
        assert 0.0 <= load.others_share <= 1.0


def test_a_program_whose_parents_have_ended_is_still_not_among_the_others() -> None:
    watch = MachineWatch()
    with subprocess.Popen(
        ["sh", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE
    ) as parent:  # fmt: skip
        assert parent.stdout
        orphan = int(parent.stdout.readline())
        watch.own_s()
        parent.kill()
    try:
        watch.own_s()
        assert orphan in watch._family
    finally:
        os.kill(orphan, signal.SIGKILL)
    poll_until(lambda: watch.own_s() >= 0 and orphan not in watch._family, 20, "its end")


@contextmanager
def listening_at(port: int) -> Iterator[int]:
    program = f"import socket, sys; s = socket.create_server(('127.0.0.1', {port})); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as server:
        poll_until(lambda: server_processes(f"127.0.0.1:{port}") or None, 20, "a server")
        yield server.pid
        server.kill()


def test_a_server_of_this_host_is_found_by_its_port_whatever_its_address_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    assert server_processes(f"192.0.2.1:{port}") is None
    assert server_processes(f"no.such.host.invalid:{port}") is None
    network_card = {"card": [SimpleNamespace(address="192.0.2.1")]}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: network_card)
    with listening_at(port) as pid:
        for host in ("127.0.0.1", "localhost", "192.0.2.1", "0.0.0.0"):  # noqa: S104 - to connect
            assert server_processes(f"{host}:{port}") == {pid}
    assert server_processes(f"127.0.0.1:{port}") == set()


def test_a_server_of_this_host_that_is_not_seen_leaves_no_load_until_one_is_seen() -> None:
    port = free_port()
    watch = MachineWatch()
    assert watch.load_since(0.0) is not None
    for _ in range(2):  # another takes its place
        watch.include(f"127.0.0.1:{port}")
        assert watch.load_since(0.0) is None
        with listening_at(port):
            watch.include(f"127.0.0.1:{port}")
            assert watch.load_since(0.0) is not None


def test_a_look_is_no_lateness_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, left = 100.0, 30

    def wait(seconds: float) -> bool:
        nonlocal now_s, left
        now_s, left = now_s + seconds, left - 1
        return left == 0

    def look_for_5_s() -> list[object]:
        nonlocal now_s
        now_s += 5.0
        return []

    monkeypatch.setattr(machine_watch, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(machine_watch, "_processes", look_for_5_s)
    watch = MachineWatch()
    monkeypatch.setattr(watch, "_ended", SimpleNamespace(wait=wait))
    watch._watch()
    load = watch.load_since(0.0)
    assert load is not None
    assert load.late_s == pytest.approx(0.0)


def test_without_the_kernel_s_files_there_is_no_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine_watch, "_PROC", tmp_path)
    with MachineWatch() as watch:
        assert watch.load_since(0.0) is None
        monkeypatch.undo()
        poll_until(lambda: watch.load_since(0.0), 20, "a load once they can be read")
