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
from harness.dialects.channel import open_channel
from harness.drive.client import message_of
from harness.drive.identities import CASES
from harness.drive.receiver import outcome_of
from harness.judge.promises import assumed, equal, one_of
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["JobWorker"]
# Every rpc of the API, in an order in which an admin gets an answer to each.
_LAST: Final = ("StopJob", "DeleteJob")
RPCS: Final = (*sorted(set(SERVICE.methods_by_name) - set(_LAST)), *_LAST)
# This project's additions.
ADDED_RPCS: Final = {"ListJobs": Need.LISTING, "DeleteJob": Need.DELETION}
ORIGINAL_RPCS: Final = frozenset({"StartJob", "StopJob", "QueryJob", "StreamLogs"})
# What a role may call (R-AUTHZ-1): an admin every rpc, a caller without a role none.
USER_RPCS: Final = frozenset({"QueryJob", "StreamLogs"})
ROLES: Final = ("user", "admin")
# Certificates that TLS accepts and the server must refuse: by role, by purpose, by key.
WITHOUT_RIGHTS: Final = {
    case.name: case for case in CASES if case.expected in {"PERMISSION_DENIED", "UNAUTHENTICATED"}
}


@dataclass(frozen=True, slots=True)
class RpcCall:
    """A call of an rpc, by a role or by the name of a certificate without rights."""

    caller: str
    rpc: str
    with_limits: bool
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


def _call_rpc(channel: grpc.Channel, rpc: str, request: Message) -> str:
    """Call an rpc and return its status; a stream is cancelled after its first message."""
    method = SERVICE.methods_by_name[rpc]
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    try:
        answer = make(f"/{SERVICE.full_name}/{rpc}")(
            request.SerializeToString(), timeout=CALL_TIMEOUT_S
        )
        if method.server_streaming:
            next(answer, None)
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
    """Call every rpc of one job: by callers without rights, by a user, and last by an admin."""
    store = stage.target.identities
    callers = {role: role for role in ROLES}
    if stage.target_has(Need.IDENTITIES):
        refused = {name: case.file_name for name, case in WITHOUT_RIGHTS.items()}
        callers = {**refused, **callers}
    calls: list[RpcCall] = []
    unknown_rpc: dict[str, str] = {}
    with stage.client() as admin:
        job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 1000"], label="set up")
        for caller, file_name in callers.items():
            if caller == "admin":
                admin.query(job_id, label="before the admin's stop")
            with open_channel(stage.server.address, store.files(file_name)) as channel:
                for rpc, with_limits in _rpcs_for(stage, caller):
                    request = _request(rpc, job_id, with_limits=with_limits)
                    status = _call_rpc(channel, rpc, request)
                    calls.append(RpcCall(caller, rpc, with_limits, status))
                if caller in ROLES:
                    unknown_rpc[caller] = _call_unknown(channel)
    stage.record(RpcStatuses(tuple(calls), unknown_rpc))


def _rpcs_for(stage: Stage, caller: str) -> Iterator[tuple[str, bool]]:
    """Yield what a caller tries; without the additions that the target lacks."""
    limited = stage.target_has(Need.LIMIT_FIELDS) or caller != "admin"
    for rpc in RPCS:
        if rpc not in ADDED_RPCS or stage.target_has(ADDED_RPCS[rpc]):
            yield rpc, False
        if rpc == "StartJob" and limited:
            yield rpc, True


def judge_roles(history: History) -> Iterator[Finding]:
    """Admins may call every rpc, users may query and stream, other callers may call none."""
    seen = history.the(RpcStatuses)
    for role in ROLES:
        status = seen.unknown_rpc[role]
        yield equal(f"an rpc that does not exist, by a {role}", status, "UNIMPLEMENTED")
        missing = ORIGINAL_RPCS - {call.rpc for call in seen.calls if call.caller == role}
        yield assumed(
            f"a {role} called every rpc of the original API", true=not missing, got=sorted(missing)
        )
    for call in seen.calls:
        refused = f"a call of {call.what} is refused: {call.caller}"
        if call.caller == "admin" or (call.caller == "user" and call.rpc in USER_RPCS):
            yield equal(f"a call of {call.what} is allowed: {call.caller}", call.status, "OK")
        elif call.caller == "user":
            yield equal(refused, call.status, "PERMISSION_DENIED")
        else:
            yield one_of(refused, call.status, ALLOWED[WITHOUT_RIGHTS[call.caller].expected])
    job = message_of(history.call("before the admin's stop"), pb.QueryJobResponse)
    yield equal("a refused stop does not stop the job", job.status, "running")


ROLE_PERMISSIONS: Final = Check(
    "identity.roles",
    "An admin may call every rpc, a user may query and stream, other callers may call none.",
    run_roles, judge_roles, frozenset(), ("23", "61", "R-AUTHZ-1"),
)  # fmt: skip
