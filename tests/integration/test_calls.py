"""Kinds of calls: none can take the threads of another, and an abandoned call frees its own."""

from typing import Any

import grpc
import pytest

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from tests.support.calls import begin_call, refusal
from tests.support.service import (
    Certificates,
    audit_lines,
    channel_for,
    client_for,
    running_server,
    wait_until,
)
from worker_service import gate as gate_module
from worker_service.client import CallError

QUERY = "/jobworker.v1.JobWorker/QueryJob"
DEAF = ("sh", ["-c", "trap '' TERM; echo on; while :; do sleep 100; done"])
GRACE_MS = 600_000


def test_stops_leave_threads_and_abandoned_ones_free_theirs_at_once(
    certificates: Certificates, audit_log: pytest.LogCaptureFixture
) -> None:
    with (
        running_server(certificates, max_streams=1, unary_threads=2) as server,
        client_for(server.address, certificates.admin) as admin,
        channel_for(server.address, certificates.admin) as connection,
    ):
        job_id = admin.start(*DEAF)
        with_stream = admin.stream(job_id, timeout_s=60)
        next(with_stream)
        stub: Any = jobworker_pb2_grpc.JobWorkerStub(connection)
        request = pb.StopJobRequest(job_id=job_id, grace_period_ms=GRACE_MS)
        stops = [stub.StopJob.future(request, timeout=60) for _ in range(2)]
        gate = server._gate
        wait_until(lambda: gate._stops.taken() == 2, "both stops to wait")
        with pytest.raises(CallError, match=r"2 stops .*--unary-threads") as refused:
            admin.stop(job_id)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        [line] = audit_lines(audit_log, "StopJob")
        assert "code=RESOURCE_EXHAUSTED" in line
        assert "--unary-threads" in line
        assert admin.query(job_id).running
        assert admin.query(admin.start("true")).status
        for stop in stops:
            stop.cancel()
        lines = audit_lines(audit_log, "StopJob", 3)  # written by the calls' threads, as they end
        assert [f"job={job_id}" in each and "code=CANCELLED" in each for each in lines[1:]] == [
            True,
            True,
        ]
        wait_until(lambda: gate._stops.taken() == 0, "the slots to be free")
        assert admin.query(job_id).running  # it still has its grace
        admin.stop(job_id, grace_s=0)


def test_other_calls_that_wait_leave_threads_for_stops_and_streams(
    certificates: Certificates,
    audit_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_module, "REQUEST_CROWDED_MAX_S", 60.0)
    monkeypatch.setattr(gate_module, "REQUEST_MAX_S", 60.0)
    with (
        running_server(certificates, max_streams=1, unary_threads=2) as server,
        client_for(server.address, certificates.admin) as admin,
        channel_for(server.address, certificates.user) as connection,
    ):
        job_id = admin.start("sleep", ["100"])
        with begin_call(connection, QUERY), begin_call(connection, QUERY):
            wait_until(lambda: server._gate._others.taken() == 2, "both queries to wait")
            with pytest.raises(CallError, match=r"2 other calls .*--unary-threads") as refused:
                admin.query(job_id)
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            [line] = audit_lines(audit_log, "QueryJob")
            assert "code=RESOURCE_EXHAUSTED" in line
            list(admin.stream(job_id, follow=False))
            admin.stop(job_id, grace_s=0)
        wait_until(lambda: server._gate._others.taken() == 0, "the slots to be free")
        assert not admin.query(job_id).running


def test_streams_leave_threads_for_other_calls(
    certificates: Certificates, audit_log: pytest.LogCaptureFixture
) -> None:
    stream_method = "/jobworker.v1.JobWorker/StreamLogs"
    with (
        running_server(certificates, max_streams=2, unary_threads=2) as server,
        client_for(server.address, certificates.admin) as admin,
        channel_for(server.address, certificates.user) as connection,
    ):
        with begin_call(connection, stream_method), begin_call(connection, stream_method):
            wait_until(lambda: server.admission.taken() == 2, "both streams to wait")
            with begin_call(connection, stream_method) as third:
                refused = refusal(third)
                assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "2 streams are open (--max-streams)" in str(refused)
            job_id = admin.start("sleep", ["100"])
            admin.stop(job_id)
            assert not admin.query(job_id).running
        assert "RESOURCE_EXHAUSTED" in audit_lines(audit_log, "StreamLogs")[0]
