"""The rpcs: request -> worker -> response, behind one gate that every call passes.

The gate authenticates and authorizes the caller, admits streams below the pool's size, waits a
bounded time for the request, maps every exception to a status and writes one audit line per call,
also for rpcs that do not exist and requests that cannot be parsed. It cancels a stalled stream once
its client is no longer allowed to call. A new method also passes the gate, and is refused until
`identity.PERMISSIONS` lists it. Not audited: calls over `maximum_concurrent_rpcs`, which gRPC
refuses before this code runs.

Shared state, besides that of `follow`, `timers` and `deny`: `audit.AuditedCall.cut`.
"""

import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import grpc

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from worker_service import errors
from worker_service.audit import AuditedCall, rpc_name, shown, subject
from worker_service.deny import DenyList
from worker_service.errors import JobWorkerError
from worker_service.follow import Admission, Batching, ByteBudget, follow
from worker_service.identity import AuthContext, Identity, authorize, identify
from worker_service.job import JobStatus, State
from worker_service.log import LogReader, OutputLog
from worker_service.messages import Unreadable, all_requests, deserializer, serializer
from worker_service.spawn import Command
from worker_service.timers import Timers
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

# How long a stream may run after its certificate was denied before that is noticed, and then until
# it is cancelled if its client does not read. Together they must be less than the 2 s that
# docs/security.md promises; the second is longer, so that a client that reads gets the reason.
DENY_LOOK_S: Final = 0.75
CUT_AFTER_S: Final = 1.0
# A call that waits for its request holds a thread. Clients send it with the headers, so the first
# bound is for slow networks. The second is for calls beyond the first `_REQUESTS_PATIENT`, which
# could take every thread. While a thousand streams open on two busy cores, ten wait, for 0.2 s.
REQUEST_MAX_S: Final = 10.0
REQUEST_CROWDED_MAX_S: Final = 1.0
_REQUESTS_PATIENT: Final = 64
# gRPC percent-encodes a status's text, which may triple it, and rejects headers of 8 KiB or more.
_DETAIL_MAX_BYTES: Final = 1024


class Doorkeeper:
    """Authenticates callers, and limits for how long the result holds."""

    def __init__(self, deny_list: DenyList | None = None) -> None:
        self._deny_list = deny_list

    def identify(self, context: grpc.ServicerContext) -> Identity:
        """Return the authenticated caller.

        Raises:
            NotAuthenticatedError: see `identity.identify`; or the certificate is denied.
        """
        # The type stubs say one bytes per key; it is a list of them.
        identity = identify(cast("AuthContext", context.auth_context()))
        if self._deny_list is not None:
            self._deny_list.check(identity.serial_number)
        return identity

    def lease_s(self, identity: Identity) -> float:
        """Return the seconds after which to check again.

        Raises:
            NotAuthenticatedError: the certificate has expired or was denied.
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
        """Stop a process tree and wait until it has ended."""
        del context
        grace_s = request.grace_period_ms / 1000 if request.HasField("grace_period_ms") else None
        status = self._worker.stop(request.job_id, grace_s)
        return pb.StopJobResponse(success=True, message=_describe(status))

    def QueryJob(  # noqa: N802 - the rpc's name
        self, request: pb.QueryJobRequest, context: grpc.ServicerContext
    ) -> pb.QueryJobResponse:
        """Return a job's state."""
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
        """Send a job's output from the requested start, and follow it.

        Finding the start may read the whole log, and is done before this returns.
        """
        identity = self._doorkeeper.identify(context)
        log = self._worker.log(request.job_id)
        reader = _reader(log, request)
        # Before anything waits: the end of the call then wakes the reader and frees the thread.
        if not context.add_callback(reader.cancel):
            return iter(())
        chunks = follow(
            reader,
            self._batching,
            self._budget,
            until_offset=log.extent().end_offset if request.no_follow else None,
            lease=lambda: self._doorkeeper.lease_s(identity),
        )
        # `map` holds no chunk while its message is sent, as a loop's variable would.
        return map(encode_output, chunks)

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


class Gate(grpc.ServerInterceptor):
    """The checks and bookkeeping around the handler of every call."""

    def __init__(
        self,
        admission: Admission,
        doorkeeper: Doorkeeper,
        requests_patient: int = _REQUESTS_PATIENT,
    ) -> None:
        self._admission = admission
        self._doorkeeper = doorkeeper
        self._patience = Admission(requests_patient)
        self._timers = Timers()

    def close(self) -> None:
        """End the gate's thread, after the last call."""
        self._timers.close()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "_Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Wrap the handler; a method that does not exist gets one that refuses and audits it.

        All take a stream of requests: for a single request gRPC waits without bound before it runs
        any of our code.
        """
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse_unknown(method))
        if handler.response_streaming:
            make, handle = grpc.stream_stream_rpc_method_handler, self._wrap_stream(method, handler)
        else:
            make, handle = grpc.stream_unary_rpc_method_handler, self._wrap_unary(method, handler)
        return make(
            handle,
            request_deserializer=deserializer(handler.request_deserializer),
            response_serializer=serializer(handler.response_serializer),
        )

    def _wrap_unary(self, method: str, handler: "_Handler") -> Callable[..., Any]:
        behaviour: Any = handler.unary_unary or handler.stream_unary

        def handle(requests: Iterator[object], context: grpc.ServicerContext) -> object:
            with self._call(method, context) as call:
                response = behaviour(self._request(handler, requests, call, context), context)
                call.subject = f"{call.subject} {subject(response)}".strip()
                return response

        return handle

    def _wrap_stream(self, method: str, handler: "_Handler") -> Callable[..., Any]:
        behaviour: Any = handler.unary_stream or handler.stream_stream

        def handle(requests: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:
            with self._call(method, context) as call:
                slot = self._admission.admit()
                try:
                    with self._cutting_off(call, context):
                        request = self._request(handler, requests, call, context)
                        responses = behaviour(request, context)
                        # From here on the end of the call frees its slot at once, even before its
                        # thread is free.
                        if context.add_callback(slot.release):
                            yield from responses
                finally:
                    slot.release()

        return handle

    def _refuse_unknown(self, method: str) -> Callable[..., Any]:
        def handle(requests: object, context: grpc.ServicerContext) -> Iterator[object]:
            del requests
            with self._call(method, context, exists=False):
                yield from ()

        return handle

    def _request(
        self,
        handler: "_Handler",
        requests: Iterator[object],
        call: AuditedCall,
        context: grpc.ServicerContext,
    ) -> object:
        """Return the handler's argument: all requests, or one that is waited for within bounds."""
        if handler.request_streaming:
            return all_requests(requests)

        try:
            slot, within_s = self._patience.admit(), REQUEST_MAX_S
        except errors.CapacityReachedError:
            slot, within_s = None, REQUEST_CROWDED_MAX_S

        def cut() -> float:
            call.cut = f"no request arrived within {within_s:g} s"
            context.cancel()
            return math.inf

        try:
            with self._timers.calling(cut, within_s):
                request = next(all_requests(requests), None)
        finally:
            if slot is not None:
                slot.release()
        call.subject = subject(request)
        if request is None:
            raise errors.InvalidRequestError("the call ended without a request; send one")
        if isinstance(request, Unreadable):
            raise errors.InvalidRequestError(
                f"the request cannot be parsed as the message that {rpc_name(call.method)} takes"
            )
        return request

    def _cutting_off(
        self, call: AuditedCall, context: grpc.ServicerContext
    ) -> AbstractContextManager[None]:
        """Cancel a stream that does not end although its caller is no longer allowed to call.

        A stream that waits for output ends itself, and the client gets the reason. A stalled one,
        whose thread gRPC holds because the client does not read, cannot.
        """
        identity = cast("Identity", call.identity)  # set before the call was admitted
        refusal = ""

        def look() -> float:
            nonlocal refusal
            if refusal:
                call.cut = refusal
                context.cancel()
                return math.inf
            try:
                return self._doorkeeper.lease_s(identity)
            except errors.NotAuthenticatedError as error:
                refusal = str(error)
                return CUT_AFTER_S

        return self._timers.calling(look, self._doorkeeper.lease_s(identity))

    @contextmanager
    def _call(
        self, method: str, context: grpc.ServicerContext, *, exists: bool = True
    ) -> Iterator[AuditedCall]:
        """Check and audit a call. A forbidden caller is refused before the request is read."""
        call = AuditedCall(method, context.peer())
        try:
            call.identity = self._doorkeeper.identify(context)
            _admit(call.identity, method, exists=exists)
            yield call
            call.code = context.code() or call.code  # type: ignore[attr-defined] # not in the stubs
            if not context.is_active():
                call.code = grpc.StatusCode.CANCELLED
        except JobWorkerError as error:
            _abort(call, context, STATUS_CODES[type(error)], str(error))
        except (GeneratorExit, grpc.RpcError):  # reading a cancelled call raises the latter
            call.code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            reference = uuid.uuid4()
            logger.exception("unexpected error %s in %s", reference, method)
            text = f"internal error; see {reference} in the server's log"
            _abort(call, context, grpc.StatusCode.INTERNAL, text)
        finally:
            audit.info("%s", call.line())


def _admit(identity: Identity, method: str, *, exists: bool) -> None:
    if not exists:
        raise errors.UnknownRpcError(f"rpc {shown(method)} does not exist")
    authorize(identity, method)


def _abort(
    call: AuditedCall, context: grpc.ServicerContext, code: grpc.StatusCode, detail: str
) -> NoReturn:
    whole = detail.encode()
    if len(whole) > _DETAIL_MAX_BYTES:
        kept = whole[:_DETAIL_MAX_BYTES].decode(errors="ignore")
        detail = f"{kept}... (truncated from {len(whole)} bytes)"
    call.code, call.detail = code, detail
    context.abort(code, detail)
