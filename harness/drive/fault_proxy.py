"""A TCP proxy on loopback that injects network faults: delays, cuts, half-closes, blackholes.

Threads: one accepts, two pump each connection. Shared state and its guard: `_sockets`, `_threads`
under `_lock`; `_stopped` and `_blackhole` are events; `_silenced` is one reference, written once.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

_PIECE_BYTES: Final = 65_536
_END_TIMEOUT_S: Final = 10.0
_ACCEPT_STEP_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class NetworkFault:
    """A fault in the direction from server to client.

    The `..._after_bytes` faults count what was passed on; one happens once, to the first connection
    that gets there.

    Attributes:
        latency_s: delay of each piece.
        bytes_per_s: bandwidth; None: unlimited.
        slice_bytes: pieces have at most this size.
        reset_after_bytes: then the client's connection is reset.
        half_close_after_bytes: then the client reads the end of the server's stream.
        client_half_close_after_bytes: then the server reads the end of the client's stream; what
            the server still sends is passed on.
        blackhole_after_bytes: then nothing passes any longer, and neither side is notified.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    slice_bytes: int = _PIECE_BYTES
    reset_after_bytes: int | None = None
    half_close_after_bytes: int | None = None
    client_half_close_after_bytes: int | None = None
    blackhole_after_bytes: int | None = None


class FaultProxy:
    """Forwards connections to a server, with a fault; a context manager.

    Args:
        server: HOST:PORT.
        fault: see `NetworkFault`.
        port: to listen on, such as that of a proxy that has ended; 0 picks one.
    """

    def __init__(self, server: str, fault: NetworkFault, port: int = 0) -> None:
        host, _, server_port = server.rpartition(":")
        self._server = (host.strip("[]"), int(server_port))
        self._fault = fault
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._blackhole = threading.Event()
        self._cut = threading.Event()
        # The connection to the server whose client has been half-closed.
        self._silenced: socket.socket | None = None
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(_ACCEPT_STEP_S)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # The thread that accepts must end first: it may still add a socket to the list.
        self._threads[0].join(_END_TIMEOUT_S)
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(_END_TIMEOUT_S)
        for each in (*sockets, self._listener):
            each.close()

    @property
    def injected(self) -> bool:
        """Whether the fault that is due after a number of bytes has happened."""
        return self._cut.is_set()

    def blackhole(self) -> None:
        """From now on pass nothing in either direction, without closing any connection."""
        self._blackhole.set()

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="proxy", daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = socket.create_connection(self._server, timeout=_END_TIMEOUT_S)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            client.settimeout(None)
            with self._lock:
                self._sockets += [client, server]
            self._spawn(self._pump_up, client, server)
            self._spawn(self._pump_down, server, client)

    def _pump_up(self, client: socket.socket, server: socket.socket) -> None:
        """Forward what the client sends, unchanged."""
        try:
            while data := client.recv(_PIECE_BYTES):
                if self._wait_if_blackhole():
                    return
                if server is not self._silenced:
                    server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            if server is not self._silenced:
                _hang_up(server)

    def _pump_down(self, server: socket.socket, client: socket.socket) -> None:
        """Forward what the server sends, with the fault."""
        passed_bytes = 0
        try:
            while data := server.recv(self._fault.slice_bytes):
                self._delay(len(data))
                if self._wait_if_blackhole():
                    return
                client.sendall(data)
                passed_bytes += len(data)
                if self._cut_if_due(passed_bytes, server, client):
                    return
            client.shutdown(socket.SHUT_WR)
        except OSError:
            _hang_up(client)

    def _wait_if_blackhole(self) -> bool:
        """Return whether the proxy is a blackhole, and if so not before the proxy's end."""
        if not self._blackhole.is_set():
            return False
        self._stopped.wait()
        return True

    def _delay(self, size: int) -> None:
        seconds = self._fault.latency_s
        if self._fault.bytes_per_s is not None:
            seconds += size / self._fault.bytes_per_s
        if seconds:
            self._stopped.wait(seconds)

    def _cut_if_due(self, passed_bytes: int, server: socket.socket, client: socket.socket) -> bool:
        """Inject the fault that is due after so many bytes; return whether the pump must end."""
        fault = self._fault
        if self._cut.is_set():
            return False
        if fault.reset_after_bytes is not None and passed_bytes >= fault.reset_after_bytes:
            self._cut.set()
            # With a linger time of 0, close() sends RST instead of FIN: socket(7).
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Wakes the other pump: the RST is sent only once no thread uses the socket.
            client.shutdown(socket.SHUT_RD)
            client.close()
            return True
        if (
            fault.half_close_after_bytes is not None
            and passed_bytes >= fault.half_close_after_bytes
        ):
            self._cut.set()
            client.shutdown(socket.SHUT_WR)
            return True
        if (
            fault.client_half_close_after_bytes is not None
            and passed_bytes >= fault.client_half_close_after_bytes
        ):
            self._cut.set()
            self._silenced = server
            server.shutdown(socket.SHUT_WR)
            return False
        if fault.blackhole_after_bytes is not None and passed_bytes >= fault.blackhole_after_bytes:
            self._cut.set()
            self._stopped.wait()
            return True
        return False


def _hang_up(other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)
