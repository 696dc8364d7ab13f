"""The proxy injects the given network fault, and nothing else."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.drive.fault_proxy import FaultProxy, NetworkFault

DATA = bytes(range(256)) * 400


@contextmanager
def echo_server() -> Iterator[str]:
    """Send back what is received."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stopped = threading.Event()

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(65_536):
                        connection.sendall(data)
                except OSError:
                    return

        def accept() -> None:
            threads = []
            while not stopped.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(None)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()
            for thread in threads:
                thread.join()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopped.set()
            thread.join()


def talk(address: str, timeout_s: float = 10.0) -> tuple[bytes, str]:
    """Send the data, return what comes back and how it ended."""
    host, _, port = address.rpartition(":")
    received = bytearray()
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        sender = threading.Thread(target=_send, args=(connection,))
        sender.start()
        try:
            while len(received) < len(DATA):
                piece = connection.recv(65_536)
                if not piece:
                    return bytes(received), "end"
                received += piece
        except ConnectionResetError:
            return bytes(received), "reset"
        except TimeoutError:
            return bytes(received), "silence"
        finally:
            connection.close()
            sender.join()
    return bytes(received), "all"


def _send(connection: socket.socket) -> None:
    try:
        connection.sendall(DATA)
    except OSError:
        return


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (NetworkFault(), "all"),
        (NetworkFault(slice_bytes=1000), "all"),
        (NetworkFault(latency_s=0.01), "all"),
        (NetworkFault(bytes_per_s=500_000), "all"),
        (NetworkFault(reset_after_bytes=50_000), "reset"),
        (NetworkFault(half_close_after_bytes=50_000), "end"),
    ],
)
def test_a_fault_ends_the_first_connection_and_the_next_one_passes(
    fault: NetworkFault, end: str
) -> None:
    with echo_server() as server, FaultProxy(server, fault) as proxy:
        received, how = talk(proxy.address)
        assert how == end
        assert DATA.startswith(received)
        if how != "all":
            assert talk(proxy.address) == (DATA, "all")


def test_client_half_close_ends_the_clients_stream_at_the_server() -> None:
    fault = NetworkFault(client_half_close_after_bytes=50_000)
    with echo_server() as server, FaultProxy(server, fault) as proxy:
        host, _, port = proxy.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(DATA[:60_000])
            received = b""
            while piece := connection.recv(65_536):  # to the end, which this side has not sent
                received += piece
        assert DATA[:60_000].startswith(received)
        assert len(received) >= 50_000
        assert talk(proxy.address) == (DATA, "all")


def test_a_blackhole_passes_nothing_and_closes_nothing() -> None:
    fault = NetworkFault(blackhole_after_bytes=50_000)
    with echo_server() as server, FaultProxy(server, fault) as proxy:
        received, how = talk(proxy.address, timeout_s=0.5)
        assert how == "silence"
        assert DATA.startswith(received)


def test_a_proxy_can_become_a_blackhole() -> None:
    with echo_server() as server, FaultProxy(server, NetworkFault()) as proxy:
        assert talk(proxy.address) == (DATA, "all")
        proxy.blackhole()
        assert talk(proxy.address, timeout_s=0.5) == (b"", "silence")


def test_a_bandwidth_is_kept() -> None:
    with echo_server() as server, FaultProxy(server, NetworkFault(bytes_per_s=200_000)) as proxy:
        started_s = time.monotonic()
        assert talk(proxy.address)[1] == "all"
        assert time.monotonic() - started_s > 0.8 * len(DATA) / 200_000
