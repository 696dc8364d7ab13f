"""The gate that every call passes, and the doorkeeper that identifies its caller.

The gate authenticates and authorizes the caller, admits each kind of call up to a maximum of its
own, waits a bounded time for the request, maps every exception to a status and writes one audit
line per call, also for rpcs that do not exist and requests that cannot be parsed. It cancels a
stalled stream once its client is no longer allowed to call. A new method also passes the gate, and
is refused until `identity.PERMISSIONS` lists it. Not audited: calls over `maximum_concurrent_rpcs`,
which gRPC refuses before this code runs.

Shared state, besides that of `follow`, `timers` and `deny`: `audit.AuditedCall.cut`.
"""

import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import grpc

from worker_service import errors
from worker_service.audit import AuditedCall, CallCounts, error_words, rpc_name, shown, subject
from worker_service.deny import DenyList
from worker_service.errors import JobWorkerError
from worker_service.follow import Admission, Slot
from worker_service.identity import AuthContext, Identity, authorize, identify
from worker_service.messages import Unreadable, all_requests, deserializer, serializer
from worker_service.timers import Timers

if TYPE_CHECKING:  # generic in the type stubs only
    type _Handler = grpc.RpcMethodHandler[Any, Any]

logger = logging.getLogger(__name__)
audit = logging.getLogger("worker_service.audit")

STATUS_CODES: Final[Mapping[type[JobWorkerError], grpc.StatusCode]] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.JobNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.JobRunningError: grpc.StatusCode.FAILED_PRECONDITION,
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
# Waits do not notice that the clock was set, or that the machine slept, so a long one is divided.
# And a certificate may be valid until the year 9999, longer than a wait can last.
CLOCK_LOOK_S: Final = 60.0
# A call that waits for its request holds a thread. Clients send it with the headers, so the first
# bound is for slow networks. The second is for the calls beyond half of those that share threads,
# which could take all. While a thousand streams open on two busy cores, ten wait, for 0.2 s.
REQUEST_MAX_S: Final = 10.0
REQUEST_CROWDED_MAX_S: Final = 1.0
# Streams and stops hold a thread for as long as they take. If the host allows no more threads, so
# many must stay idle: some for stops, which may free others, and the last for calls that end soon.
IDLE_MIN_STREAMS: Final = 8
IDLE_MIN_STOPS: Final = 4
_STOP: Final = "/jobworker.v1.JobWorker/StopJob"
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
        valid_for_s = min(identity.valid_for_s(), CLOCK_LOOK_S)
        if self._deny_list is None:
            return valid_for_s
        self._deny_list.check(identity.serial_number)
        return min(valid_for_s, DENY_LOOK_S)


class Gate(grpc.ServerInterceptor):
    """The checks and bookkeeping around the handler of every call."""

    def __init__(
        self,
        streams: Admission,
        doorkeeper: Doorkeeper,
        unary_threads: int,
        idle_threads: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._streams = streams
        self._idle_threads = idle_threads
        self._doorkeeper = doorkeeper
        self._stops = Admission(unary_threads, "stops wait for jobs to end (--unary-threads)")
        self._others = Admission(unary_threads, "other calls run (--unary-threads)")
        self._patience = Admission(unary_threads // 2)
        self._timers = Timers()
        self.counts = CallCounts()

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
        kind = self._stops if method == _STOP else self._others

        def handle(requests: Iterator[object], context: grpc.ServicerContext) -> object:
            with self._call(method, context, kind) as call:
                response = behaviour(self._request(handler, requests, call, context), context)
                call.subject = f"{call.subject} {subject(response)}".strip()
                return response

        return handle

    def _wrap_stream(self, method: str, handler: "_Handler") -> Callable[..., Any]:
        behaviour: Any = handler.unary_stream or handler.stream_stream

        def handle(requests: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:
            with (
                self._call(method, context, self._streams) as call,
                self._cutting_off(call, context),
            ):
                yield from behaviour(self._request(handler, requests, call, context), context)

        return handle

    def _refuse_unknown(self, method: str) -> Callable[..., Any]:
        def handle(requests: object, context: grpc.ServicerContext) -> Iterator[object]:
            del requests
            with self._call(method, context, None):
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
        self, method: str, context: grpc.ServicerContext, kind: Admission | None
    ) -> Iterator[AuditedCall]:
        """Check, admit and audit a call; None is for a method that does not exist.

        A call is refused before its request is read. It has a slot of its kind until its thread is
        free; a stream, whose thread the end of the call frees, only until then.
        """
        call = AuditedCall(method, context.peer())
        slot = None
        try:
            call.identity = self._doorkeeper.identify(context)
            slot = self._admit(call.identity, method, kind)
            if kind is self._streams:
                context.add_callback(slot.release)
            yield call
            call.code = context.code() or call.code  # type: ignore[attr-defined] # not in the stubs
            if not context.is_active():
                call.code = grpc.StatusCode.CANCELLED
        except JobWorkerError as error:
            call.reason = error_words(error)
            _abort(call, context, STATUS_CODES[type(error)], str(error))
        except (GeneratorExit, grpc.RpcError):  # reading a cancelled call raises the latter
            call.code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            call.reason, reference = "unexpected", uuid.uuid4()
            logger.exception("unexpected error %s in %s", reference, method)
            text = f"internal error; see {reference} in the server's log"
            _abort(call, context, grpc.StatusCode.INTERNAL, text)
        finally:
            if slot is not None:
                slot.release()
            audit.info("%s", call.line())
            self.counts.count(call)

    def _admit(self, identity: Identity, method: str, kind: Admission | None) -> Slot:
        if kind is None:
            raise errors.UnknownRpcError(f"rpc {shown(method)} does not exist")
        authorize(identity, method)
        needed = {self._streams: IDLE_MIN_STREAMS, self._stops: IDLE_MIN_STOPS}.get(kind)
        idle = self._idle_threads()
        if needed is not None and idle is not None and idle < needed:
            raise errors.HostExhaustedError(
                f"only {max(0, idle)} threads for calls are idle, and the host allows no more "
                "(ulimit -u, pids.max, TasksMax=); try again later"
            )
        return kind.admit()


def _abort(
    call: AuditedCall, context: grpc.ServicerContext, code: grpc.StatusCode, detail: str
) -> NoReturn:
    whole = detail.encode()
    if len(whole) > _DETAIL_MAX_BYTES:
        kept = whole[:_DETAIL_MAX_BYTES].decode(errors="ignore")
        detail = f"{kept}... (truncated from {len(whole)} bytes)"
    call.code, call.detail = code, detail
    context.abort(code, detail)
