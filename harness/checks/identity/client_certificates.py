"""Client certificates: each one of the table is accepted, or refused with its status."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import grpc

from harness.checks.check import Check, Need, Stage
from harness.checks.common import UNKNOWN_ID
from harness.checks.raw_calls import CALL_TIMEOUT_S
from harness.dialects.channel import open_channel
from harness.drive.identities import CASES, Case
from harness.drive.receiver import StreamPlan, outcome_of
from harness.judge.promises import equal, one_of
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc

# The statuses of a refusal, by TLS itself or by the server behind it.
REFUSING: Final = ("UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED")
# Keyed by the status that a case expects. TLS libraries differ in what they reject during the
# handshake, so an earlier refusal is allowed.
ALLOWED: Final = {
    "OK": ("NOT_FOUND",),
    "UNAVAILABLE": REFUSING,
    "UNAUTHENTICATED": ("UNAVAILABLE", "UNAUTHENTICATED"),
    "PERMISSION_DENIED": REFUSING,
}
ACCEPTED: Final = tuple(case for case in CASES if case.expected == "OK")


@dataclass(frozen=True, slots=True)
class CertificateStatuses(Observation):
    """The status of a query with each certificate of the table, by the certificate's file name."""

    by_file_name: Mapping[str, str]


def query_status(channel: grpc.Channel) -> str:
    """Query a job that does not exist; NOT_FOUND shows that the caller was admitted."""
    stub = jobworker_pb2_grpc.JobWorkerStub(channel)
    request = pb.QueryJobRequest(job_id=UNKNOWN_ID)
    try:
        stub.QueryJob(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


def run_certificates(stage: Stage) -> None:
    """Query with every certificate of the table, each on its own connection; stream if accepted."""
    store = stage.target.identities

    def query(case: Case) -> str:
        with open_channel(stage.server.address, store.files(case.file_name)) as channel:
            return query_status(channel)

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(query, CASES))
    names = [case.file_name for case in CASES]
    stage.record(CertificateStatuses(dict(zip(names, statuses, strict=True))))
    with stage.client() as client:
        # Late output: every reader waits for it, and only a wait depends on the certificate's end.
        job_id = client.must_start("sh", ["-c", f"sleep {stage.patience(1.5)}; echo late"])

    def follow(case: Case) -> None:
        files = store.files(case.file_name)
        with stage.client_of(files) as client:
            client.stream(job_id, StreamPlan(keep_bytes=10), label=f"stream {case.file_name}")

    with ThreadPoolExecutor(len(ACCEPTED)) as pool:
        list(pool.map(follow, ACCEPTED))


def judge_certificates(history: History) -> Iterator[Finding]:
    """Each certificate is accepted or refused as its row of the table says."""
    statuses = history.the(CertificateStatuses).by_file_name
    for case in CASES:
        verb = "accepted" if case.expected == "OK" else "refused"
        promise = f"a client certificate is {verb}: {case.name} (case {case.number})"
        yield one_of(promise, statuses[case.file_name], ALLOWED[case.expected])
        if case.expected == "OK":
            stream = history.stream(f"stream {case.file_name}")
            got = f"{stream.code} {stream.text!r} {stream.detail}".strip()
            yield equal(f"it can follow a stream: {case.name}", got, "OK 'late\\n'")


CERTIFICATES: Final = Check(
    "identity.certificates",
    "Valid client certificates are accepted; those with any of eighteen faults are refused.",
    run_certificates, judge_certificates, frozenset({Need.IDENTITIES}),
    ("2-10", "16-22", "R-TLS-1", "R-CERT-2"), 90,
)  # fmt: skip
