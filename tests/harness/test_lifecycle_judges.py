"""What the judges of shutdowns, full servers and stopped trees see, and what they do not hold."""

from collections.abc import Iterable
from typing import Final

import pytest

from harness.checks.lifecycle.shutdown import LATE, ServerShutdown, judge_shutdown
from harness.record.history import Call, History, Outcome, Stream
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
