"""The client library: typed calls with deadlines, streams that can be resumed by offset.

Works with the original's servers too: a missing feature is detected by an absent field in a
response, not by a version, and emulated here where that is possible.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self
from urllib.parse import urlsplit

import grpc

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from worker_service.cgroup import Limits, Usage
from worker_service.errors import JobWorkerError
from worker_service.tls import CertificateFiles, channel_credentials
from worker_service.wire import (
    limits_from_message,
    limits_to_message,
    moment,
    usage_from_message,
)

DEFAULT_TIMEOUT_S: Final = 10.0
_DEFAULT_GRACE_S: Final = 10.0
# How long a server that did not answer a stop in time may take to answer a query.
_CONFIRM_TIMEOUT_S: Final = 1.0
_CONNECT_TIMEOUT_S: Final = 20.0  # gRPC's default
_MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
# The original's servers have other names for a job that has not ended.
_ENDED: Final = frozenset({"exited", "signaled"})
# In gRPC's order; it reads no other (src/core/handshaker/http_connect/http_proxy_mapper.cc).
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")


class CallError(JobWorkerError):
    """The server refused a call or could not be reached; `code` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class StopUnfinishedError(JobWorkerError):
    """The server is stopping the job, but the job did not end before the call's deadline."""


class StreamUnsupportedError(JobWorkerError):
    """The server ignored a stream's start or end, and the client cannot emulate it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the server reports it; None where it reported nothing. Times are UTC."""

    job_id: str
    status: str
    pid: int
    exit_code: int
    signal: int
    message: str = ""
    oom_killed: bool = False
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    limits: Limits | None = None
    usage: Usage | None = None
    log_size_bytes: int | None = None
    log_first_offset: int | None = None
    output_error: str = ""
    command: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether the job has not ended."""
        return self.status not in _ENDED

    @property
    def shell_exit_code(self) -> int:
        """The exit code as a shell reports it: 128 plus the number of the signal, if any."""
        return 128 + self.signal if self.signal else self.exit_code


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a job's output; retention dropped the `missed_bytes` before it."""

    offset: int
    data: bytes
    missed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream starts; at most one is set; without any, at the first byte."""

    from_offset: int | None = None
    tail_bytes: int | None = None
    tail_lines: int | None = None


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a client talks to a server.

    Attributes:
        server: HOST:PORT.
        files: the client's certificates.
        timeout_s: the deadline of each call but a stream; a stop adds its grace period. A
            connection that takes longer, or 20 s, is unreachable; gRPC waits at least 1 s.
        server_name: the name to verify in the server's certificate, if not the host.
        keepalive_time_s: idle time after which a stream's connection is probed. Servers refuse
            clients that ping more often than they allow, every 5 minutes by default.
        keepalive_timeout_s: time to answer before the connection counts as dead.
        stream_window_bytes: HTTP/2 window for received output; 0 leaves it to gRPC.
    """

    server: str
    files: CertificateFiles
    timeout_s: float = DEFAULT_TIMEOUT_S
    server_name: str | None = None
    keepalive_time_s: float = 600.0
    keepalive_timeout_s: float = 20.0
    stream_window_bytes: int = 0


class StreamCall(Protocol):
    """A stream's call, which any thread may cancel."""

    def __iter__(self) -> Iterator[pb.StreamLogsResponse]: ...
    def cancel(self) -> bool:
        """End the call with the status CANCELLED."""
        ...


class Client:
    """A connection to one server; a context manager. Threads may share it.

    Every method raises `CallError` if the server refuses the call or cannot be reached.

    Raises:
        ConfigurationError: the certificate files are not usable.
    """

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._channel = grpc.secure_channel(
            options.server, channel_credentials(options.files), options=_channel_options(options)
        )
        self._stub = jobworker_pb2_grpc.JobWorkerStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def options(self) -> ClientOptions:
        """How it talks to its server."""
        return self._options

    def close(self) -> None:
        """Close the connection, which ends open streams."""
        self._channel.close()

    def start(
        self,
        command: str,
        arguments: Sequence[str] = (),
        *,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> str:
        """Start a job and return its id."""
        request = pb.StartJobRequest(
            command_name=command,
            command_args=arguments,
            limits=limits_to_message(limits),
            environment=environment,
            working_directory=working_directory or "",
        )
        response: pb.StartJobResponse = self._call(self._stub.StartJob, request)
        return response.job_id

    def stop(self, job_id: str, grace_s: float | None = None) -> str:
        """Stop a job and return the server's message.

        Raises:
            StopUnfinishedError: the server's grace period is longer than expected here, or the job
                ends slowly.
        """
        request = pb.StopJobRequest(
            job_id=job_id, grace_period_ms=None if grace_s is None else round(grace_s * 1000)
        )
        grace_s = _DEFAULT_GRACE_S if grace_s is None else grace_s
        timeout_s = grace_s + self._options.timeout_s
        response: pb.StopJobResponse
        try:
            response = self._call(self._stub.StopJob, request, timeout_s)
        except CallError as error:
            if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return self._result_of_unanswered_stop(job_id, timeout_s, error)
        if not response.success:
            raise CallError(
                grpc.StatusCode.UNKNOWN, response.message or "the server did not stop it"
            )
        return response.message

    def _result_of_unanswered_stop(
        self, job_id: str, waited_s: float, unanswered: CallError
    ) -> str:
        """Distinguish a server that is still stopping the job from one that does not answer."""
        try:
            job = self._query(job_id, min(_CONFIRM_TIMEOUT_S, self._options.timeout_s))
        except CallError:
            raise unanswered from None
        if job.running:
            raise StopUnfinishedError(
                f"job {job_id} has not ended within {waited_s:g} s; the server continues to stop "
                "it. Query it later, or give a longer --timeout, or a shorter --grace to kill it "
                "earlier"
            ) from None
        return job.message

    def query(self, job_id: str) -> Job:
        """Return a job's state and usage."""
        return self._query(job_id, self._options.timeout_s)

    def _query(self, job_id: str, timeout_s: float) -> Job:
        request = pb.QueryJobRequest(job_id=job_id)
        response: pb.QueryJobResponse = self._call(self._stub.QueryJob, request, timeout_s)
        return _job_from(job_id, response)

    def list_jobs(self, *, newest_first: bool = False, status: str = "") -> Iterator[Job]:
        """Yield the jobs that the server knows; only one page of them is in memory.

        Args:
            newest_first: whether the job that started last comes first; otherwise it comes last.
            status: only jobs with this status; empty for all.
        """
        request = pb.ListJobsRequest(newest_first=newest_first, status=status)
        page: pb.ListJobsResponse = self._call(self._stub.ListJobs, request)
        return self._jobs(request, page)

    def _jobs(self, request: pb.ListJobsRequest, page: pb.ListJobsResponse) -> Iterator[Job]:
        while True:
            yield from map(_job_from_summary, page.jobs)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
            page = self._call(self._stub.ListJobs, request)

    def delete(self, job_id: str) -> None:
        """Make the server forget an ended job and its output."""
        self._call(self._stub.DeleteJob, pb.DeleteJobRequest(job_id=job_id))

    def stream(
        self,
        job_id: str,
        start: Start | None = None,
        *,
        follow: bool = True,
        timeout_s: float | None = None,
        on_call: Callable[[StreamCall], None] | None = None,
    ) -> Iterator[Output]:
        """Yield a job's output until the job has ended or, without follow, to its current end.

        Closing the iterator cancels the call. It uses one connection, and ends with that:
        `resume.ResumedStream` goes on over another.

        Args:
            job_id: the job.
            start: where to start.
            follow: whether to wait for more.
            timeout_s: a deadline for the whole stream; None sets no deadline (keepalive detects a
                dead server).
            on_call: receives the call, which any thread may `cancel`.

        Raises:
            StreamUnsupportedError: the server supports no tails, or no streams without follow.
        """
        start = start or Start()
        request = pb.StreamLogsRequest(
            job_id=job_id,
            from_offset=start.from_offset,
            tail_bytes=start.tail_bytes,
            tail_lines=start.tail_lines,
            no_follow=not follow,
        )
        call: StreamCall = self._stub.StreamLogs(request, timeout=timeout_s)
        if on_call is not None:
            on_call(call)
        try:
            yield from _outputs(call, start, follow=follow)
        except grpc.RpcError as error:
            raise _call_error(error, self._options.server) from None
        finally:
            call.cancel()

    def _call[Request, Response](
        self,
        method: Callable[..., Response],
        request: Request,
        timeout_s: float | None = None,
    ) -> Response:
        try:
            return method(
                request, timeout=self._options.timeout_s if timeout_s is None else timeout_s
            )
        except grpc.RpcError as error:
            raise _call_error(error, self._options.server) from None


def _outputs(call: StreamCall, start: Start, *, follow: bool) -> Iterator[Output]:
    """Convert messages to outputs, counting offsets where the server does not send them."""
    next_offset = 0
    skip_bytes = 0
    first = True
    for message in call:
        has_offset = message.HasField("offset")
        if first and not has_offset:
            skip_bytes = _bytes_to_skip(start, follow=follow)
        first = False
        offset = message.offset if has_offset else next_offset
        data = message.message
        next_offset = offset + len(data)
        if skip_bytes:
            dropped = min(skip_bytes, len(data))
            skip_bytes -= dropped
            data = data[dropped:]
            offset += dropped
        if data or message.missed_bytes:
            yield Output(offset, data, message.missed_bytes)


def _bytes_to_skip(start: Start, *, follow: bool) -> int:
    """Return how many bytes to skip of a stream that the server started at its first byte."""
    if start.tail_bytes is not None or start.tail_lines is not None or not follow:
        raise StreamUnsupportedError(
            "the server implements the original's API, without --tail and --no-follow; "
            "stream without them"
        )
    return start.from_offset or 0


def _channel_options(options: ClientOptions) -> list[tuple[str, int | str]]:
    keepalive_timeout_ms = int(options.keepalive_timeout_s * 1000)
    settings: list[tuple[str, int | str]] = [
        ("grpc.keepalive_time_ms", int(options.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", keepalive_timeout_ms),
        # gRPC's actual wait for the answer; its default of 60 s would override the above.
        ("grpc.http2.ping_timeout_ms", keepalive_timeout_ms),
        # Also the time limit of a connection attempt, with its TLS handshake.
        (
            "grpc.min_reconnect_backoff_ms",
            int(min(options.timeout_s, _CONNECT_TIMEOUT_S) * 1000),
        ),
        ("grpc.max_receive_message_length", _MESSAGE_MAX_BYTES),
        # Each client has its own connection: shared ones would share the flow-control window too.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if options.server_name is not None:
        settings.append(("grpc.ssl_target_name_override", options.server_name))
    if options.stream_window_bytes:
        settings.append(("grpc.http2.lookahead_bytes", options.stream_window_bytes))
    if _is_loopback(options.server):
        settings.append(("grpc.enable_http_proxy", 0))  # a proxy would call its own host
    return settings


def _is_loopback(server: str) -> bool:
    host = ""
    try:
        host = urlsplit("//" + server.rpartition("/")[2]).hostname or ""
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _call_error(error: grpc.RpcError, server: str) -> CallError:
    # An RpcError that a call raises is the call itself, which the type stubs do not say.
    code: grpc.StatusCode = error.code()
    detail: str = error.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE and "shutting down" not in detail:
        detail = (
            f"the server cannot be reached, or refused the TLS connection ({detail}); check the "
            "address, and that both certificates are valid and from the same CA"
        )
        proxy = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
        if proxy is not None and not _is_loopback(server):
            detail += (
                f"; gRPC connects through the proxy of the variable {proxy}, unless no_proxy names "
                "the host"
            )
    return CallError(code, detail)


def _job_from_summary(summary: pb.JobSummary) -> Job:
    return Job(
        job_id=summary.job_id,
        status=summary.status,
        pid=summary.pid,
        exit_code=summary.exit_code,
        signal=summary.signal,
        started_at=moment(summary, "started_at"),
        ended_at=moment(summary, "ended_at"),
        log_size_bytes=summary.log_size_bytes,
        log_first_offset=summary.log_first_offset,
        command=(summary.command_name, *summary.command_args),
    )


def _job_from(job_id: str, response: pb.QueryJobResponse) -> Job:
    has = response.HasField
    return Job(
        job_id=job_id,
        status=response.status,
        pid=response.pid,
        exit_code=response.exit_code,
        signal=response.signal,
        message=response.message,
        oom_killed=response.oom_killed,
        started_at=moment(response, "started_at"),
        ended_at=moment(response, "ended_at"),
        limits=limits_from_message(response.limits) if has("limits") else None,
        usage=usage_from_message(response.usage) if has("usage") else None,
        log_size_bytes=response.log_size_bytes if has("log_size_bytes") else None,
        log_first_offset=response.log_first_offset if has("log_first_offset") else None,
        output_error=response.output_error,
    )
