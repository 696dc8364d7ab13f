"""How a job ended, as a query reports it, and whether that is how it did end.

Of another kind of server, what it does not report is not compared.
"""

from dataclasses import dataclass

from harness.drive.client import message_of
from harness.judge.promises import holds
from harness.record.history import Call
from harness.record.terms import Terms
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job's status (`exited`, `signaled`; empty: no answer), exit code and signal number.

    `ended`: the server does not report which of both it was.
    """

    status: str
    exit_code: int = 0
    signal: int = 0


def end_of(query: Call) -> JobEnd:
    """Return the end that a query reported."""
    response = message_of(query, pb.QueryJobResponse)
    return JobEnd(response.status, response.exit_code, response.signal)


def is_end(got: JobEnd, want: JobEnd, terms: Terms) -> bool:
    """Return whether a reported end is the wanted one, in all that the server reports."""
    return (
        terms.is_status(got.status, want.status)
        and ("exit_code" not in terms.reports or got.exit_code == want.exit_code)
        and ("signal" not in terms.reports or got.signal == want.signal)
    )


def is_stopped(got: JobEnd, terms: Terms) -> bool:
    """Return whether a reported end is one by a stop's signal.

    Another kind of server may report that a job was stopped, and no signal.
    """
    signals = (15, 9) if terms.own else (15, 9, 0)
    return any(is_end(got, JobEnd("signaled", signal=number), terms) for number in signals)


def ends_as(promise: str, got: JobEnd, want: JobEnd, terms: Terms) -> Finding:
    """Promise how a job ended."""
    return holds(promise, kept=is_end(got, want, terms), got=got, want=want)
