"""What a dialect cannot express is not judged, and what its statuses mean is."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest

from harness.checks import ALL, require_promises
from harness.checks.check import Need
from harness.checks.common import WriterJob
from harness.checks.identity.client_certificates import (
    CertificateAnswer,
    CertificateAnswers,
    judge_certificates,
    query_status,
)
from harness.checks.lifecycle import ending
from harness.checks.lifecycle.busy import CALLERS, judge_busy
from harness.checks.lifecycle.busy import CALLS as BUSY_CALLS
from harness.checks.lifecycle.ending import DEADLY, DUMPING, ReportedEnd, SignalRun, judge_signals
from harness.checks.lifecycle.forgetting import CALLS, DeletedOutput, judge_delete
from harness.checks.lifecycle.job_end import JobEnd
from harness.checks.lifecycle.job_times import TimedJob, TimesOfRunningJob, judge_times
from harness.checks.lifecycle.left_over import count_left_over
from harness.checks.lifecycle.starting import (
    SCRIPT,
    UNSTARTABLE,
    RefusedStarts,
    judge_bad_commands,
)
from harness.checks.raw_calls import queried_id
from harness.checks.streams.pauses import STALLED_READERS, ReadBesideStalled, judge_stalled
from harness.dialects.command_table import CommandTable
from harness.dialects.load import load_dialect
from harness.dialects.stub import DialectError
from harness.record.history import Call, Outcome, Recorder, Stream
from harness.record.terms import NOT_SENT, OWN_TERMS, Terms
from harness.record.verdict import BrokenError, Finding, Verdict
from harness.run.capabilities import named_needs

PROTO = """
syntax = "proto3"; package all.v1;
message Limits { int64 cpu = 1; int64 memory = 2; int64 weight = 3; int64 pids = 4; }
message Job {
  string id = 1; int64 number = 2; string program = 3; repeated string words = 4; string state = 5;
  Limits limits = 6; bytes output = 7; int64 at = 8; int64 missed = 9; int64 from = 10;
  int64 tail = 11; int64 lines = 12; bool no_follow = 13; google.protobuf.Timestamp begun = 14;
  google.protobuf.Timestamp over = 15; int32 code = 16;
}
service All {
  rpc Start(Job) returns (Job); rpc Stop(Job) returns (Job); rpc Query(Job) returns (Job);
  rpc Stream(Job) returns (stream Job); rpc Delete(Job) returns (Job); rpc List(Job) returns (Job);
}
""".replace("package all.v1;", 'package all.v1; import "google/protobuf/timestamp.proto";')
LIMITS = 'limits.cpu = "limits.cpu"\nlimits.memory_bytes = "limits.memory"\n'
ALL_LIMITS = f'{LIMITS}limits.io_weight = "limits.weight"\nlimits.pids_max = "limits.pids"\n'
SOME_OFFSETS = 'offset = "at"\nfrom_offset = "from"\n'
ALL_OFFSETS = (
    f'{SOME_OFFSETS}missed_bytes = "missed"\ntail_bytes = "tail"\ntail_lines = "lines"\n'
    'no_follow = "no_follow"\n'
)


def dialect_file(
    folder: Path, *, start: str = "", query: str = "", stream: str = "", field: str = "id"
) -> str:
    """Write a dialect of a server that has every field, and return its path."""
    (folder / "all.proto").write_text(PROTO)
    (folder / "all.toml").write_text(
        'name = "all"\n[protocol]\nproto = "all.proto"\nservice = "all.v1.All"\n'
        f'[start]\nrpc = "Start"\nid = "{field}"\nprogram = "program"\narguments = "words"\n{start}'
        f'[stop]\nrpc = "Stop"\nid = "{field}"\n[query]\nrpc = "Query"\nid = "{field}"\n'
        f'[query.job]\nstate = "state"\nrunning = ["runs"]\nended = ["over"]\n{query}'
        f'[stream]\nrpc = "Stream"\nid = "{field}"\noutput = "output"\n{stream}'
    )
    return str(folder / "all.toml")


def verdicts(findings: Iterator[Finding], about: str) -> set[Verdict]:
    found = {finding.verdict for finding in findings if about in finding.promise}
    assert found, about
    return found


@pytest.mark.parametrize(
    ("start", "query", "stream", "named"),
    [
        (LIMITS, LIMITS, SOME_OFFSETS, set()),
        (ALL_LIMITS, LIMITS, ALL_OFFSETS, {"offset"}),
        (LIMITS, ALL_LIMITS, "", set()),
        (ALL_LIMITS, ALL_LIMITS, ALL_OFFSETS, {"offset", "limits"}),
    ],
)
def test_offsets_and_limits_are_named_as_a_whole(
    start: str, query: str, stream: str, named: set[str], tmp_path: Path
) -> None:
    terms = load_dialect(dialect_file(tmp_path, start=start, query=query, stream=stream)).terms
    assert {"offset", "limits"} - set(terms.lacks) == named
    assert {"io_max", "usage", "log_size_bytes"} <= set(terms.lacks)


@pytest.mark.parametrize(
    ("start", "answer", "named"),
    [
        ("{memory_max_bytes}", {"limits": "limits"}, set()),
        ("{cpu_cores}{memory_max_bytes}{io_weight}{pids_max}", {"limits.pids_max": "p"}, set()),
        ("{cpu_cores}{memory_max_bytes}{io_weight}{pids_max}", {"limits": "limits"}, {"limits"}),
        ("", {"usage": "u", "log_size_bytes": "s"}, {"log_size_bytes"}),
        ("", {"usage": "u", "oom_killed": "o"}, {"usage"}),
    ],
)
def test_a_command_line_names_limits_only_if_it_sets_and_reports_each(
    start: str, answer: dict[str, str], named: set[str]
) -> None:
    table = msgspec.convert(
        {
            "start": ["run", "{new_id}", *re.findall(r"{\w+}", start)], "query": ["show"],
            "stream": ["logs"], "answers": {"query": {"status": "status", **answer}},
        },
        CommandTable,
    )  # fmt: skip
    assert {"limits", "io_max", "usage", "log_size_bytes"} - set(table.lacks()) == named


@pytest.mark.parametrize(
    ("need", "names"),
    [
        (Need.LOG_SIZES, "lifecycle.ended-descriptors lifecycle.record streams.retention"),
        (Need.TIMES, "lifecycle.times"),
        (Need.USAGE, "limits.usage limits.memory limits.twenty-at-once"),
        (Need.IO_MAX, "limits.reported limits.impossible limits.io-bytes-per-second"),
    ],
)
def test_a_check_needs_the_field_that_it_compares(need: Need, names: str, tmp_path: Path) -> None:
    terms = load_dialect(dialect_file(tmp_path, query='started_at = "begun"\n')).terms
    assert named_needs(terms)[need]
    assert not named_needs(OWN_TERMS)[need]
    needing = {check.name for check in ALL if need in check.needs}
    assert set(names.split()) <= needing


def test_times_are_needed_of_a_query_and_not_of_a_list(tmp_path: Path) -> None:
    times = 'started_at = "begun"\nended_at = "over"\n'
    terms = load_dialect(dialect_file(tmp_path, query=times)).terms
    assert not named_needs(terms)[Need.TIMES]
    recorder = Recorder()
    recorder.add(terms)
    recorder.add(TimedJob(2, 1, 3, (None, None)))
    recorder.add(TimesOfRunningJob((True, False), (False, False)))
    assert not [each for each in judge_times(recorder.history()) if "list" in each.promise]
    recorder.add(TimedJob(5, 4, 6, (4, 7)))
    assert verdicts(judge_times(recorder.history()), "in a list") == {Verdict.FAIL}


REFUSES_UNKNOWN = Terms(own=False, unknown_job=("UNAUTHENTICATED",))


def certificate_verdict(terms: Terms, expected: str, status: str) -> Verdict:
    recorder = Recorder()
    recorder.add(terms)
    recorder.add(CertificateAnswers((CertificateAnswer(2, "this one", expected, status),)))
    recorder.add(Stream("stream this one", "job", Outcome.OK, "OK", "", 5, "", 0, 1))
    findings = judge_certificates(recorder.history())
    return next(each.verdict for each in findings if "a client certificate" in each.promise)


def test_where_an_unknown_job_is_refused_a_job_that_exists_shows_who_was_admitted() -> None:
    assert REFUSES_UNKNOWN.admitting == ("OK",)
    assert certificate_verdict(REFUSES_UNKNOWN, "UNAVAILABLE", "OK") is Verdict.FAIL
    assert certificate_verdict(REFUSES_UNKNOWN, "UNAVAILABLE", "UNAUTHENTICATED") is Verdict.PASS
    assert certificate_verdict(REFUSES_UNKNOWN, "OK", "OK") is Verdict.PASS
    assert certificate_verdict(REFUSES_UNKNOWN, "OK", "UNAUTHENTICATED") is Verdict.FAIL
    assert certificate_verdict(Terms(own=False), "OK", "NOT_FOUND") is Verdict.PASS


class Jobs:
    """Starts jobs that all end with one status."""

    def __init__(self, status: str) -> None:
        self.status = status

    def must_start(self, *_: object, **__: object) -> str:
        return "a job"

    def must_query(self, _: str) -> object:
        return SimpleNamespace(status=self.status)

    def stream(self, *_: object, **__: object) -> None:
        pass


def stage_of(terms: Terms, status: str = "exited") -> Any:
    @contextmanager
    def client() -> Iterator[Jobs]:
        yield Jobs(status)

    recorder = Recorder()
    return SimpleNamespace(
        client=client, dialect=SimpleNamespace(terms=terms), record=recorder.add,
        pick=lambda full, small: small if full else full, recorder=recorder,
        server=SimpleNamespace(pid=None),
    )  # fmt: skip


def test_the_admin_starts_the_job_that_is_queried() -> None:
    assert queried_id(stage_of(REFUSES_UNKNOWN)) == "a job"
    assert queried_id(stage_of(OWN_TERMS)) == OWN_TERMS.unknown_id


def test_a_query_that_was_not_sent_admits_nobody() -> None:
    def query(*_: object, **__: object) -> None:
        raise DialectError(grpc.StatusCode.INVALID_ARGUMENT, f"{NOT_SENT}no number")

    stub: Any = SimpleNamespace(QueryJob=query)
    with pytest.raises(BrokenError, match="no number"):
        query_status(stub, "x")


def test_an_unknown_id_that_does_not_fit_is_an_error_of_the_file(tmp_path: Path) -> None:
    source = dialect_file(tmp_path, field="number")
    with pytest.raises(BrokenError, match=r"unknown_id '761db04c.*'number' is a int64.*99999"):
        load_dialect(source)
    text = Path(source).read_text().replace('name = "all"', 'name = "all"\nunknown_id = "999"')
    Path(source).write_text(text)
    assert load_dialect(source).terms.unknown_id == "999"


@pytest.mark.parametrize(
    ("terms", "status", "ended"),
    [
        (OWN_TERMS, "exited", True), (OWN_TERMS, "signaled", False),
        (Terms(own=False), "ended", True), (Terms(own=False), "signaled", False),
    ],
)  # fmt: skip
def test_a_short_job_has_ended_when_it_exited(terms: Terms, status: str, ended: bool) -> None:
    stage = stage_of(terms, status)
    ending.run_short_jobs(stage)
    jobs = stage.recorder.history().the(ending.ShortJobs)
    assert jobs.queried > 0
    assert jobs.ended == (jobs.queried if ended else 0)


@pytest.mark.parametrize(
    ("terms", "about", "verdict"),
    [
        (OWN_TERMS, "core files are counted", Verdict.BROKEN),
        (Terms(own=False), "dump core", Verdict.SKIPPED),
    ],
)
def test_core_files_that_are_not_counted(terms: Terms, about: str, verdict: Verdict) -> None:
    recorder = Recorder()
    recorder.add(terms)
    recorder.add(SignalRun(len(DEADLY), "core0", None))
    for number in (*DEADLY, *DUMPING):
        end = JobEnd("signaled", signal=number)
        recorder.add(ReportedEnd(end, end, may_dump_core=False))
    for number in DUMPING:
        end = JobEnd("signaled", signal=number)
        recorder.add(ReportedEnd(end, end, may_dump_core=True))
    assert verdicts(judge_signals(recorder.history()), about) == {verdict}


def test_a_shell_that_a_stop_left_over_counts_and_the_one_that_looks_does_not() -> None:
    with subprocess.Popen(["sh", "-c", "read line; :"], stdin=subprocess.PIPE) as shell:
        script = count_left_over([shell.pid])
        left = subprocess.check_output(["sh", "-c", script], text=True)
        shell.terminate()
    assert left.strip() == "1"
    script = count_left_over([7]).replace("/proc/7/", "/proc/$$/")
    assert subprocess.check_output(["sh", "-c", script], text=True).strip() == "0"
    assert subprocess.check_output(["sh", "-c", count_left_over([])], text=True).strip() == "0"


def call(label: str, code: str, detail: str = "") -> Call:
    return Call(label, "QueryJob", Outcome.ERROR, code, detail, 0.0, 1.0)


def test_a_start_that_was_not_sent_is_not_judged() -> None:
    recorder = Recorder()
    recorder.add(Terms(own=False))
    for label in (*UNSTARTABLE, SCRIPT):
        detail = f"{NOT_SENT}a NUL" if "NUL" in label else ""
        recorder.add(call(label, "FAILED_PRECONDITION", detail))
    recorder.add(call("a good command after all these", "OK"))
    recorder.add(RefusedStarts("script", None, None))
    findings = list(judge_bad_commands(recorder.history()))
    assert verdicts(iter(findings), "NUL") == {Verdict.SKIPPED}
    assert verdicts(iter(findings), "directory") == {Verdict.PASS}


def test_refusal_that_is_too_long_for_our_client_is_one_of_another_kind_of_server() -> None:
    detail = "Stream removed (received metadata size exceeds soft limit (12235 vs. 8192);  :status"
    for terms, verdict in ((OWN_TERMS, Verdict.FAIL), (Terms(own=False), Verdict.PASS)):
        recorder = Recorder()
        recorder.add(terms)
        for label in (*UNSTARTABLE, SCRIPT):
            recorder.add(call(label, "RESOURCE_EXHAUSTED", detail))
        recorder.add(call("a good command after all these", "OK"))
        recorder.add(RefusedStarts("script", None, None))
        assert verdicts(judge_bad_commands(recorder.history()), "directory") == {verdict}


def test_calls_of_unknown_jobs_get_the_statuses_of_the_dialect() -> None:
    terms = Terms(own=False, unknown_job=("UNKNOWN",), bad_id=("OUT_OF_RANGE",))
    recorder = Recorder()
    recorder.add(terms)
    for rpc in BUSY_CALLS:
        code = "OK" if rpc in {"StartJob", "ListJobs"} else "UNKNOWN"
        for number in range(CALLERS):
            recorder.add(call(rpc, "RESOURCE_EXHAUSTED" if number else code, "busy"))
    assert verdicts(judge_busy(recorder.history()), "at once") == {Verdict.PASS}
    for which in ("deleted", "unknown"):
        for name in CALLS:
            recorder.add(call(f"{name} {which}", "UNKNOWN"))
    for label in ("delete running", "query running", "delete ended", "list"):
        recorder.add(call(label, "OK"))
    recorder.add(call("delete malformed", "OUT_OF_RANGE"))
    for label, code in (("stream deleted", "UNKNOWN"), ("reader behind", "OK")):
        recorder.add(Stream(label, "job", Outcome.OK, code, "", 5, "", 0, 1))
    recorder.add(WriterJob("job", "seed", total_bytes=5))
    recorder.add(DeletedOutput(None, None))
    findings = list(judge_delete(recorder.history()))
    assert verdicts(iter(findings), "not found") == {Verdict.PASS}
    assert verdicts(iter(findings), "malformed") == {Verdict.PASS}
    assert not [each for each in findings if "names it" in each.promise]


@pytest.mark.parametrize(
    ("times", "own", "others"),
    [
        (1, Verdict.PASS, Verdict.PASS),
        (4, Verdict.FAIL, Verdict.PASS),
        (STALLED_READERS, Verdict.FAIL, Verdict.FAIL),
    ],
)
def test_output_of_other_kinds_may_grow_by_copying_and_not_with_its_readers(
    times: int, own: Verdict, others: Verdict
) -> None:
    total_bytes = 100_000_000
    for terms, verdict in ((OWN_TERMS, own), (Terms(own=False), others)):
        recorder = Recorder()
        recorder.add(terms)
        recorder.add(WriterJob("job", "seed", total_bytes))
        recorder.add(ReadBesideStalled(20, 1.0, 2.0, times * total_bytes))
        recorder.add(call("meanwhile", "OK"))
        recorder.add(call("start meanwhile", "OK"))
        assert verdicts(judge_stalled(recorder.history()), "memory") == {verdict}


@pytest.mark.parametrize("promise", ["lifecycle.lastwords", "limit.*", ""])
def test_a_promise_that_is_no_check_is_an_error(promise: str) -> None:
    with pytest.raises(BrokenError, match=rf"promises: '{re.escape(promise)}' matches no check;"):
        require_promises(Terms(promises=("lifecycle.*", promise)))


def test_the_promises_of_checks_are_checks() -> None:
    require_promises(Terms(promises=("*", "identity.strangers", "limits.[dm]*")))
