"""The recording client: every call has a deadline and becomes a record: OK, ERROR or UNKNOWN.

It knows the API from `proto/` alone, and never retries a call.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypedDict, Unpack

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from harness.dialects.dialect import CANONICAL, Dialect, rpc_of
from harness.drive.receiver import QUIET_S, EndWatch, Receiver, StreamPlan, outcome_of
from harness.host.cert_files import CertFiles
from harness.host.clock import seconds_until
from harness.record.foundations import ENDS, STARTS, STOPS
from harness.record.history import Call, CallByHand, Json, Outcome, Recorder, Stream
from harness.record.terms import OVER, STOP_GRACE_S
from harness.record.verdict import BrokenError, Duration, Finding, UnmetError, Verdict
from jobworker.v1 import jobworker_pb2 as pb

CALL_TIMEOUT_S: Final = 20.0
WATCH_TIMEOUT_S: Final = 5.0
SETTLE_S: Final = 5.0  # from a stop's answer to the job's end, if the server does not wait for it
SLOW_FACTOR: Final = 4.0  # deadlines are so much longer on an emulated processor
STOP_MARGIN_S: Final = 20.0
# The share of a call's deadline before which only the server can end it with DEADLINE_EXCEEDED.
_OWN_DEADLINE: Final = 0.9
# gRPC's messages for a connection that was never established. Its status, UNAVAILABLE, is also that
# of a connection that broke.
_NEVER_CONNECTED: Final = ("failed to connect to all addresses", "DNS resolution failed")


@dataclass(frozen=True, slots=True)
class Reply:
    """A call's record, and its response (None unless it was OK)."""

    call: Call
    message: Any

    @property
    def ok(self) -> bool:
        """Whether the call ended OK."""
        return self.call.outcome is Outcome.OK


def message_of[Kind: Message](call: Call, kind: type[Kind]) -> Kind:
    """Return the response of a recorded call as its message, with typed fields.

    Fields that the message does not have are ignored; of a call that was refused, it is empty.
    """
    return ParseDict(dict(call.response), kind(), ignore_unknown_fields=True)


class StartOptions(TypedDict, total=False):
    """Options of a start: the label of its record, and optional fields of the request."""

    label: str
    limits: pb.ResourceLimits | None
    environment: Mapping[str, str] | None
    working_directory: str


def _by_hand(
    dialect: Dialect, address: str, files: CertFiles, label: str, request: Message
) -> CallByHand | None:
    words = dialect.transport.by_hand(request, address, files)
    if not words:
        return None
    setup = dialect.transport.setup_by_hand(files)
    return CallByHand(label, rpc_of(request), words, address, str(files.ca.parent), setup)


class Client:
    """A connection to a server; a context manager. Threads may share it."""

    def __init__(
        self,
        address: str,
        files: CertFiles,
        recorder: Recorder,
        *,
        dialect: Dialect = CANONICAL,
        slow: bool = False,
    ) -> None:
        self.patience = SLOW_FACTOR if slow else 1.0
        self.timeout_s = CALL_TIMEOUT_S * self.patience
        self._recorder = recorder
        self._was_answered = False
        self._connection = dialect.connect(address, files)
        self._command_of = functools.partial(_by_hand, dialect, address, files)
        self.unknown_id = dialect.terms.unknown_id
        self._stops_wait = dialect.terms.own
        self._stop_grace_s = dialect.terms.stop_grace_s
        self._stub = self._connection.stub
        self._end_watch = EndWatch(self._job_has_ended, QUIET_S * self.patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def start(
        self, command: str, arguments: Sequence[str] = (), **options: Unpack[StartOptions]
    ) -> Reply:
        """Start a job; the record's label is "start" by default."""
        request = pb.StartJobRequest(
            command_name=command,
            command_args=arguments,
            limits=options.get("limits"),
            environment=options.get("environment"),
            working_directory=options.get("working_directory", ""),
        )
        label = options.get("label", "start")
        return self.call(label, "StartJob", self._stub.StartJob, request)

    def must_start(
        self, command: str, arguments: Sequence[str] = (), **options: Unpack[StartOptions]
    ) -> str:
        """Start a job and return its id.

        Raises:
            UnmetError: the server did not start it.
            BrokenError: the server cannot be reached.
        """
        reply = self.start(command, arguments, **options)
        job_id: str = self.require(reply, STARTS).job_id
        return job_id

    def stop(
        self,
        job_id: str,
        *,
        label: str = "stop",
        grace_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """Stop a job; a grace period needs a server that knows the field.

        Another kind of server may answer before the job has ended: its end is then waited for,
        after the call that is recorded.

        Args:
            job_id: the job.
            label: of the call's record.
            grace_s: requested grace period; None: the server's own.
            timeout_s: deadline of the call; None: longer than the grace period.
        """
        request = pb.StopJobRequest(
            job_id=job_id, grace_period_ms=None if grace_s is None else round(grace_s * 1000)
        )
        grace_s = grace_s or max(0.0, self._stop_grace_s - STOP_GRACE_S)
        timeout_s = timeout_s or grace_s + STOP_MARGIN_S + self.timeout_s
        reply = self.call(label, "StopJob", self._stub.StopJob, request, timeout_s)
        if reply.ok and not self._stops_wait:
            seconds_until(lambda: self._job_has_ended(job_id), SETTLE_S * self.patience)
        return reply

    def must_stop(self, job_id: str, *, label: str = "stop", grace_s: float | None = None) -> None:
        """Stop a job.

        Raises:
            UnmetError: the server did not stop it.
            BrokenError: the server cannot be reached.
        """
        self.require(self.stop(job_id, label=label, grace_s=grace_s), STOPS)

    def query(self, job_id: str, *, label: str = "query") -> Reply:
        """Query a job."""
        return self.call(label, "QueryJob", self._stub.QueryJob, pb.QueryJobRequest(job_id=job_id))

    def must_query(self, job_id: str, *, label: str = "query") -> pb.QueryJobResponse:
        """Query a job that exists.

        Raises:
            UnmetError: the server did not answer the query.
            BrokenError: the server cannot be reached.
        """
        message: pb.QueryJobResponse = self.require(
            self.query(job_id, label=label), "a job can be queried"
        )
        return message

    def list_jobs(self, *, label: str = "list") -> Reply:
        """List the jobs."""
        return self.call(label, "ListJobs", self._stub.ListJobs, pb.ListJobsRequest())

    def list_page(
        self,
        token: str = "",
        *,
        page_size: int = 0,
        newest_first: bool = False,
        status: str = "",
        label: str = "page",
    ) -> Reply:
        """List one page of the jobs. Its record has no response: a page may be of megabytes."""
        request = pb.ListJobsRequest(
            page_size=page_size, page_token=token, newest_first=newest_first, status=status
        )
        return self.call(label, "ListJobs", self._stub.ListJobs, request, keep=False)

    def delete(self, job_id: str, *, label: str = "delete") -> Reply:
        """Delete an ended job."""
        request = pb.DeleteJobRequest(job_id=job_id)
        return self.call(label, "DeleteJob", self._stub.DeleteJob, request)

    def stream(
        self, job_id: str, plan: StreamPlan | None = None, *, label: str = "stream"
    ) -> Stream:
        """Stream a job's output on this thread, to its end or as the plan says.

        Raises:
            UnmetError: the stream did not end in time.
        """
        plan = plan or StreamPlan()
        stream = self.receiver(job_id, plan, label=label).run()
        if stream.outcome is Outcome.UNKNOWN and not plan.may_time_out:
            got = f"{stream.received_bytes} bytes, no end after {plan.timeout_s:.0f} s ({label})"
            duration = Duration.past_deadline(stream.ended_s - stream.started_s)
            raise UnmetError(Finding(Verdict.FAIL, ENDS, got, duration=duration))
        return stream

    def output(self, job_id: str, *, label: str = "output") -> str:
        """Return a job's output (at most 1 MiB) as Latin-1, once the job has ended.

        Raises:
            UnmetError: the stream did not end with OK in time.
        """
        stream = self.stream(job_id, StreamPlan(keep_bytes=1 << 20), label=label)
        if stream.outcome is not Outcome.OK:
            got = f"{stream.code}: {stream.detail}"
            raise UnmetError(Finding(Verdict.FAIL, ENDS, got, "OK"))
        return stream.text

    def wait_ended(self, job_id: str) -> None:
        """Wait until a query reports that a job has ended, for as long as a call may take.

        For what does not depend on the output. Its stream, which shows the end soonest, is not
        recorded: nothing is wrong if it is not exact, or does not end.
        """
        self._receiver(job_id, StreamPlan(), "", lambda _: None).run()
        seconds_until(lambda: self._job_has_ended(job_id), self.timeout_s)

    def receiver(
        self, job_id: str, plan: StreamPlan | None = None, *, label: str = "stream"
    ) -> Receiver:
        """Return a receiver of a stream: its `run` receives, its `cancel` cancels."""
        plan = plan or StreamPlan()
        self._record_by_hand(label, plan.request(job_id))
        return self._receiver(job_id, plan, label, self._recorder.add)

    def _receiver(
        self, job_id: str, plan: StreamPlan, label: str, record: Callable[[Stream], None]
    ) -> Receiver:
        if not plan.may_time_out:
            plan = dataclasses.replace(plan, timeout_s=plan.timeout_s * self.patience)
        # A slow reader, and a deadline that the check expects, look like a missing end.
        watched = not plan.may_time_out and plan.bytes_per_s is None
        watch = self._end_watch if watched else None
        return Receiver(self._stub, job_id, plan, label, self._recorder.now_s, record, watch=watch)

    def _job_has_ended(self, job_id: str) -> bool:
        """Query without a record: a check records only its own calls."""
        try:
            job = self._stub.QueryJob(pb.QueryJobRequest(job_id=job_id), timeout=WATCH_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return job.status in OVER

    def require(self, reply: Reply, promise: str) -> Any:  # noqa: ANN401 - any message
        """Return a reply's message.

        Raises:
            UnmetError: the call failed, at a server that was reached before or by this call.
            BrokenError: the server cannot be reached.
        """
        if reply.ok:
            return reply.message
        call = reply.call
        if call.code == "UNAVAILABLE" and not self._was_reached(call):
            raise BrokenError(f"the server cannot be reached: {call.detail}")
        got = f"{call.code}: {call.detail}"
        if call.outcome is Outcome.UNKNOWN:
            took_s = call.ended_s - call.started_s
            got = f"no answer to {call.rpc} in {took_s:.0f} s"
            duration = Duration.past_deadline(took_s)
            raise UnmetError(Finding(Verdict.FAIL, promise, got, "OK", duration=duration))
        raise UnmetError(Finding(Verdict.FAIL, promise, got, "OK"))

    def _record_by_hand(self, label: str, request: Message) -> None:
        make = functools.partial(self._command_of, label, request)
        self._recorder.add_by_hand(rpc_of(request), make)

    def _was_reached(self, call: Call) -> bool:
        """Return whether a call that ended UNAVAILABLE had reached a server."""
        return self._was_answered or not any(text in call.detail for text in _NEVER_CONNECTED)

    def call(
        self,
        label: str,
        rpc: str,
        method: Callable[..., Any],
        request: Message,
        timeout_s: float | None = None,
        *,
        keep: bool = True,
    ) -> Reply:
        """Make a call and record it, by default with its response."""
        self._record_by_hand(label, request)
        started_s = self._recorder.now_s()
        timeout_s = timeout_s or self.timeout_s
        message, response = None, dict[str, Json]()
        outcome, code, detail = Outcome.OK, "OK", ""
        try:
            message = method(request, timeout=timeout_s)
            if keep:
                response = MessageToDict(
                    message,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
        except grpc.RpcError as error:
            outcome, code, detail = outcome_of(error)
            if self._recorder.now_s() - started_s < _OWN_DEADLINE * timeout_s:
                outcome = Outcome.ERROR  # DEADLINE_EXCEEDED can be the server's own answer
        except ValueError as error:  # grpc rejects the arguments before it sends anything
            raise BrokenError(f"{rpc} could not be sent: {error}") from error
        if code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
            self._was_answered = True
        call = Call(label, rpc, outcome, code, detail, started_s, self._recorder.now_s(), response)
        self._recorder.add(call)
        return Reply(call, message)
