"""The settings of HTTP/2: what the server announces and does, seen by a client below gRPC."""

import time
from typing import Any, Final

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, PingReceived, RemoteSettingsChanged
from h2.settings import SettingCodes

from harness.drive.net.http2 import grpc_headers, grpc_message
from harness.drive.net.tls_client import TlsConnection, client_context
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from tests.support.service import Certificates, channel_for, running_server
from worker_service.config import Settings
from worker_service.server import Server

TIMEOUT_S: Final = 10.0
DEFAULTS: Final = Settings()


class Peer:
    """A client of HTTP/2 that keeps every event."""

    def __init__(self, connection: TlsConnection) -> None:
        self._connection = connection
        self._h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self.events: list[Event] = []
        assert self.wait_for(RemoteSettingsChanged)

    def wait_for(self, kind: type[Event], timeout_s: float = TIMEOUT_S) -> bool:
        """Wait for an event; return whether it came."""
        return self._connection.exchange(
            self._h2.data_to_send(),
            self._take,
            lambda: any(isinstance(event, kind) for event in self.events),
            timeout_s,
        )

    def announced(self, code: SettingCodes) -> int:
        """Return a setting of the server."""
        return int(self._h2.remote_settings[code])

    def start_job(self, arguments: list[str]) -> None:
        """Begin a call with a large request."""
        request = pb.StartJobRequest(command_name="true", command_args=arguments)
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, grpc_headers("/jobworker.v1.JobWorker/StartJob"))
        message = grpc_message(request.SerializeToString())
        size = self._h2.max_outbound_frame_size
        for start in range(0, len(message), size):
            self._h2.send_data(stream, message[start : start + size])

    def _take(self, data: bytes) -> bytes:
        self.events += self._h2.receive_data(data)
        return bytes(self._h2.data_to_send())


def connection(server: Server, certificates: Certificates) -> TlsConnection:
    return TlsConnection(
        server.address, client_context(certificates.admin), server_name="localhost"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stream_window": 200_000, "frame_size": 50_000, "max_concurrent_streams": 7},
    ],
    ids=["defaults", "changed"],
)
def test_server_announces_its_window_its_frame_size_and_its_concurrent_calls(
    certificates: Certificates, changes: dict[str, int]
) -> None:
    with (
        running_server(certificates, connection_window=False, **changes) as server,
        connection(server, certificates) as connected,
    ):
        peer = Peer(connected)
        wanted = {
            SettingCodes.INITIAL_WINDOW_SIZE: "stream_window",
            SettingCodes.MAX_FRAME_SIZE: "frame_size",
            SettingCodes.MAX_CONCURRENT_STREAMS: "max_concurrent_streams",
        }
        assert {code: peer.announced(code) for code in wanted} == {
            code: changes.get(name, getattr(DEFAULTS, name)) for code, name in wanted.items()
        }


def test_window_and_frame_size_are_grpcs_own_with_a_growing_window(
    certificates: Certificates,
) -> None:
    with (
        running_server(certificates, stream_window=200_000, frame_size=50_000) as server,
        connection(server, certificates) as connected,
    ):
        peer = Peer(connected)
        assert peer.announced(SettingCodes.INITIAL_WINDOW_SIZE) > 200_000
        assert peer.announced(SettingCodes.MAX_FRAME_SIZE) > 50_000


def test_connection_without_calls_is_closed_after_the_idle_time_and_not_before(
    certificates: Certificates,
) -> None:
    with (
        running_server(certificates, max_connection_idle=1.0) as server,
        connection(server, certificates) as connected,
    ):
        started_s = time.monotonic()
        Peer(connected).wait_for(type("Never", (Event,), {}), TIMEOUT_S)
        assert connected.closed
        assert 0.9 <= time.monotonic() - started_s < TIMEOUT_S


@pytest.mark.parametrize("probes", [True, False])
def test_server_measures_the_bandwidth_delay_product_unless_told_not_to(
    certificates: Certificates, *, probes: bool
) -> None:
    with (
        running_server(certificates, connection_window=probes) as server,
        connection(server, certificates) as connected,
    ):
        peer = Peer(connected)
        peer.start_job(["x" * 60_000])
        assert peer.wait_for(PingReceived, TIMEOUT_S if probes else 1.0) == probes


def test_server_without_reflection_does_not_offer_it(certificates: Certificates) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with (
        running_server(certificates, reflection=False) as server,
        channel_for(server.address, certificates.admin) as channel,
    ):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_crowd_that_begins_at_once_is_answered_or_refused_and_never_cancelled(
    certificates: Certificates,
) -> None:
    """gRPC cancels calls that wait to be taken, from 1000 on by default, at random."""
    with (
        running_server(certificates, max_concurrent_streams=5000) as server,
        channel_for(server.address, certificates.user) as channel,
    ):
        stub = jobworker_pb2_grpc.JobWorkerStub(channel)
        request = pb.QueryJobRequest(job_id="not an id")
        calls = [stub.QueryJob.future(request, timeout=60) for _ in range(3000)]
        codes = {call.code().name for call in calls}
    assert codes <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
