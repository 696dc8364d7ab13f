"""Calls as HTTP/2 messages, for the checks that speak below gRPC."""

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Stage
from harness.dialects.dialect import Dialect, RawCall
from harness.drive.net.http2 import CallEnd, CallOutcome, Http2, RawHttp2
from harness.drive.net.tls_client import TlsConnection, client_context
from harness.host.cert_files import CertFiles
from harness.record.terms import Terms
from harness.record.verdict import BrokenError, Finding, UnmetError, Verdict
from jobworker.v1 import jobworker_pb2 as pb

GREET_TIMEOUT_S: Final = 20.0
ANSWER_TIMEOUT_S: Final = 20.0
CALL_TIMEOUT_S: Final = 60.0  # an emulated guest under load


def unknown_query(dialect: Dialect) -> RawCall:
    """Return a query of a job that does not exist."""
    return dialect.raw(pb.QueryJobRequest(job_id=dialect.terms.unknown_id))


def queried_id(stage: Stage) -> str:
    """Return the id of the job whose query shows whether its caller was admitted.

    No job has it, or one that an admin has started: see `Terms.hides_refusals`.

    Raises:
        UnmetError: the server does not start a job.
    """
    terms = stage.dialect.terms
    if not terms.hides_refusals:
        return terms.unknown_id
    with stage.client() as client:
        return client.must_start("true")


def admission_query(stage: Stage) -> RawCall:
    """Return the query that shows whether its caller was admitted; see `queried_id`."""
    return stage.dialect.raw(pb.QueryJobRequest(job_id=queried_id(stage)))


def stream_call(dialect: Dialect, job_id: str) -> RawCall:
    """Return a stream of a job's output, from its first byte to its end."""
    return dialect.raw(pb.StreamLogsRequest(job_id=job_id))


def is_admitted(outcome: CallOutcome, terms: Terms) -> bool:
    """Return whether the outcome of an `admission_query` shows that its caller was admitted."""
    return outcome.end is CallEnd.STATUS and terms.is_admitted(outcome.detail)


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """How a call on a connection of its own ended.

    Attributes:
        outcome: of the call; see `Terms.is_admitted`.
        resumed: whether the handshake resumed a session.
        session: the newest session ticket; None: the server sent none.
    """

    outcome: CallOutcome
    resumed: bool = False
    session: ssl.SSLSession | None = None


def call_anew(
    address: str,
    context: ssl.SSLContext,
    call: RawCall,
    session: ssl.SSLSession | None = None,
) -> RawAnswer:
    """Make a call on a new connection."""
    try:
        with TlsConnection(address, context, session=session) as connection:
            outcome = Http2(connection).call(*call, CALL_TIMEOUT_S)
            return RawAnswer(outcome, connection.resumed, connection.session)
    except OSError as error:
        return RawAnswer(CallOutcome(CallEnd.UNCONNECTED, type(error).__name__))


def must_connect(address: str, context: ssl.SSLContext) -> TlsConnection:
    """Connect to a server that accepts connections.

    Raises:
        UnmetError: it does not.
        BrokenError: this process has no free descriptor.
    """
    try:
        return TlsConnection(address, context)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise BrokenError(f"no connection to {address}: {error.strerror}") from error
        got = f"{type(error).__name__}: {error}"
        promise = "the server accepts new connections"
        raise UnmetError(Finding(Verdict.FAIL, promise, got)) from error


@contextmanager
def open_http2(
    address: str, files: CertFiles, *, window_bytes: int | None = None
) -> Iterator[Http2]:
    """Connect and exchange settings; the connection closes with the context.

    Raises:
        UnmetError: the server does not accept the connection.
    """
    with must_connect(address, client_context(files)) as connection:
        http2 = Http2(connection, window_bytes=window_bytes)
        http2.greet(GREET_TIMEOUT_S)
        yield http2


@contextmanager
def open_raw_http2(address: str, files: CertFiles) -> Iterator[RawHttp2]:
    """Connect and exchange settings, to send any bytes; the connection closes with the context.

    Raises:
        UnmetError: the server does not accept the connection.
    """
    with must_connect(address, client_context(files)) as connection:
        http2 = RawHttp2(connection)
        http2.greet(GREET_TIMEOUT_S)
        yield http2
