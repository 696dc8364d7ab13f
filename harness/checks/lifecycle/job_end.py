"""How a job ended, as a query reports it."""

from dataclasses import dataclass

from harness.drive.client import message_of
from harness.record.history import Call
from jobworker.v1 import jobworker_pb2 as pb


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job's status (`exited`, `signaled`; empty: no answer), exit code and signal number."""

    status: str
    exit_code: int = 0
    signal: int = 0


def end_of(query: Call) -> JobEnd:
    """Return the end that a query reported."""
    response = message_of(query, pb.QueryJobResponse)
    return JobEnd(response.status, response.exit_code, response.signal)
