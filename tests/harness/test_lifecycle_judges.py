"""What the judges of shutdowns, full servers and stopped trees see, and what they do not hold."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Final

import pytest

from harness.checks.common import WAITS
from harness.checks.lifecycle.busy import CALLS, REFUSED, judge_busy, run_busy
from harness.checks.lifecycle.shutdown import LATE, ServerShutdown, judge_shutdown
from harness.checks.lifecycle.stopped_trees import (
    TREE,
    TREE_BYTES,
    TREE_PROCESSES,
)
from harness.dialects.dialect import CANONICAL
from harness.drive.client import Reply
from harness.host.clock import measured_window
from harness.record.history import Call, History, Outcome, Recorder, Stream
from harness.record.terms import UNKNOWN_ID
from harness.record.verdict import Finding, Verdict

LATE_STARTS: Final = "starts that succeed while the server stops its jobs"


def failed(findings: Iterable[Finding]) -> list[str]:
    """Return the promises that a judge calls broken."""
    return [each.promise for each in findings if each.verdict is Verdict.FAIL]


def call(label: str, code: str, started_s: float, ended_s: float, detail: str = "") -> Call:
    outcome = Outcome.OK if code == "OK" else Outcome.ERROR
    return Call(label, "", outcome, code, detail, started_s, ended_s)


@pytest.mark.parametrize(
    ("starts_s", "broken"),
    [
        pytest.param([], [], id="none succeeds"),
        pytest.param([0.1], [], id="one overtakes the signal"),
        pytest.param([0.1, 0.3], [LATE_STARTS], id="one succeeds after a job's end"),
    ],
)
def test_start_that_succeeds_while_the_server_stops_its_jobs_fails(
    starts_s: list[float], broken: list[str]
) -> None:
    streams = [
        Stream(label, "job", Outcome.OK, "OK", "", 6, "", 0.0, ended_s)
        for label, ended_s in (("obeys", 0.2), ("resists", 2.2))
    ]
    starts = [call(LATE, "OK", at_s, at_s + 0.05) for at_s in starts_s]
    refused = call(LATE, "UNAVAILABLE", max(starts_s, default=0) + 0.1, 2.2, "failed to connect")
    ended = ServerShutdown(exit_code=0, seconds=2.1, job_pids=(7, 8), jobs_left=0)
    assert failed(judge_shutdown(History([ended, *streams, *starts, refused]))) == broken


CODES: Final = dict.fromkeys(CALLS, "NOT_FOUND") | {"StartJob": "OK", "ListJobs": "OK"}


class OneThread:
    """A client of a server with one thread for calls, which each admitted call holds for a while.

    Shared state: `_thread` is its own guard.
    """

    unknown_id = UNKNOWN_ID

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._thread = threading.Lock()

    def __getattr__(self, _: str) -> Callable[..., Reply]:
        return self._call

    def _call(self, *_: object, label: str, page_size: int = 1) -> Reply:
        del page_size
        code, detail = REFUSED, "full"
        if self._thread.acquire(blocking=False):
            measured_window(0.02)
            code, detail = CODES[label], ""
            self._thread.release()
        made = call(label, code, 0.0, 0.1, detail)
        self._recorder.add(made)
        return Reply(made, None)


def test_calls_of_one_rpc_have_ended_before_those_of_the_next_begin() -> None:
    recorder = Recorder()
    stage: Any = SimpleNamespace(
        dialect=CANONICAL,
        fresh_server=lambda _: nullcontext(),
        client=lambda server: nullcontext(OneThread(recorder)),  # noqa: ARG005
    )
    run_busy(stage)
    assert failed(judge_busy(recorder.history())) == []


@pytest.mark.parametrize(("took_s", "broken"), [(0.2, []), (19.0, ["StopJob"])])
def test_refusal_that_is_not_at_once_fails(took_s: float, broken: list[str]) -> None:
    calls = [call(rpc, code, 0.0, 0.1) for rpc, code in CODES.items()]
    calls += [call(rpc, REFUSED, 0.0, took_s if rpc == "StopJob" else 0.1, "full") for rpc in CODES]
    promises = [f"seconds of the slowest refusal of {rpc}" for rpc in broken]
    assert failed(judge_busy(History(calls))) == promises


def test_reader_of_the_tree_has_all_numbers_with_ends_of_lines_and_without() -> None:
    words = ["sh", "-c", TREE, "mark", WAITS]
    tree = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    with tree:
        assert tree.stdout is not None
        lines = [tree.stdout.readline().decode() for _ in range(4)]
        os.killpg(tree.pid, signal.SIGKILL)
    for text in ("".join(lines), "".join(line.rstrip("\n") for line in lines)):
        assert len(text) >= TREE_BYTES
        assert len(re.findall(r"\d{7}", text[:TREE_BYTES])) == TREE_PROCESSES
