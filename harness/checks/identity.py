"""Who gets in, and what they may do: certificates, roles, versions of TLS."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from harness.checks.check import Check, Need, Stage
from harness.checks.common import UNKNOWN_ID
from harness.client import Client, open_channel
from harness.history import History, Outcome
from harness.identities import CASES, Case, CertFiles
from harness.judge.promises import answered, assumed, equal, holds, one_of
from harness.receiver import StreamPlan, outcome_of
from harness.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc

CALL_TIMEOUT_S: Final = 20.0
# What refuses: TLS itself, or the server behind it.
REFUSING: Final = ("UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED")
# The case says by which; where TLS libraries differ, an earlier refusal is as good.
ALLOWED: Final = {
    "OK": ("NOT_FOUND",),
    "UNAVAILABLE": REFUSING,
    "UNAUTHENTICATED": ("UNAVAILABLE", "UNAUTHENTICATED"),
    "PERMISSION_DENIED": REFUSING,
}


def _query_unknown(channel: grpc.Channel) -> str:
    """Query a job that is not there: NOT_FOUND shows that the caller got through."""
    stub = jobworker_pb2_grpc.JobWorkerStub(channel)
    request = pb.QueryJobRequest(job_id=UNKNOWN_ID)
    try:
        stub.QueryJob(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


def run_certificates(stage: Stage) -> None:
    """A query with every certificate of the table, each on a connection of its own."""
    store = stage.target.identities

    def one(case: Case) -> tuple[str, str]:
        with open_channel(stage.server.address, store.files(case.file_name)) as channel:
            return case.file_name, _query_unknown(channel)

    with ThreadPoolExecutor(4) as pool:
        for name, code in pool.map(one, CASES):
            stage.fact(f"certificate {name}", code)
    good = [case for case in CASES if case.expected == "OK"]
    with stage.client() as client:
        # Late enough for every reader to be waiting: what a wait depends on is seen there only.
        job_id = client.must_start("sh", ["-c", f"sleep {stage.patience(1.5)}; echo late"])

    def follow(case: Case) -> None:
        files = store.files(case.file_name)
        with Client(stage.server.address, files, stage.recorder) as client:
            client.stream(job_id, StreamPlan(keep_bytes=10), label=f"stream {case.file_name}")

    with ThreadPoolExecutor(len(good)) as pool:
        list(pool.map(follow, good))


def judge_certificates(history: History) -> Iterator[Finding]:
    """Let in, or refused, as each deserves."""
    for case in CASES:
        code = history.fact(f"certificate {case.file_name}")
        verb = "is let in" if case.expected == "OK" else "is refused"
        promise = f"a client certificate {verb}: {case.name} (case {case.number})"
        yield one_of(promise, code, ALLOWED[case.expected])
        if case.expected == "OK":
            stream = history.stream(f"stream {case.file_name}")
            got = f"{stream.code} {stream.text!r} {stream.detail}".strip()
            yield equal(f"it can follow a stream: {case.name}", got, "OK 'late\\n'")


def run_strangers(stage: Stage) -> None:
    """Calls without a certificate, and without TLS."""
    address, files = stage.server.address, stage.target.identities.files("admin")
    nobody = grpc.ssl_channel_credentials(files.ca.read_bytes())
    ways: dict[str, Callable[[], grpc.Channel]] = {
        "no certificate": lambda: grpc.secure_channel(
            address, nobody, [("grpc.use_local_subchannel_pool", 1)]
        ),
        "no TLS": lambda: grpc.insecure_channel(address),
    }
    for name, connect in ways.items():
        with connect() as channel:
            stage.fact(f"stranger with {name}", _query_unknown(channel))
    with open_channel(address, files) as channel:
        stage.fact("an admin", _query_unknown(channel))


def judge_strangers(history: History) -> Iterator[Finding]:
    """Refused, all of them."""
    yield assumed(
        "an admin gets through", true=history.fact("an admin") == "NOT_FOUND",
        got=history.fact("an admin"),
    )  # fmt: skip
    for fact in history.facts("stranger with"):
        yield one_of(f"a {fact.label} is refused", fact.value, REFUSING)


def _handshake(address: str, files: CertFiles, version: ssl.TLSVersion) -> str:
    """Return the version that a handshake came to, or how it was refused."""
    context = ssl.create_default_context(cafile=str(files.ca))
    # Not stricter than other TLS libraries are about an authority's own extensions.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    # The lowest security level: it must be the server that refuses, not this library's policy.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=CALL_TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            return str(connection.version())
    except (ssl.SSLError, ConnectionError) as error:
        return f"refused: {type(error).__name__}"


VERSIONS: Final = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


def run_versions(stage: Stage) -> None:
    """A handshake of each version, by OpenSSL."""
    files = stage.target.identities.files("admin")
    for name, version in VERSIONS.items():
        with contextlib.suppress(ValueError):  # this library no longer has it at all
            stage.fact(name, _handshake(stage.server.address, files, version))


def judge_versions(history: History) -> Iterator[Finding]:
    """1.3 and nothing else."""
    yield equal("TLS 1.3 is spoken", history.fact("TLSv1.3"), "TLSv1.3")
    for name in ("TLSv1", "TLSv1.1", "TLSv1.2"):
        for fact in history.facts(name):
            if fact.label == name:
                yield holds(
                    f"{name} is refused", kept=str(fact.value).startswith("refused"),
                    got=fact.value, want="refused",
                )  # fmt: skip


# What each role may call (R-AUTHZ-1); the listing is this project's own, and for admins.
USER_MAY_NOT: Final = ("start", "start with limits", "stop", "list")


def _call_everything(client: Client, job_id: str, prefix: str, stage: Stage) -> None:
    limits = pb.ResourceLimits(cpu_millicores=500)
    client.query(job_id, label=f"{prefix} query")
    client.stream(job_id, StreamPlan(stop_after_bytes=1, timeout_s=20), label=f"{prefix} stream")
    client.start("true", label=f"{prefix} start")
    if stage.target_has(Need.LIMIT_FIELDS) or prefix == "user":
        client.start("true", limits=limits, label=f"{prefix} start with limits")
    if stage.target_has(Need.LISTING):
        client.list_jobs(label=f"{prefix} list")
    unknown: Any = client.channel.unary_unary("/jobworker.v1.JobWorker/NoSuchMethod")
    try:
        unknown(b"", timeout=CALL_TIMEOUT_S)
        stage.fact(f"{prefix} unknown rpc", "OK")
    except grpc.RpcError as error:
        stage.fact(f"{prefix} unknown rpc", outcome_of(error)[1])
    client.stop(job_id, label=f"{prefix} stop")


def run_roles(stage: Stage) -> None:
    """Every rpc by a user, then by an admin."""
    with stage.client("user") as user, stage.client("admin") as admin:
        job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 100"], label="set up")
        _call_everything(user, job_id, "user", stage)
        admin.query(job_id, label="still there")
        _call_everything(admin, job_id, "admin", stage)


def judge_roles(history: History) -> Iterator[Finding]:
    """Admins everything, users query and stream, nobody what does not exist."""
    for name in ("query", "start", "stop"):
        yield answered(f"an admin may {name}", history.call(f"admin {name}"))
    yield answered("a user may query", history.call("user query"))
    for role in ("admin", "user"):
        outcome = history.stream(f"{role} stream").outcome
        yield equal(f"a {role} may stream", outcome, Outcome.OK)
        code = history.fact(f"{role} unknown rpc")
        yield equal(f"an rpc that does not exist, by a {role}", code, "UNIMPLEMENTED")
    for name in USER_MAY_NOT:
        for call in history.calls(f"user {name}"):
            if call.label == f"user {name}":
                yield answered(f"a user may not {name}", call, "PERMISSION_DENIED")
    status = history.call("still there").response.get("status")
    yield equal("a refused stop leaves the job alone", status, "running")


CHECKS: Final = (
    Check(
        "identity.certificates",
        "Each client certificate, good or bad in one of twenty ways, gets what it deserves.",
        run_certificates, judge_certificates, frozenset({Need.IDENTITIES}),
        ("2-10", "16-22", "R-TLS-1", "R-CERT-2"), 90,
    ),
    Check(
        "identity.strangers",
        "Nobody gets in without a certificate or without TLS.",
        run_strangers, judge_strangers, frozenset(), ("1", "11", "R-TLS-1"),
    ),
    Check(
        "identity.versions",
        "TLS 1.3 is spoken, and nothing below it.",
        run_versions, judge_versions, frozenset(), ("14", "R-TLS-1"),
    ),
    Check(
        "identity.roles",
        "An admin may call everything, a user may query and stream, and nobody anything else.",
        run_roles, judge_roles, frozenset(), ("23", "61", "R-AUTHZ-1"),
    ),
)  # fmt: skip
