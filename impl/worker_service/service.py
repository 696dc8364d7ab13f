"""The rpcs: request -> worker -> response, behind one gate that every call passes.

The gate identifies and authorizes the caller, admits streams below the pool's size, maps every
exception to a status and writes one audit line a call, also for rpcs that do not exist and requests
that cannot be read. A method added tomorrow goes through it too, and is refused until
`identity.PERMISSIONS` names it. Left out of the audit: what gRPC refuses before any of our code
runs, which is calls over `maximum_concurrent_rpcs` and messages over the size allowed.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from worker_service import errors
from worker_service.deny import DenyList
from worker_service.errors import JobWorkerError
from worker_service.follow import Admission, Batching, ByteBudget, follow
from worker_service.identity import AuthContext, Identity, authorize, identify
from worker_service.job import JobStatus, State
from worker_service.log import LogReader, OutputLog
from worker_service.spawn import Command
from worker_service.wire import (
    encode_output,
    limits_from_message,
    limits_to_message,
    timestamp,
    usage_to_message,
)
from worker_service.worker import Worker

if TYPE_CHECKING:  # generic in the type stubs only
    type _Handler = grpc.RpcMethodHandler[Any, Any]

logger = logging.getLogger(__name__)
audit = logging.getLogger("worker_service.audit")

STATUS_CODES: Final[Mapping[type[JobWorkerError], grpc.StatusCode]] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.JobNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.CommandNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.CannotExecuteError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitsUnavailableError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HostExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.CapacityReachedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OffsetOutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    errors.OutputLostError: grpc.StatusCode.DATA_LOSS,
    errors.ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    errors.StopTimedOutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotAuthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotPermittedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownRpcError: grpc.StatusCode.UNIMPLEMENTED,
}

# How long a stream may go on after its certificate was put on the deny list.
DENY_LOOK_S: Final = 2.0
_SHOWN_CHARACTERS: Final = 80
_PLAIN_ID: Final = re.compile(r"[0-9a-f-]{1,36}")


class Doorkeeper:
    """Says who is calling, and for how long that may be believed."""

    def __init__(self, deny_list: DenyList | None = None) -> None:
        self._deny_list = deny_list

    def identify(self, context: grpc.ServicerContext) -> Identity:
        """Return who is calling.

        Raises:
            NotAuthenticatedError: see `identity.identify`; or the certificate is denied.
        """
        # The types say a bytes a key; it is a list of them.
        identity = identify(cast("AuthContext", context.auth_context()))
        if self._deny_list is not None:
            self._deny_list.check(identity.serial_number)
        return identity

    def lease_s(self, identity: Identity) -> float:
        """Return the seconds after which to ask again.

        Raises:
            NotAuthenticatedError: the certificate has expired, or is denied by now.
        """
        valid_for_s = identity.valid_for_s()
        if self._deny_list is None:
            return valid_for_s
        self._deny_list.check(identity.serial_number)
        return min(valid_for_s, DENY_LOOK_S)


class JobWorkerService(jobworker_pb2_grpc.JobWorkerServicer):  # type: ignore[misc] # no types
    """The JobWorker rpcs on top of a worker."""

    def __init__(
        self, worker: Worker, batching: Batching, budget: ByteBudget, doorkeeper: Doorkeeper
    ) -> None:
        self._worker = worker
        self._batching = batching
        self._budget = budget
        self._doorkeeper = doorkeeper

    def StartJob(  # noqa: N802 - the rpc's name
        self, request: pb.StartJobRequest, context: grpc.ServicerContext
    ) -> pb.StartJobResponse:
        """Start a process."""
        del context
        command = Command(
            name=request.command_name,
            arguments=tuple(request.command_args),
            environment=dict(request.environment),
            working_directory=request.working_directory or None,
        )
        limits = limits_from_message(request.limits) if request.HasField("limits") else None
        status = self._worker.start(command, limits)
        return pb.StartJobResponse(job_id=status.job_id, message=f"started as pid {status.pid}")

    def StopJob(  # noqa: N802 - the rpc's name
        self, request: pb.StopJobRequest, context: grpc.ServicerContext
    ) -> pb.StopJobResponse:
        """End a process tree and wait for its end."""
        del context
        grace_s = request.grace_period_ms / 1000 if request.HasField("grace_period_ms") else None
        status = self._worker.stop(request.job_id, grace_s)
        return pb.StopJobResponse(success=True, message=_describe(status))

    def QueryJob(  # noqa: N802 - the rpc's name
        self, request: pb.QueryJobRequest, context: grpc.ServicerContext
    ) -> pb.QueryJobResponse:
        """Tell a job's state."""
        del context
        status = self._worker.query(request.job_id)
        extent = self._worker.log(request.job_id).extent()
        return pb.QueryJobResponse(
            status=status.state,
            pid=status.pid,
            exit_code=status.exit_code,
            signal=status.signal,
            message=_describe(status),
            oom_killed=status.oom_killed,
            started_at=timestamp(status.started_at_s),
            ended_at=timestamp(status.ended_at_s),
            limits=limits_to_message(status.limits),
            usage=usage_to_message(status.usage),
            log_size_bytes=extent.end_offset,
            log_first_offset=extent.first_offset,
        )

    def StreamLogs(  # noqa: N802 - the rpc's name
        self, request: pb.StreamLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Send a job's output from where the client asks, and follow it."""
        identity = self._doorkeeper.identify(context)
        log = self._worker.log(request.job_id)
        reader = _reader(log, request)
        # Before anything that waits: a client that goes away wakes its reader and frees the thread.
        if not context.add_callback(reader.cancel):
            return
        chunks = follow(
            reader,
            self._batching,
            self._budget,
            until_offset=log.extent().end_offset if request.no_follow else None,
            lease=lambda: self._doorkeeper.lease_s(identity),
        )
        # `map` holds no chunk while its message is on its way, as a loop's variable would.
        yield from map(encode_output, chunks)

    def ListJobs(  # noqa: N802 - the rpc's name
        self, request: pb.ListJobsRequest, context: grpc.ServicerContext
    ) -> pb.ListJobsResponse:
        """List all jobs."""
        del request, context
        return pb.ListJobsResponse(
            jobs=[self._summary(status) for status in self._worker.list_jobs()]
        )

    def _summary(self, status: JobStatus) -> pb.JobSummary:
        return pb.JobSummary(
            job_id=status.job_id,
            command_name=status.command.name,
            command_args=status.command.arguments,
            status=status.state,
            pid=status.pid,
            exit_code=status.exit_code,
            signal=status.signal,
            started_at=timestamp(status.started_at_s),
            ended_at=timestamp(status.ended_at_s),
            log_size_bytes=self._worker.log(status.job_id).extent().end_offset,
        )


def _reader(log: OutputLog, request: pb.StreamLogsRequest) -> LogReader:
    match request.WhichOneof("start"):
        case "tail_bytes":
            return log.reader_at_tail_bytes(request.tail_bytes)
        case "tail_lines":
            return log.reader_at_tail_lines(request.tail_lines)
        case _:
            return log.reader_at(request.from_offset)  # 0 when absent


def _describe(status: JobStatus) -> str:
    if status.state is State.RUNNING:
        return "running"
    oom = " by the OOM killer" if status.oom_killed else ""
    if status.state is State.SIGNALED:
        return f"ended{oom} with signal {status.signal}"
    return f"ended{oom and ' after the OOM killer struck'} with exit code {status.exit_code}"


@dataclass(slots=True)
class _Call:
    """What the audit line says of a call."""

    method: str
    started_at_s: float
    subject: str = ""
    identity: Identity | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    detail: str = ""


class Gate(grpc.ServerInterceptor):
    """What every call passes before and after its handler."""

    def __init__(self, admission: Admission, doorkeeper: Doorkeeper) -> None:
        self._admission = admission
        self._doorkeeper = doorkeeper

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "_Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Wrap the handler; one is made for a method that does not exist, to tell and audit it."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse_unknown(method))
        wrap = self._wrap_stream if handler.response_streaming else self._wrap_unary
        make, behaviour = _SHAPES[handler.request_streaming, handler.response_streaming]
        return make(
            wrap(method, getattr(handler, behaviour)),
            request_deserializer=_deserializer(handler.request_deserializer),
            response_serializer=_serializer(handler.response_serializer),
        )

    def _wrap_unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def handle(request: object, context: grpc.ServicerContext) -> object:
            with self._call(method, context, request) as call:
                response = behaviour(request, context)
                call.subject = f"{call.subject} {_subject(response)}".strip()
                return response

        return handle

    def _wrap_stream(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def handle(request: object, context: grpc.ServicerContext) -> Iterator[object]:
            with self._call(method, context, request):
                slot = self._admission.admit()
                try:
                    # A client that vanishes frees its slot at once, even while its thread is still
                    # on its way out.
                    if context.add_callback(slot.release):
                        yield from behaviour(request, context)
                finally:
                    slot.release()

        return handle

    def _refuse_unknown(self, method: str) -> Callable[..., Any]:
        def handle(requests: object, context: grpc.ServicerContext) -> Iterator[object]:
            del requests
            with self._call(method, context, None):
                yield from ()

        return handle

    @contextmanager
    def _call(self, method: str, context: grpc.ServicerContext, request: object) -> Iterator[_Call]:
        """Do what every call gets; a request of None is one of a method that does not exist."""
        call = _Call(method, time.monotonic(), _subject(request))
        try:
            call.identity = self._doorkeeper.identify(context)
            _admit(call.identity, method, request)
            yield call
            if not context.is_active():
                call.code = grpc.StatusCode.CANCELLED
        except JobWorkerError as error:
            _abort(call, context, STATUS_CODES[type(error)], str(error))
        except GeneratorExit:
            call.code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            reference = uuid.uuid4()
            logger.exception("unexpected error %s in %s", reference, method)
            text = f"internal error; the server's log has it under {reference}"
            _abort(call, context, grpc.StatusCode.INTERNAL, text)
        finally:
            _write_audit_line(call, context)


_SHAPES: Final = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}


class _Unreadable:
    """Stands for a request that is no message of its kind."""


def _admit(identity: Identity, method: str, request: object) -> None:
    if request is None:
        raise errors.UnknownRpcError(f"there is no rpc {_shown(method)}")
    authorize(identity, method)
    if isinstance(request, _Unreadable):
        raise errors.InvalidRequestError(
            f"the request is no message of the kind that {_rpc(method)} takes"
        )


def _deserializer(
    deserialize: Callable[[bytes], Any] | None,
) -> Callable[[bytes], Any] | None:
    """Let the gate say what is wrong with a request: gRPC would say INTERNAL, and nobody else."""
    if deserialize is None:
        return None

    def read(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError:
            return _Unreadable()

    return read


def _serializer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Let a handler return bytes that are serialized already."""
    if serialize is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serialize(response)


def _abort(
    call: _Call, context: grpc.ServicerContext, code: grpc.StatusCode, detail: str
) -> NoReturn:
    call.code, call.detail = code, detail
    context.abort(code, detail)


def _shown(text: str) -> str:
    """Return a client's text for a log: one line, bounded, and quoted unless it is an id."""
    return text if _PLAIN_ID.fullmatch(text) else repr(text[:_SHOWN_CHARACTERS])


def _rpc(method: str) -> str:
    name = method.rpartition("/")[2]
    return name if name.isidentifier() else _shown(name)


def _subject(message: object) -> str:
    """Return what a call is about. Never a job's arguments or environment: they may be secret."""
    for name, field in (("job", "job_id"), ("command", "command_name")):
        if value := getattr(message, field, ""):
            return f"{name}={_shown(value)}"
    return ""


def _write_audit_line(call: _Call, context: grpc.ServicerContext) -> None:
    role = call.identity.role if call.identity is not None else None
    serial = f"{call.identity.serial_number:x}" if call.identity is not None else "-"
    audit.info(
        "rpc=%s%s role=%s serial=%s peer=%s code=%s ms=%.1f%s",
        _rpc(call.method),
        f" {call.subject}" if call.subject else "",
        role or "-",
        serial,
        context.peer(),
        call.code.name,
        (time.monotonic() - call.started_at_s) * 1000,
        f" detail={call.detail!r}" if call.detail else "",
    )
