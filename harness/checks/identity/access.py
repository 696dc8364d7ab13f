"""Who gets in, and what they may do: certificates, roles, versions of TLS."""

import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

from harness.checks.check import Check, Need, Stage
from harness.checks.common import UNKNOWN_ID
from harness.checks.raw_calls import QUERY_PATH, UNKNOWN_QUERY
from harness.drive.client import open_channel
from harness.drive.identities import CASES, Case, CertFiles
from harness.drive.net.http2 import Http2
from harness.drive.net.permissive_tls_server import lax_server
from harness.drive.net.tls_client import TlsLine, client_context, handshake
from harness.drive.receiver import StreamPlan, outcome_of
from harness.judge.promises import assumed, equal, holds, one_of
from harness.record.history import History
from harness.record.verdict import Finding, Verdict
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc

CALL_TIMEOUT_S: Final = 60.0  # an emulated guest that others starve
OTHER_NAME: Final = "another.example"
UNPROVEN: Final = "refused: SSLCertVerificationError"
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
        with stage.client_of(files) as client:
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


# What ALPN may be offered beside HTTP/2's, and gets no answer (RFC 9113, 3.3).
OTHER_PROTOCOLS: Final = {"no ALPN": (), "HTTP/1.1 by ALPN": ("http/1.1",)}


def call_over(address: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> str:
    """Query a job that is not there over a connection made by hand; return what it came to."""
    try:
        with TlsLine(address, context, session=session) as line:
            return Http2(line).call(QUERY_PATH, UNKNOWN_QUERY, CALL_TIMEOUT_S)
    except OSError as error:
        return f"refused: {type(error).__name__}"


def run_strangers(stage: Stage) -> None:
    """Calls without a certificate, without TLS, without HTTP/2; and a server taken for another."""
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
    for name, protocols in OTHER_PROTOCOLS.items():
        context = client_context(files, protocols=protocols)
        stage.fact(f"by hand with {name}", call_over(address, context))
    stage.fact("by hand with h2", call_over(address, client_context(files)))
    elsewhere = handshake(address, client_context(files), OTHER_NAME)
    stage.fact("server taken for another", elsewhere)
    with lax_server() as lax:
        trusting = client_context(files, ca=lax.client.ca)
    stage.fact("server of an authority that is not trusted", handshake(address, trusting))


def judge_strangers(history: History) -> Iterator[Finding]:
    """Refused by the server, or by the client where the server cannot prove who it is."""
    for how in ("an admin", "by hand with h2"):
        yield assumed(
            "an admin is let in the same way", true=history.fact(how) == "NOT_FOUND",
            got=history.fact(how), want="NOT_FOUND",
        )  # fmt: skip
    for fact in history.facts("stranger with"):
        yield one_of(f"a {fact.label} is refused", fact.value, REFUSING)
    for name in OTHER_PROTOCOLS:
        value = str(history.fact(f"by hand with {name}"))
        yield holds(
            f"a connection with {name} gets no answer (case 15)",
            kept=value.startswith(("refused", "closed", "GOAWAY")), got=value, want="hung up",
        )  # fmt: skip
    for label, number in (
        ("server taken for another", 12),
        ("server of an authority that is not trusted", 13),
    ):
        yield equal(f"a client refuses a {label} (case {number})", history.fact(label), UNPROVEN)


VERSIONS: Final = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


def _version_context(files: CertFiles, version: ssl.TLSVersion) -> ssl.SSLContext | None:
    try:
        return client_context(files, version=version)
    except ValueError:
        return None  # this library no longer has it at all


def run_versions(stage: Stage) -> None:
    """A handshake of each version, by OpenSSL; before that, one with a server that takes it."""
    files = stage.target.identities.files("admin")
    with lax_server() as lax:
        for name, version in VERSIONS.items():
            ours, control = (_version_context(each, version) for each in (files, lax.client))
            if ours is None or control is None:
                stage.fact(f"control {name}", "this OpenSSL has it no longer")
                continue
            stage.fact(f"control {name}", handshake(lax.address, control))
            stage.fact(f"server {name}", handshake(stage.server.address, ours))


def judge_versions(history: History) -> Iterator[Finding]:
    """1.3 and nothing else; what the probe cannot see was not judged."""
    for name in VERSIONS:
        control = history.fact(f"control {name}")
        if control != name:
            yield Finding(
                Verdict.SKIPPED, f"this machine's OpenSSL cannot try {name}: {control}; "
                "a machine whose OpenSSL can, or identity.scanner, tells",
            )  # fmt: skip
            continue
        value = str(history.fact(f"server {name}"))
        if name == "TLSv1.3":
            yield equal("TLS 1.3 is spoken", value, name)
        else:
            yield holds(
                f"{name} is refused", kept=value.startswith("refused"), got=value, want="refused"
            )


SERVICE: Final = pb.DESCRIPTOR.services_by_name["JobWorker"]
# Every rpc that there is; the listing is this project's own.
RPCS: Final = tuple(method.name for method in SERVICE.methods)
LIMITED: Final = "StartJob with limits"
# What a role may call (R-AUTHZ-1); an admin everything, and who has none nothing.
USER_MAY: Final = frozenset({"QueryJob", "StreamLogs"})
ROLES: Final = ("user", "admin")
# Certificates that TLS lets in, and the server must not: by role, by purpose, by key.
NOBODIES: Final = tuple(
    case for case in CASES if case.expected in {"PERMISSION_DENIED", "UNAUTHENTICATED"}
)


def _request(rpc: str, job_id: str) -> Message:
    """Return a request that an admin gets an answer to.

    An rpc that is new needs none of its own here: it is asked with an empty message, or of the job.
    """
    message_type = SERVICE.methods_by_name[rpc.partition(" ")[0]].input_type
    values: dict[str, object] = {}
    if "job_id" in message_type.fields_by_name:
        values["job_id"] = job_id
    if "command_name" in message_type.fields_by_name:
        values["command_name"] = "true"
    if rpc == LIMITED:
        values["limits"] = pb.ResourceLimits(cpu_millicores=500)
    return message_factory.GetMessageClass(message_type)(**values)


def _call_rpc(channel: grpc.Channel, rpc: str, job_id: str) -> str:
    """Call an rpc and return its status; a stream is left at its first message."""
    method = SERVICE.methods_by_name[rpc.partition(" ")[0]]
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    try:
        answer = make(f"/{SERVICE.full_name}/{method.name}")(
            _request(rpc, job_id).SerializeToString(), timeout=CALL_TIMEOUT_S
        )
        if method.server_streaming:
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


def _call_unknown(channel: grpc.Channel) -> str:
    unknown: Any = channel.unary_unary(f"/{SERVICE.full_name}/NoSuchMethod")
    try:
        unknown(b"", timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


def run_roles(stage: Stage) -> None:
    """Every rpc by who has no role, by a user, and then by an admin, of one job."""
    store = stage.target.identities
    nobodies = NOBODIES if stage.target_has(Need.IDENTITIES) else ()
    callers = [(case.file_name, case.name) for case in nobodies]
    with stage.client() as admin:
        job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 1000"], label="set up")
        for file_name, caller in (*callers, *((role, role) for role in ROLES)):
            if caller == "admin":
                admin.query(job_id, label="still there")
            with open_channel(stage.server.address, store.files(file_name)) as channel:
                for rpc in _in_order(stage, caller):
                    stage.fact(f"{caller}: {rpc}", _call_rpc(channel, rpc, job_id))
                if caller in ROLES:
                    stage.fact(f"{caller}: unknown rpc", _call_unknown(channel))


def _in_order(stage: Stage, caller: str) -> Iterator[str]:
    """Yield what a caller tries: a stop at the end, and what an older server has not left out."""
    limited = stage.target_has(Need.LIMIT_FIELDS) or caller != "admin"
    listed = stage.target_has(Need.LISTING)
    for rpc in sorted((*RPCS, LIMITED), key=lambda rpc: rpc == "StopJob"):
        if (rpc != LIMITED or limited) and (rpc != "ListJobs" or listed):
            yield rpc


def judge_roles(history: History) -> Iterator[Finding]:
    """Admins everything, users query and stream, others nothing, nobody what does not exist."""
    asked = {fact.label: str(fact.value) for fact in history.facts()}
    for role in ROLES:
        unknown = history.fact(f"{role}: unknown rpc")
        yield equal(f"an rpc that does not exist, by a {role}", unknown, "UNIMPLEMENTED")
        missing = {"StartJob", "StopJob", *USER_MAY} - {
            label.partition(": ")[2] for label in asked if label.startswith(f"{role}: ")
        }
        yield assumed(
            f"the original's rpcs were called by a {role}", true=not missing, got=sorted(missing)
        )
    for label, code in asked.items():
        caller, _, rpc = label.partition(": ")
        if rpc not in {*RPCS, LIMITED}:
            continue
        if caller == "admin" or (caller == "user" and rpc in USER_MAY):
            yield equal(f"a caller may {rpc}: {caller}", code, "OK")
        elif caller == "user":
            yield equal(f"a caller may not {rpc}: {caller}", code, "PERMISSION_DENIED")
        else:
            expected = next(case.expected for case in NOBODIES if case.name == caller)
            yield one_of(f"a caller may not {rpc}: {caller}", code, ALLOWED[expected])
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
        "Nobody gets in without a certificate, TLS and HTTP/2; and the server proves who it is.",
        run_strangers, judge_strangers, frozenset(),
        ("1", "11-13", "15", "R-TLS-1"),
    ),
    Check(
        "identity.versions",
        "TLS 1.3 is spoken, and nothing below it.",
        run_versions, judge_versions, frozenset(), ("14", "R-TLS-1"),
    ),
    Check(
        "identity.roles",
        "An admin may call every rpc, a user query and stream, and who has no role none at all.",
        run_roles, judge_roles, frozenset(), ("23", "61", "R-AUTHZ-1"),
    ),
)  # fmt: skip
