"""What this machine can carry, measured in the same run: raw TCP, Python's ssl, plain grpcio.

Each sends 1 MiB pieces over loopback between two processes, in one stream. Both encrypted ones use
TLS 1.3 and require the client's certificate, as a job worker does. Python's ssl module is slower
than grpcio's BoringSSL: it limits what uses that module, not TLS. A server's rate is shown as a
share of plain grpcio's: compare the shares, since absolute rates vary with the machine.
"""

import argparse
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from harness.dialects.channel import open_channel
from harness.host.cert_files import CertFiles
from harness.host.piped_program import PipedProgram
from harness.record.verdict import BrokenError
from loadtests.results import PLAIN

MIB: Final = 1024 * 1024
PLAIN_SERVICE: Final = "plain.Plain"
PYTHON_SSL: Final = "Python ssl, one stream"
START_TIMEOUT_S: Final = 60.0
_PIECE: Final = bytes(range(256)) * 4096


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """What this machine can carry.

    Attributes:
        mb_per_s: rates by name.
        plain_cpu_s_per_gb: processor time of the plain grpcio server, per 10^9 bytes received.
        plain_rss_bytes: its resident memory.
    """

    mb_per_s: dict[str, float]
    plain_cpu_s_per_gb: float
    plain_rss_bytes: int

    def facts(self) -> dict[str, str]:
        """Return what else is known of plain grpcio, to show beside a run."""
        memory_mib = self.plain_rss_bytes / MIB
        text = f"server: {self.plain_cpu_s_per_gb:.2f} CPU s/GB, {memory_mib:.0f} MiB resident"
        return {PLAIN: text}


@contextmanager
def _serving(kind: str, files: CertFiles) -> Iterator[tuple[str, psutil.Process]]:
    """Run one of the servers below; yield its address and its process."""
    command = [sys.executable, "-m", "loadtests.limits", kind]
    command += [str(files.ca), str(files.cert), str(files.key)]
    with PipedProgram(command) as server:
        line = server.first_line(START_TIMEOUT_S)
        if not line.startswith("listening on "):
            raise BrokenError(f"the server that measures {kind} did not start; see above")
        yield line.split()[-1], psutil.Process(server.pid)


def _socket_rate(address: str, context: ssl.SSLContext | None, seconds: float) -> float:
    host, _, port = address.rpartition(":")
    buffer = bytearray(MIB)
    with socket.create_connection((host, int(port)), timeout=START_TIMEOUT_S) as raw:
        connection = raw if context is None else context.wrap_socket(raw, server_hostname=host)
        with connection:
            connection.recv_into(buffer)
            return _rate(lambda: connection.recv_into(buffer), seconds)


def _grpc_rate(address: str, files: CertFiles, seconds: float) -> float:
    with open_channel(address, files) as channel:
        method: Any = channel.unary_stream(f"/{PLAIN_SERVICE}/Get")
        call = method(b"")
        next(call)
        try:
            return _rate(lambda: len(next(call)), seconds)
        finally:
            call.cancel()


def _rate(receive: Callable[[], int], seconds: float) -> float:
    """Return the MB/s of receiving repeatedly for some seconds."""
    begun_s = now_s = time.perf_counter()
    received = 0
    while now_s - begun_s < seconds:
        received += receive()
        now_s = time.perf_counter()
    return received / 1e6 / (now_s - begun_s)


def _client_context(files: CertFiles) -> ssl.SSLContext:
    return _tls_1_3(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def _tls_1_3(context: ssl.SSLContext, files: CertFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.cert, files.key)
    return context


def measure(server: CertFiles, client: CertFiles, seconds: float = 1.0) -> MachineLimits:
    """Return the limits.

    Raises:
        BrokenError: one of them could not be measured.
    """
    rates = {}
    try:
        with _serving("tcp", server) as (address, _):
            rates["raw TCP"] = _socket_rate(address, None, seconds)
        with _serving("tls", server) as (address, _):
            rates[PYTHON_SSL] = _socket_rate(address, _client_context(client), seconds)
        with _serving("grpc", server) as (address, process):
            before_s = _cpu_s(process)
            rates[PLAIN] = _grpc_rate(address, client, seconds)
            cpu_s = _cpu_s(process) - before_s
            rss_bytes = process.memory_info().rss
    except (OSError, grpc.RpcError, StopIteration, psutil.NoSuchProcess) as error:
        raise BrokenError(f"the limits of this machine could not be measured: {error}") from error
    return MachineLimits(rates, cpu_s / (rates[PLAIN] * seconds / 1e3), rss_bytes)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def serve_sockets(files: CertFiles, *, tls: bool) -> None:
    """Send pieces to every client that connects, one client at a time."""
    context = _tls_1_3(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _announce(listener.getsockname()[1])
        while True:
            raw, _ = listener.accept()
            try:
                with context.wrap_socket(raw, server_side=True) if tls else raw as connection:
                    while True:
                        connection.sendall(_PIECE)
            except OSError:
                continue  # the client disconnected, as each one does


def serve_grpc(files: CertFiles) -> None:
    """Serve pieces over plain grpcio: its highest rate with 1 MiB messages."""
    handlers: dict[str, Any] = {
        "Get": grpc.unary_stream_rpc_method_handler(lambda _request, _context: repeat(_PIECE))
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(PLAIN_SERVICE, handlers),)
    )
    port = listen(server, "127.0.0.1:0", files)
    server.start()
    _announce(port)
    server.wait_for_termination()


def listen(server: grpc.Server, address: str, files: CertFiles) -> int:
    """Let a server accept clients with a certificate; return its port."""
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())],
        files.ca.read_bytes(),
        require_client_auth=True,
    )
    port: int = server.add_secure_port(address, credentials)
    return port


def _announce(port: int) -> None:
    print(f"listening on 127.0.0.1:{port}", flush=True)  # noqa: T201 - to the process that started it


def main() -> None:
    """Run one of the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("kind", choices=["tcp", "tls", "grpc"])
    for name in ("ca", "cert", "key"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    files = CertFiles(options.ca, options.cert, options.key)
    if options.kind == "grpc":
        serve_grpc(files)
    serve_sockets(files, tls=options.kind == "tls")


if __name__ == "__main__":
    main()
