"""A server of our API with prepared answers, for what no real server on this host would answer."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from tests.support.service import Certificates

JOB_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


@dataclass
class StandIn(jobworker_pb2_grpc.JobWorkerServicer):  # type: ignore[misc]
    """The answers of a server, and the names of the rpcs that were called.

    Attributes:
        error: with it, a query is NOT_FOUND with this detail.
        stopping: a stop does not return before it is set.
        refusals: the statuses of the next streams, each instead of the output.
    """

    job: pb.QueryJobResponse = field(default_factory=pb.QueryJobResponse)
    listed: list[pb.JobSummary] = field(default_factory=list)
    output: bytes = b""
    error: str = ""
    stopping: threading.Event | None = None
    refusals: list[grpc.StatusCode] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def StartJob(self, _request: Any, _context: grpc.ServicerContext) -> pb.StartJobResponse:  # noqa: N802
        self.calls.append("StartJob")
        return pb.StartJobResponse(job_id=JOB_ID)

    def StopJob(self, _request: Any, _context: grpc.ServicerContext) -> pb.StopJobResponse:  # noqa: N802
        self.calls.append("StopJob")
        if self.stopping is not None:
            self.stopping.wait()
        return pb.StopJobResponse(success=True, message="stopped")

    def QueryJob(self, _request: Any, context: grpc.ServicerContext) -> pb.QueryJobResponse:  # noqa: N802
        self.calls.append("QueryJob")
        if self.error:
            context.abort(grpc.StatusCode.NOT_FOUND, self.error)
        return self.job

    def ListJobs(self, _request: Any, _context: grpc.ServicerContext) -> pb.ListJobsResponse:  # noqa: N802
        self.calls.append("ListJobs")
        return pb.ListJobsResponse(jobs=self.listed)

    def StreamLogs(self, _request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.calls.append("StreamLogs")
        if self.refusals:
            context.abort(self.refusals.pop(0), "refused")
        yield pb.StreamLogsResponse(message=self.output, offset=0)


@contextmanager
def stand_in_server(certificates: Certificates, answers: StandIn) -> Iterator[str]:
    """Serve the answers over mutual TLS; yield the address."""
    files = certificates.server
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())], files.ca.read_bytes(), True
    )
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        jobworker_pb2_grpc.add_JobWorkerServicer_to_server(answers, server)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
