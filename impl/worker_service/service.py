"""The rpcs: request -> worker -> response. `gate.Gate` is in front of every call."""

import re
import secrets
from collections.abc import Iterator
from typing import Final

import grpc

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from worker_service.courier import Courier
from worker_service.errors import InvalidRequestError
from worker_service.follow import Batching, ByteBudget, Readers, follow
from worker_service.gate import Doorkeeper
from worker_service.grpc_internals import sender
from worker_service.job import JobStatus, State
from worker_service.log import Extent, LogReader, OutputLog
from worker_service.spawn import Command
from worker_service.wire import (
    encode_output,
    limits_from_message,
    limits_to_message,
    timestamp,
    usage_to_message,
)
from worker_service.worker import Worker

# A page of jobs: gRPC clients accept messages of 4 MiB by default, and the arguments of one job may
# take 2 MiB (execve(2): a quarter of the stack's limit).
_PAGE_JOBS: Final = 1000
_PAGE_MAX_BYTES: Final = 2 * 1024 * 1024
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


class JobWorkerService(jobworker_pb2_grpc.JobWorkerServicer):  # type: ignore[misc] # no types
    """The JobWorker rpcs on top of a worker."""

    def __init__(
        self,
        worker: Worker,
        batching: Batching,
        budget: ByteBudget,
        doorkeeper: Doorkeeper,
        *,
        courier: Courier,
    ) -> None:
        self._worker = worker
        self._batching = batching
        self._budget = budget
        self._doorkeeper = doorkeeper
        self._courier = courier
        self.readers = Readers()
        # Another server's token, or one of before a restart, is refused: its numbers mean others.
        self._page_prefix = f"{secrets.token_hex(4)}-"

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
        """Stop a process tree and wait until it has ended, or the client has gone."""
        # The end of the call wakes the wait, and so frees the thread.
        context.add_callback(self._worker.find(request.job_id).wake)
        grace_s = request.grace_period_ms / 1000 if request.HasField("grace_period_ms") else None
        status = self._worker.stop(request.job_id, grace_s, lambda: not context.is_active())
        return pb.StopJobResponse(success=True, message=_describe(status))

    def QueryJob(  # noqa: N802 - the rpc's name
        self, request: pb.QueryJobRequest, context: grpc.ServicerContext
    ) -> pb.QueryJobResponse:
        """Return a job's state."""
        del context
        status = self._worker.query(request.job_id)
        log = self._worker.log(request.job_id)
        extent, output_error = log.extent(), log.failure()
        lost = f"; {output_error}" if output_error else ""
        return pb.QueryJobResponse(
            status=status.state,
            pid=status.pid,
            exit_code=status.exit_code,
            signal=status.signal,
            message=_describe(status) + lost,
            oom_killed=status.oom_killed,
            started_at=timestamp(status.started_at_s),
            ended_at=timestamp(status.ended_at_s),
            limits=limits_to_message(status.limits),
            usage=usage_to_message(status.usage),
            log_size_bytes=extent.end_offset,
            log_first_offset=extent.first_offset,
            output_error=output_error,
        )

    def StreamLogs(  # noqa: N802 - the rpc's name
        self, request: pb.StreamLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Send a job's output from the requested start, and follow it.

        Finding the start may read the whole log, once; the end of the call ends that.
        """
        identity = self._doorkeeper.identify(context)
        log = self._worker.log(request.job_id)
        reader = _reader(log, request)
        if (send := sender(context)) is not None:
            reader = self._courier.reader(log, reader.offset, send)
        # Before anything waits or searches: the end of the call ends that and frees the thread.
        if not context.add_callback(reader.cancel):
            return iter(())
        if request.HasField("tail_lines"):
            reader.seek_tail_lines(request.tail_lines)
        chunks = follow(
            reader,
            self._batching,
            self._budget,
            until_offset=log.extent().end_offset if request.no_follow else None,
            lease=lambda: self._doorkeeper.lease_s(identity),
        )
        chunks = self.readers.counting(reader, chunks)
        # `map` holds no chunk while its message is sent, as a loop's variable would.
        return map(encode_output, chunks)

    def ListJobs(  # noqa: N802 - the rpc's name
        self, request: pb.ListJobsRequest, context: grpc.ServicerContext
    ) -> pb.ListJobsResponse:
        """List a page of jobs.

        A token has the number of the page's last job: deletions and starts move no other job.
        """
        del context
        listed = self._worker.list_jobs(
            after=self._page_start(request.page_token),
            newest_first=request.newest_first,
            state=_state(request.status) if request.status else None,
        )
        page, page_bytes, last_number = pb.ListJobsResponse(), 0, 0
        for job, status in listed:
            summary = _summary(status, job.log.extent())
            page_bytes += summary.ByteSize()
            full = len(page.jobs) == (request.page_size or _PAGE_JOBS)
            if full or (page.jobs and page_bytes > _PAGE_MAX_BYTES):
                page.next_page_token = f"{self._page_prefix}{last_number}"
                break
            page.jobs.append(summary)
            last_number = job.number
        return page

    def _page_start(self, token: str) -> int | None:
        number = token.removeprefix(self._page_prefix)
        if token and (number == token or not _NUMBER.fullmatch(number)):
            raise InvalidRequestError(
                f"page_token is {token[:100]!r}; it must be the next_page_token of this server's "
                "previous answer, or empty for the first page"
            )
        return int(number) if token else None

    def DeleteJob(  # noqa: N802 - the rpc's name
        self, request: pb.DeleteJobRequest, context: grpc.ServicerContext
    ) -> pb.DeleteJobResponse:
        """Forget an ended job."""
        del context
        self._worker.delete(request.job_id)
        return pb.DeleteJobResponse(message="deleted")


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise InvalidRequestError(
            f"status is {text[:100]!r}; it must be one of {', '.join(State)}, or empty for all"
        ) from None


def _summary(status: JobStatus, extent: Extent) -> pb.JobSummary:
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
        log_size_bytes=extent.end_offset,
        log_first_offset=extent.first_offset,
    )


def _reader(log: OutputLog, request: pb.StreamLogsRequest) -> LogReader:
    match request.WhichOneof("start"):
        case "tail_bytes":
            return log.reader_at_tail_bytes(request.tail_bytes)
        case "tail_lines":
            return log.reader_at(0)  # until `seek_tail_lines`, which a cancel must be able to end
        case _:
            return log.reader_at(request.from_offset)  # 0 when absent


def _describe(status: JobStatus) -> str:
    if status.state is State.RUNNING:
        return "running"
    oom = " by the OOM killer" if status.oom_killed else ""
    if status.state is State.SIGNALED:
        return f"ended{oom} with signal {status.signal}"
    return f"ended{oom and ' after the OOM killer struck'} with exit code {status.exit_code}"
