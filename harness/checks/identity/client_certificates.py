"""Client certificates: each one of the table is accepted, or refused with its status.

Which certificates there are depends on the scheme of the server's identities: what every server
with mutual TLS must decide one way, and what it may decide as it likes, judged as its scheme says.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import grpc

from harness.checks.check import Check, Need, Stage
from harness.checks.raw_calls import CALL_TIMEOUT_S, queried_id
from harness.dialects.dialect import Stub
from harness.drive.identities import Case, cases_of
from harness.drive.receiver import StreamPlan, outcome_of
from harness.judge.promises import equal, floor, holds, one_of, repeating
from harness.record.foundations import WHOLE
from harness.record.history import History, Observation
from harness.record.terms import NOT_SENT, REFUSING, terms_of
from harness.record.verdict import BrokenError, Finding
from jobworker.v1 import jobworker_pb2 as pb

# Keyed by the status that a case expects. TLS libraries differ in what they reject during the
# handshake, so an earlier refusal is allowed.
ALLOWED: Final = {
    "UNAVAILABLE": REFUSING,
    "UNAUTHENTICATED": frozenset({"UNAVAILABLE", "UNAUTHENTICATED"}),
    "PERMISSION_DENIED": REFUSING,
}


@dataclass(frozen=True, slots=True)
class CertificateAnswer:
    """The answer to a query of `queried_id` with one certificate.

    Attributes:
        number, name: of the case.
        expected: what the case expects.
        status: of the query; `Terms.admitting` shows that the caller was admitted.
    """

    number: int
    name: str
    expected: str
    status: str


@dataclass(frozen=True, slots=True)
class CertificateAnswers(Observation):
    """The answer to a query with each certificate of the table."""

    answers: tuple[CertificateAnswer, ...]


def query_status(stub: Stub, job_id: str) -> str:
    """Query a job and return the status; see `Terms.is_admitted`.

    Raises:
        BrokenError: the dialect cannot express the query, so that no server answered.
    """
    request = pb.QueryJobRequest(job_id=job_id)
    try:
        stub.QueryJob(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        _, code, detail = outcome_of(error)
        if detail.startswith(NOT_SENT):
            raise BrokenError(detail) from error
        return code
    return "OK"


def _try_certificates(stage: Stage, cases: Sequence[Case]) -> None:
    """Query with every certificate, each on its own connection; stream if it must be accepted."""
    target, job_id = stage.target, queried_id(stage)

    def query(case: Case) -> CertificateAnswer:
        files = target.identities.files(case.file_name)
        with target.dialect.connect(stage.server.address, files) as connection:
            status = query_status(connection.stub, job_id)
        return CertificateAnswer(case.number, case.name, case.expected, status)

    with ThreadPoolExecutor(4) as pool:
        stage.record(CertificateAnswers(tuple(pool.map(query, cases))))
    with stage.client() as client:
        # Late output: every reader waits for it, and only a wait depends on the certificate's end.
        late_id = client.must_start("sh", ["-c", f"sleep {stage.patience(1.5)}; echo late"])

    def follow(case: Case) -> None:
        with stage.client_of(target.identities.files(case.file_name)) as client:
            client.stream(late_id, StreamPlan(keep_bytes=10), label=f"stream {case.name}")

    accepted = [case for case in cases if case.expected == "OK"]
    with ThreadPoolExecutor(len(accepted) or 1) as pool:
        list(pool.map(follow, accepted))


def _run(*, optional: bool) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        cases = cases_of(stage.target.identities.scheme)
        _try_certificates(stage, [case for case in cases if case.is_optional is optional])

    return run


def judge_certificates(history: History) -> Iterator[Finding]:
    """Each certificate is accepted or refused as its row of the table says."""
    answers, terms = history.the(CertificateAnswers).answers, terms_of(history)
    yield floor("certificates that were tried", len(answers), 1)
    for case in answers:
        verb = "accepted" if case.expected == "OK" else "refused"
        promise = f"a client certificate is {verb}: {case.name} (case {case.number})"
        if case.expected != "OK":
            yield one_of(promise, case.status, ALLOWED[case.expected])
        else:
            kept, want = terms.is_admitted(case.status), " or ".join(terms.admitting)
            yield holds(promise, kept=kept, got=case.status, want=want)
            stream = history.stream(f"stream {case.name}")
            got = f"{stream.code} {stream.text!r} {stream.detail}".strip()
            finding = equal(f"it can follow a stream: {case.name}", got, "OK 'late\\n'")
            # An admitted client may lose output all the same.
            yield repeating(finding, WHOLE) if stream.code == "OK" else finding


CERTIFICATES: Final = Check(
    "identity.certificates",
    "Valid client certificates are accepted; faulty ones, and those without a role, are refused.",
    _run(optional=False), judge_certificates, frozenset({Need.IDENTITIES}),
    ("2-7", "10", "18", "20", "22", "R-TLS-1", "R-CERT-2"), 90,
)  # fmt: skip
CERTIFICATE_RULES: Final = Check(
    "identity.certificate-rules",
    "Client certificates that mutual TLS leaves to the server are treated as its scheme says.",
    _run(optional=True), judge_certificates,
    frozenset({Need.IDENTITIES, Need.CERTIFICATE_RULES}),
    ("8", "9", "16", "17", "19", "21", "R-CERT-2"), 90,
)  # fmt: skip
