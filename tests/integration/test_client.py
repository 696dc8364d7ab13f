"""Deadlines of the client library: each call ends, and says what the server does."""

import signal
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from jobworker.v1 import jobworker_pb2 as pb
from tests.support.service import Certificates, client_for, launched_server
from tests.support.stand_in_server import JOB_ID, StandIn, stand_in_server
from worker_service.client import CallError, Client, ClientOptions, StopUnfinishedError
from worker_service.tls import CertificateFiles

# Of a call that must end within 1.3 s; a busy machine takes longer.
ENDS_WITHIN_S = 10.0


@pytest.fixture
def answers() -> Iterator[StandIn]:
    stopping = threading.Event()
    yield StandIn(job=pb.QueryJobResponse(status="running"), stopping=stopping)
    stopping.set()


@pytest.fixture
def client(answers: StandIn, certificates: Certificates) -> Iterator[Client]:
    with (
        stand_in_server(certificates, answers) as address,
        client_for(address, certificates.admin, timeout_s=1.0) as connected,
    ):
        connected.query(JOB_ID)  # connects
        try:
            yield connected
        finally:
            assert answers.stopping is not None
            answers.stopping.set()


def test_stop_that_outlasts_its_deadline_goes_on_and_says_so(client: Client) -> None:
    started_s = time.monotonic()
    with pytest.raises(StopUnfinishedError, match=r"within 1\.1 s; the server continues to stop"):
        client.stop(JOB_ID, grace_s=0.1)
    assert time.monotonic() - started_s < ENDS_WITHIN_S


def test_stop_of_a_job_that_ended_at_the_deadline_succeeds(
    answers: StandIn, client: Client
) -> None:
    answers.job = pb.QueryJobResponse(status="signaled", message="it ended")
    assert client.stop(JOB_ID, grace_s=0.1) == "it ended"


def test_stop_without_any_answer_is_a_deadline_exceeded(answers: StandIn, client: Client) -> None:
    answers.error = "gone"
    with pytest.raises(CallError) as raised:
        client.stop(JOB_ID, grace_s=0.1)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_handshake_without_an_answer_ends_at_the_timeout(certificates: Certificates) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        client_for(
            f"127.0.0.1:{silent.getsockname()[1]}", certificates.admin, timeout_s=1.0
        ) as client,
    ):
        started_s = time.monotonic()
        with pytest.raises(CallError) as raised:
            client.stop(JOB_ID)
        assert raised.value.code is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - started_s < ENDS_WITHIN_S


def test_dead_server_is_noticed_after_keepalive_time_and_timeout(
    certificates: Certificates,
) -> None:
    admin = certificates.admin
    with launched_server(certificates) as (server, address):
        options = ClientOptions(
            address,
            CertificateFiles(admin.ca, admin.cert, admin.key),
            keepalive_time_s=10.0,  # gRPC's minimum
            keepalive_timeout_s=3.0,
        )
        with Client(options) as client:
            job_id = client.start("sh", ["-c", "echo ready; exec sleep 100"])
            outputs = client.stream(job_id)
            assert next(outputs).data == b"ready\n"
            server.send_signal(signal.SIGSTOP)
            started_s = time.monotonic()
            try:
                with pytest.raises(CallError):
                    next(outputs)
            finally:
                server.send_signal(signal.SIGCONT)
            assert time.monotonic() - started_s < 40  # 13 s; without the ping timeout 70 s
            client.stop(job_id, grace_s=0)
