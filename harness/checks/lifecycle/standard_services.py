"""The standard gRPC services: health and reflection."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from harness.checks.check import Check, Need, Stage
from harness.checks.raw_calls import CALL_TIMEOUT_S
from harness.dialects.channel import open_channel
from harness.drive.receiver import outcome_of
from harness.judge.promises import equal, unseen
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding, UnsupportedError

CALLERS: Final = ("admin", "user")
MISSING: Final = "UNIMPLEMENTED"


@dataclass(frozen=True, slots=True)
class HealthAnswer(Observation):
    """The health of a service as a caller gets it: its name, or the status of a refused call."""

    caller: str
    service: str
    answer: str


def _expected(service: str) -> dict[str, str]:
    """Return the services that a caller may name, and the answer that each must get."""
    return {"": "SERVING", service: "SERVING", "no.such.Service": "NOT_FOUND"}


@dataclass(frozen=True, slots=True)
class ReflectedServices(Observation):
    """The names of the services that a caller sees by reflection, or the status of the call.

    `api` is the job worker's own.
    """

    caller: str
    api: str
    names: tuple[str, ...]
    status: str


def run_standard_services(stage: Stage) -> None:
    """Check the health of some services for each role; list the services by reflection."""
    store = stage.target.identities
    found: list[HealthAnswer] = []
    api = stage.dialect.transport.service
    for caller in CALLERS:
        with open_channel(stage.server.address, store.files(caller)) as channel:
            found += [HealthAnswer(caller, each, _health(channel, each)) for each in _expected(api)]
    if all(each.answer == MISSING for each in found):
        raise UnsupportedError("the standard health service")
    for answer in found:
        stage.record(answer)
    for caller in CALLERS:
        with open_channel(stage.server.address, store.files(caller)) as channel:
            stage.record(_reflected(channel, api, caller))


def _health(channel: grpc.Channel, service: str) -> str:
    check: Any = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def _reflected(channel: grpc.Channel, api: str, caller: str) -> ReflectedServices:
    reflect: Any = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        answers = list(reflect(iter([request]), timeout=CALL_TIMEOUT_S))
    except grpc.RpcError as error:
        return ReflectedServices(caller, api, (), outcome_of(error)[1])
    services = [each.name for answer in answers for each in answer.list_services_response.service]
    return ReflectedServices(caller, api, tuple(services), "OK")


def judge_standard_services(history: History) -> Iterator[Finding]:
    """A server that serves says so to each role, of itself and of the API, and lists the API."""
    answers, seen = history.all(HealthAnswer), history.all(ReflectedServices)
    reflected, by_user = (next(each for each in seen if each.caller == who) for who in CALLERS)
    got = {
        caller: {a.service: a.answer for a in answers if a.caller == caller} for caller in CALLERS
    }
    for caller in CALLERS:
        promise = (
            f"the health service answers for the server, the API and no other service: {caller}"
        )
        yield equal(promise, got[caller], _expected(reflected.api))
    promise = "reflection shows the API to an admin"
    if reflected.status == MISSING:
        yield unseen(promise, "the server has no reflection")
        return
    yield equal(
        promise, [name for name in reflected.names if name == reflected.api], [reflected.api]
    )
    if terms_of(history).own:
        promise = "reflection is refused to a user"
        yield equal(promise, (by_user.status, by_user.names), ("PERMISSION_DENIED", ()))


STANDARD_SERVICES: Final = Check(
    "lifecycle.health",
    "A server that serves says so by the standard health service, and shows the API by reflection.",
    run_standard_services,
    judge_standard_services,
    needs=frozenset({Need.GRPC}),
    cites=("112",),
    ours=True,
)

CHECKS: Final = (STANDARD_SERVICES,)
