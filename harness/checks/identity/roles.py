"""Authorization: which role may call which rpc."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.client_certificates import ALLOWED
from harness.checks.raw_calls import CALL_TIMEOUT_S
from harness.dialects.dialect import RPCS as METHODS
from harness.dialects.dialect import SERVICE, Connection
from harness.drive.client import message_of
from harness.drive.identities import cases_of
from harness.drive.receiver import outcome_of
from harness.judge.promises import assumed, equal, one_of
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

# Every rpc of the API, in an order in which an admin gets an answer to each.
_LAST: Final = ("StopJob", "DeleteJob")
RPCS: Final = (*sorted(set(METHODS) - set(_LAST)), *_LAST)
# This project's additions.
ADDED_RPCS: Final = {"ListJobs": Need.LISTING, "DeleteJob": Need.DELETION}
ORIGINAL_RPCS: Final = frozenset({"StartJob", "StopJob", "QueryJob", "StreamLogs"})
ROLES: Final = ("user", "admin")


@dataclass(frozen=True, slots=True)
class RpcCall:
    """A call of an rpc, by a role or by the name of a certificate without rights.

    Attributes:
        caller: `admin`, `user`, or the name of a case.
        rpc: its name in `jobworker.v1`.
        with_limits: whether the request had limits.
        expected: OK, or the status of the refusal.
        status: the answer's.
    """

    caller: str
    rpc: str
    with_limits: bool
    expected: str
    status: str

    @property
    def what(self) -> str:
        """The rpc, for a finding."""
        return f"{self.rpc} with limits" if self.with_limits else self.rpc


@dataclass(frozen=True, slots=True)
class RpcStatuses(Observation):
    """The status of every rpc for every caller, and of an rpc that does not exist by role."""

    calls: tuple[RpcCall, ...]
    unknown_rpc: Mapping[str, str]


def _request(rpc: str, job_id: str, *, with_limits: bool) -> Message:
    """Return a request that an admin gets an answer to.

    A new rpc needs no entry here: its request is empty, or names the job.
    """
    message_type = SERVICE.methods_by_name[rpc].input_type
    values: dict[str, object] = {}
    if "job_id" in message_type.fields_by_name:
        values["job_id"] = job_id
    if "command_name" in message_type.fields_by_name:
        values["command_name"] = "true"
    if with_limits:
        values["limits"] = pb.ResourceLimits(cpu_millicores=500)
    return message_factory.GetMessageClass(message_type)(**values)


def _call_rpc(connection: Connection, rpc: str, request: Message) -> str:
    """Call an rpc and return its status; a stream is cancelled after its first message."""
    try:
        answer = getattr(connection.stub, rpc)(request, timeout=CALL_TIMEOUT_S)
        if SERVICE.methods_by_name[rpc].server_streaming:
            next(iter(answer), None)
            answer.cancel()
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


def _call_unknown(channel: grpc.Channel, service: str) -> str:
    unknown: Any = channel.unary_unary(f"/{service}/NoSuchMethod")
    try:
        unknown(b"", timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


@dataclass(frozen=True, slots=True)
class Caller:
    """A client: its name, its certificate's, and the status of a refusal."""

    name: str
    file_name: str
    refusal: str


def _callers(stage: Stage) -> Iterator[Caller]:
    """Yield the callers without rights, a user, and last an admin."""
    if stage.target_has(Need.IDENTITIES):
        for case in cases_of(stage.target.identities.scheme):
            # Certificates that TLS accepts: refused by role, by purpose or by key.
            if case.expected in {"PERMISSION_DENIED", "UNAUTHENTICATED"}:
                yield Caller(case.name, case.file_name, case.expected)
    for role in ROLES:
        yield Caller(role, role, "PERMISSION_DENIED")


def run_roles(stage: Stage) -> None:
    """Call every rpc of a job: by callers without rights, by a user, and last by an admin."""
    target = stage.target
    calls: list[RpcCall] = []
    unknown_rpc: dict[str, str] = {}
    with stage.client() as admin:
        script = ["-c", "echo ready; exec sleep 1000"]
        job_id = admin.must_start("sh", script, label="set up")
        # What a role may call may end its job.
        jobs = {"admin": job_id, "user": admin.must_start("sh", script, label="set up")}
        for caller in _callers(stage):
            if caller.name == "admin":
                admin.query(job_id, label="before the admin's stop")
            files = target.identities.files(caller.file_name)
            with target.dialect.connect(stage.server.address, files) as connection:
                for rpc, with_limits in _rpcs_for(stage, caller.name):
                    allowed = _may(stage, caller.name, rpc)
                    job = jobs[caller.name] if allowed else job_id
                    request = _request(rpc, job, with_limits=with_limits)
                    expected = "OK" if allowed else caller.refusal
                    status = _call_rpc(connection, rpc, request)
                    calls.append(RpcCall(caller.name, rpc, with_limits, expected, status))
                if caller.name in ROLES and connection.channel is not None:
                    service = target.dialect.transport.service
                    unknown_rpc[caller.name] = _call_unknown(connection.channel, service)
        admin.stop(jobs["user"], label="clean up")
    stage.record(RpcStatuses(tuple(calls), unknown_rpc))


def _may(stage: Stage, caller: str, rpc: str) -> bool:
    return caller in ROLES and stage.target.identities.scheme.may(caller, rpc)


def _rpcs_for(stage: Stage, caller: str) -> Iterator[tuple[str, bool]]:
    """Yield what a caller tries; without the additions that the target lacks."""
    limited = stage.target_has(Need.LIMIT_FIELDS) or not _may(stage, caller, "StartJob")
    for rpc in RPCS:
        if rpc not in ADDED_RPCS or stage.target_has(ADDED_RPCS[rpc]):
            yield rpc, False
        if rpc == "StartJob" and limited:
            yield rpc, True


def judge_roles(history: History) -> Iterator[Finding]:
    """Each role may call its rpcs and no others, other callers none."""
    seen = history.the(RpcStatuses)
    for role, status in seen.unknown_rpc.items():
        yield equal(f"an rpc that does not exist, by a {role}", status, "UNIMPLEMENTED")
    for role in ROLES:
        missing = ORIGINAL_RPCS - {call.rpc for call in seen.calls if call.caller == role}
        yield assumed(
            f"a {role} called every rpc of the original API", true=not missing, got=sorted(missing)
        )
    for call in seen.calls:
        refused = f"a call of {call.what} is refused: {call.caller}"
        if call.expected == "OK":
            yield equal(f"a call of {call.what} is allowed: {call.caller}", call.status, "OK")
        elif call.caller == "user":
            yield equal(refused, call.status, call.expected)
        else:
            yield one_of(refused, call.status, ALLOWED[call.expected])
    job = message_of(history.call("before the admin's stop"), pb.QueryJobResponse)
    yield equal("a refused stop does not stop the job", job.status, "running")


ROLE_PERMISSIONS: Final = Check(
    "identity.roles",
    "An admin may call every rpc, a user those of its role, other callers none.",
    run_roles, judge_roles, frozenset({Need.ROLES}), ("23", "61", "R-AUTHZ-1"),
)  # fmt: skip
