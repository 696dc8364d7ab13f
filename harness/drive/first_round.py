"""The first calls to a new kind of server: one job's round, to see that its dialect fits.

Each step has what was called, and the answer as the dialect translates it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from harness.dialects.dialect import Dialect
from harness.drive.client import Client, Reply
from harness.drive.reachability import require_job_worker
from harness.drive.receiver import StreamPlan
from harness.host.cert_files import CertFiles
from harness.host.clock import seconds_until
from harness.record.history import Recorder
from harness.record.terms import OVER
from harness.record.verdict import UnmetError
from jobworker.v1 import jobworker_pb2 as pb

WORD: Final = "hello"
ENDS_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the round.

    Attributes:
        what: was called.
        got: the canonical answer.
        fault: what a job worker's answer would be, if this is none; empty: it is one.
    """

    what: str
    got: str
    fault: str = ""


def first_round(address: str, files: CertFiles, dialect: Dialect) -> Iterator[Step]:
    """Make the round, step by step; a start that fails ends it.

    Raises:
        BrokenError: the server cannot be reached, or the dialect does not fit its schema.
    """
    require_job_worker(address, files, dialect)
    with Client(address, files, Recorder(), dialect=dialect) as client:
        reply = client.start("echo", [WORD])
        yield Step(f"start echo {WORD}", _answer(reply), "" if reply.ok else "it starts")
        if reply.ok:
            yield from _ended_job(client, reply.message.job_id)
            yield from _stopped_job(client)
        unknown = dialect.terms.unknown_id
        code = client.query(unknown).call.code
        fault = "" if code in dialect.terms.unknown_job else " or ".join(dialect.terms.unknown_job)
        yield Step(f"query {unknown}, which no job has", code, fault)


def _answer(reply: Reply) -> str:
    """Return a reply as one line, without what is absent."""
    if not reply.ok:
        return f"{reply.call.code}: {reply.call.detail}"
    message = reply.message
    found = [f"{field.name} {_text(value)}" for field, value in message.ListFields()]
    return ", ".join(found) or "an empty answer"


def _text(value: object) -> str:
    text = str(value).strip().replace("\n", " ")
    return text if text.isalnum() else repr(text)


def _ended_job(client: Client, job_id: str) -> Iterator[Step]:
    try:
        stream = client.stream(job_id, StreamPlan(keep_bytes=1000))
        end = "and its end" if not stream.unended else "and no end"
        fits = stream.text == f"{WORD}\n" and not stream.unended and stream.code == "OK"
        got = f"{stream.code}, {stream.text!r} {end}"
    except UnmetError as error:
        fits, got = False, str(error)
    yield Step("stream", got, "" if fits else f"OK, {WORD + chr(10)!r} and its end")
    over = _poll(client, job_id, lambda job: job.status in OVER)
    reply = client.query(job_id)
    yield Step("query", _answer(reply), "" if over else f"a status among {', '.join(OVER)}")


def _stopped_job(client: Client) -> Iterator[Step]:
    reply = client.start("sleep", ["60"])
    yield Step("start sleep 60", _answer(reply), "" if reply.ok else "it starts")
    if not reply.ok:
        return
    job_id = reply.message.job_id
    runs = _poll(client, job_id, lambda job: job.status == "running")
    yield Step("query", _answer(client.query(job_id)), "" if runs else "the status running")
    reply = client.stop(job_id)
    yield Step("stop", _answer(reply), "" if reply.ok else "OK")
    over = _poll(client, job_id, lambda job: job.status in OVER)
    got = _answer(client.query(job_id))
    yield Step("query", got, "" if over else f"a status among {', '.join(OVER)}")


def _poll(client: Client, job_id: str, is_so: Callable[[pb.QueryJobResponse], bool]) -> bool:
    """Query a job until something is so; return whether it is, within the time."""

    def look() -> bool:
        reply = client.query(job_id)
        return reply.ok and is_so(reply.message)

    return seconds_until(look, ENDS_WITHIN_S) is not None
