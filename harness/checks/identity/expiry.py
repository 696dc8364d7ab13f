"""Certificates that expire while their client has a session ticket, or a stream."""

import datetime as dt
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from harness.checks.check import Check, Need, Stage
from harness.checks.raw_calls import admission_query, call_anew, is_admitted
from harness.drive.certificates import Authority
from harness.drive.identities import client_spec
from harness.drive.net.http2 import CallEnd, CallOutcome
from harness.drive.net.tls_client import client_context
from harness.drive.receiver import StreamPlan
from harness.host.cert_files import CertFiles
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, at_least, at_most_s, equal, floor, holds
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import BrokenError, Finding, UnsupportedError

# Long enough for a handshake and a call, also on a slow machine.
SHORT_LIFE_S: Final = 3.0
TRUNCATION_S: Final = 1.0  # X.509 truncates a certificate's end to a whole second
REFUSED_WITHIN_S: Final = 20.0
ENDS_WITHIN_S: Final = 10.0
ENDS_WHY: Final = "the certificate's end is exact; a busy machine is late to act on it"
EARLY_S: Final = 0.5
EARLY_WHY: Final = "two clocks of one machine, read one after the other"
LEFT_AT_START_S: Final = 1.0  # how long the certificate must still be valid when a stream starts
REFUSED: Final = ("UNAUTHENTICATED", "UNAVAILABLE")


def make_expiring(stage: Stage, directory: str) -> CertFiles:
    """Make a user's certificate that is valid for a few seconds."""
    life = dt.timedelta(seconds=stage.patience(SHORT_LIFE_S) + TRUNCATION_S)
    identities = stage.target.identities
    spec = client_spec(identities.scheme, "user", ends=life)
    authority = Authority.load(identities.directory)
    return authority.write(Path(directory), "expiring", spec)


def end_of(files: CertFiles) -> float:
    """Return when a certificate expires, in seconds since 1970."""
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    return certificate.not_valid_after_utc.timestamp()


@dataclass(frozen=True, slots=True)
class ResumedCall:
    """A query on a connection that offered a session ticket.

    Attributes:
        outcome: of the call.
        resumed: whether the server accepted the ticket.
    """

    outcome: CallOutcome
    resumed: bool


@dataclass(frozen=True, slots=True)
class SessionResumption(Observation):
    """Resumption of a TLS session before and after the client's certificate expired.

    Attributes:
        full: the query on the full handshake that brought the ticket.
        in_time: the query on the resumed session while the certificate was valid.
        refused_after_s: when a full handshake was refused; None: not in time.
        expired: the query with the ticket after that.
    """

    full: CallOutcome
    in_time: ResumedCall
    refused_after_s: float | None
    expired: ResumedCall


def run_resumption(stage: Stage) -> None:
    """Resume a session while the client's certificate is valid, and after it has expired."""
    address, terms, query = stage.server.address, stage.dialect.terms, admission_query(stage)
    with tempfile.TemporaryDirectory() as directory:
        files = make_expiring(stage, directory)
        ends_at_s = end_of(files)
        context = client_context(files)
        full = call_anew(address, context, query)
        if full.outcome.end is CallEnd.UNCONNECTED:
            raise BrokenError(f"a valid certificate cannot connect: {full.outcome}")
        if full.session is None or not full.session.has_ticket:
            raise UnsupportedError("TLS session tickets (it sends none)")
        in_time = call_anew(address, context, query, full.session)
        if not in_time.resumed:
            raise UnsupportedError("resumption of TLS sessions (it sends tickets, accepts none)")
        # A new context has no ticket to offer: its handshake is a full one.
        fresh = client_context(files)
        refused_after_s = seconds_until(
            # Not before its end: a call may fail for another reason.
            lambda: (
                time.time() > ends_at_s
                and not is_admitted(call_anew(address, fresh, query).outcome, terms)
            ),
            stage.patience(REFUSED_WITHIN_S),
        )
        expired = call_anew(address, context, query, full.session)
    stage.record(
        SessionResumption(
            full.outcome,
            ResumedCall(in_time.outcome, in_time.resumed),
            refused_after_s,
            ResumedCall(expired.outcome, expired.resumed),
        )
    )


def judge_resumption(history: History) -> Iterator[Finding]:
    """The ticket is worth nothing once the certificate has expired."""
    seen, terms = history.the(SessionResumption), terms_of(history)
    yield assumed(
        "the certificate is valid at first", true=is_admitted(seen.full, terms),
        got=str(seen.full),
    )  # fmt: skip
    in_time = seen.in_time
    yield assumed(
        "a session is resumed while the certificate is valid",
        true=in_time.resumed and is_admitted(in_time.outcome, terms),
        got=f"{in_time.outcome}, {'resumed' if in_time.resumed else 'not resumed'}",
    )  # fmt: skip
    yield assumed(
        "a full handshake is refused after the certificate's end",
        true=seen.refused_after_s is not None, got=seen.refused_after_s,
    )  # fmt: skip
    what = "a resumed session" if seen.expired.resumed else "a ticket"
    outcome = seen.expired.outcome
    # A server that rejects the ticket refuses in the handshake instead.
    refused = outcome.is_status(*REFUSED) or outcome.end in {CallEnd.UNCONNECTED, CallEnd.CLOSED}
    yield holds(
        f"{what} is refused once the certificate has expired", kept=refused, got=str(outcome),
        want=" or ".join(REFUSED),
    )  # fmt: skip


RESUMPTION: Final = Check(
    "identity.resumption",
    "A TLS session cannot be resumed once its client's certificate has expired.",
    run_resumption, judge_resumption, frozenset({Need.IDENTITIES, Need.GRPC}), ("24",),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExpiringStream(Observation):
    """A stream of a silent job, whose client's certificate expired meanwhile.

    Attributes:
        left_at_start_s: how long the certificate was still valid when the stream was requested.
        late_s: from the certificate's end to the stream's; negative: the stream ended first.
    """

    left_at_start_s: float
    late_s: float


def run_expiry(stage: Stage) -> None:
    """Follow a silent job with a certificate that expires meanwhile."""
    with tempfile.TemporaryDirectory() as directory, stage.client() as admin:
        job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        files = make_expiring(stage, directory)
        ends_at_s = end_of(files)
        with stage.client_of(files) as client:
            bound_s = stage.patience(SHORT_LIFE_S) + TRUNCATION_S + 1.5 * ENDS_WITHIN_S
            plan = StreamPlan(keep_bytes=100, timeout_s=bound_s, may_time_out=True)
            left_s = ends_at_s - time.time()
            client.stream(job_id, plan, label="expiring")
            stage.record(ExpiringStream(left_s, time.time() - ends_at_s))
            client.query(job_id, label="expired")
        admin.query(job_id, label="an admin")
        admin.stop(job_id)


def judge_expiry(history: History) -> Iterator[Finding]:
    """The stream ends with the certificate; the same connection is refused afterwards."""
    seen = history.the(ExpiringStream)
    yield floor("seconds until the certificate expires", seen.left_at_start_s, LEFT_AT_START_S)
    stream = history.stream("expiring")
    if stream.first_byte_s is None and stream.code in REFUSED and seen.late_s >= -EARLY_S:
        # The stream was requested too late: its refusal says nothing about running streams.
        yield assumed("the stream starts before the certificate's end", true=False, got=stream.code)
        return
    yield equal("the stream has the job's output until then", stream.text, "ready\n")
    yield equal("the stream ends when its certificate expires", stream.code, "UNAUTHENTICATED")
    yield at_least(
        "seconds from the certificate's end to the stream's: not before it", seen.late_s, -EARLY_S,
        EARLY_WHY,
    )  # fmt: skip
    yield at_most_s(
        "seconds from the certificate's end to the stream's", seen.late_s, ENDS_WITHIN_S, ENDS_WHY
    )
    yield answered("the same connection is refused then", history.call("expired"), *REFUSED)
    yield answered("other clients are still served", history.call("an admin"))


EXPIRY: Final = Check(
    "identity.expiry",
    "A stream ends when its client's certificate expires, and not before.",
    run_expiry, judge_expiry, frozenset({Need.IDENTITIES}), ("25",),
    ours=True,
)  # fmt: skip
