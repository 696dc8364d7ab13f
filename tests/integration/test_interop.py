"""The original's client with our server, our client with the original's server.

The original's messages are made from its own .proto, so that they have none of our fields.
"""

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import grpc_tools
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

from tests.support.service import Certificates, client_for
from worker_service.client import CallError, Client, Output, Start, StreamUnsupportedError
from worker_service.server import Server
from worker_service.tls import CertificateFiles, channel_credentials

ORIGINAL = Path(__file__).parents[1] / "proto" / "original"
SERVICE = "/jobworker.v1.JobWorker/"
TIMEOUT_S = 10.0
JOB_ID = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"
LOG = b"2024-08-26T14:35:21Z [INFO] Server started on port 8080\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The original's message classes, in a pool of their own."""
    descriptors = tmp_path_factory.mktemp("original") / "descriptors"
    protoc.main(
        [
            "protoc", f"-I{ORIGINAL}", f"--descriptor_set_out={descriptors}",
            "jobworker/v1/jobworker.proto",
        ]
    )  # fmt: skip
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = [f"jobworker.v1.{message.name}" for message in files.file[0].message_type]
    return {
        name.rpartition(".")[2]: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in names
    }


def test_original_messages_have_only_the_original_fields(original: dict[str, Any]) -> None:
    fields = {name: [f.name for f in each.DESCRIPTOR.fields] for name, each in original.items()}
    assert fields["StreamLogsResponse"] == ["message"]
    assert fields["QueryJobResponse"] == ["status", "pid", "exit_code", "signal", "message"]


def test_original_client_works_with_our_server(
    original: dict[str, Any], server: Server, certificates: Certificates
) -> None:
    files = certificates.admin
    credentials = channel_credentials(CertificateFiles(files.ca, files.cert, files.key))
    with grpc.secure_channel(server.address, credentials) as channel:

        def call(rpc: str, **fields: Any) -> Any:
            return channel.unary_unary(
                SERVICE + rpc,
                original[rpc + "Request"].SerializeToString,
                original[rpc + "Response"].FromString,
            )(original[rpc + "Request"](**fields), timeout=20)

        job_id = call("StartJob", command_name="sh", command_args=["-c", "echo hi; exit 5"]).job_id
        stream = channel.unary_stream(
            SERVICE + "StreamLogs",
            original["StreamLogsRequest"].SerializeToString,
            original["StreamLogsResponse"].FromString,
        )
        messages = list(stream(original["StreamLogsRequest"](job_id=job_id), timeout=20))
        assert b"".join(message.message for message in messages) == b"hi\n"
        job = call("QueryJob", job_id=job_id)
        assert (job.status, job.exit_code, job.signal) == ("exited", 5, 0)
        assert call("StopJob", job_id=job_id).success


@contextmanager
def original_server(original: dict[str, Any], certificates: Certificates) -> Iterator[str]:
    """Run a server with only the original's fields: it ignores ours."""

    def unary(rpc: str, **answer: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: original[rpc + "Response"](**answer),
            request_deserializer=original[rpc + "Request"].FromString,
            response_serializer=original[rpc + "Response"].SerializeToString,
        )

    def stream(_request: object, _context: object) -> Iterator[Any]:
        for start in range(0, len(LOG), 10):
            yield original["StreamLogsResponse"](message=LOG[start : start + 10])

    handlers = {
        "StartJob": unary("StartJob", job_id=JOB_ID, message="ok"),
        "StopJob": unary("StopJob", success=True, message="ok"),
        "QueryJob": unary("QueryJob", status="exited", pid=123, exit_code=5),
        "StreamLogs": grpc.unary_stream_rpc_method_handler(
            stream,
            request_deserializer=original["StreamLogsRequest"].FromString,
            response_serializer=original["StreamLogsResponse"].SerializeToString,
        ),
    }
    files = certificates.server
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())], files.ca.read_bytes(), True
    )
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        handler = grpc.method_handlers_generic_handler("jobworker.v1.JobWorker", handlers)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@pytest.fixture
def client(original: dict[str, Any], certificates: Certificates) -> Iterator[Client]:
    with (
        original_server(original, certificates) as address,
        client_for(address, certificates.admin) as connected,
    ):
        yield connected


def test_our_client_works_with_the_original_server(client: Client) -> None:
    assert client.start("sort", ["largefile.txt"]) == JOB_ID
    assert client.stop(JOB_ID) == "ok"
    job = client.query(JOB_ID)
    assert (job.status, job.pid, job.exit_code) == ("exited", 123, 5)
    assert (job.limits, job.usage, job.started_at, job.log_size_bytes) == (None, None, None, None)
    outputs = list(client.stream(JOB_ID))
    assert b"".join(output.data for output in outputs) == LOG
    assert [output.offset for output in outputs] == list(range(0, len(LOG), 10))


def test_our_client_skips_to_an_offset_that_the_server_ignored(client: Client) -> None:
    assert next(client.stream(JOB_ID, Start(from_offset=13))) == Output(13, LOG[13:20])
    resumed = client.stream(JOB_ID, Start(from_offset=40))
    assert b"".join(output.data for output in resumed) == LOG[40:]


@pytest.mark.parametrize(
    ("start", "follow"),
    [(Start(tail_lines=1), True), (Start(tail_bytes=1), True), (Start(), False)],
)
def test_our_client_rejects_what_the_original_server_does_not_support(
    client: Client, start: Start, *, follow: bool
) -> None:
    with pytest.raises(StreamUnsupportedError, match="the original's API"):
        list(client.stream(JOB_ID, start, follow=follow))


@contextmanager
def tls_server(
    certificates: Certificates, version: ssl.TLSVersion
) -> Iterator[tuple[str, Queue[str]]]:
    """Run a server of one TLS version; yield its address and the version of each handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificates.server.cert, certificates.server.key)
    handshakes: Queue[str] = Queue()

    def serve() -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                raw, _ = listener.accept()
                raw.settimeout(TIMEOUT_S)
                try:
                    with context.wrap_socket(raw, server_side=True) as connection:
                        handshakes.put(str(connection.version()))
                except ssl.SSLError:
                    handshakes.put("none")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", handshakes
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends `accept`, which `close` does not
            serving.result(TIMEOUT_S)


@pytest.mark.parametrize(
    ("version", "expected"),
    [(ssl.TLSVersion.TLSv1_2, "none"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
def test_our_client_speaks_only_tls_13(
    version: ssl.TLSVersion, expected: str, certificates: Certificates
) -> None:
    # Both servers close the connection; only the one of TLS 1.3 has completed the handshake.
    with (
        tls_server(certificates, version) as (address, handshakes),
        client_for(address, certificates.admin, timeout_s=3) as client,
    ):
        with pytest.raises(CallError, match="refused the TLS connection"):
            client.query(JOB_ID)
        assert handshakes.get(timeout=TIMEOUT_S) == expected


def test_committed_code_equals_the_generated_code(tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "proto"
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"-I{root}",
        f"-I{well_known}",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
    ]
    arguments += [f"--grpc_python_out={tmp_path}", "jobworker/v1/jobworker.proto"]
    assert protoc.main(arguments) == 0
    for name in ("jobworker_pb2.py", "jobworker_pb2.pyi", "jobworker_pb2_grpc.py"):
        generated = (tmp_path / "jobworker" / "v1" / name).read_text()
        assert (root / "jobworker" / "v1" / name).read_text() == generated, "run `make proto`"
