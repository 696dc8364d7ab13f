"""TLS connections of any version, with any ALPN protocol, with or without a session ticket.

Python's own TLS (OpenSSL), so that no result rests on gRPC on both sides. A connection reads while
it writes, as a flood needs it: a peer that is not read from stops reading.

Leaves out: early data, which Python's TLS cannot send.
"""

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from harness.host.cert_files import CertFiles
from harness.host.clock import Deadline

CONNECT_TIMEOUT_S: Final = 20.0
_PIECE_BYTES: Final = 65_536


def client_context(
    files: CertFiles | None,
    *,
    ca: Path | None = None,
    version: ssl.TLSVersion | None = None,
    protocols: Sequence[str] = ("h2",),
) -> ssl.SSLContext:
    """Return a client's TLS settings.

    Args:
        files: the client's certificate, and the authority to trust; None shows no certificate.
        ca: another authority to trust; with neither, any server is trusted.
        version: the only version to offer; None: TLS 1.3.
        protocols: for ALPN; without any, no ALPN is sent.
    """
    trusted = ca or (files.ca if files is not None else None)
    context = ssl.create_default_context(cafile=None if trusted is None else str(trusted))
    if trusted is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # Not stricter than other TLS libraries are about an authority's own extensions.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    # The lowest security level: it must be the server that refuses, not this library's policy.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version or ssl.TLSVersion.TLSv1_3
    return context


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class TlsConnection:
    """One connection; a context manager. One thread at a time.

    Attributes:
        version: of TLS.
        protocol: negotiated by ALPN; empty: none.
        closed: how the other side ended it; empty while it is open.
        failure: the exception with which it ended; None: it is open, or ended in order.

    Raises:
        OSError: the connection or the handshake failed; an ssl.SSLError is one of those.
    """

    def __init__(
        self,
        address: str,
        context: ssl.SSLContext,
        *,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        host, port = host_and_port(address)
        raw = socket.create_connection((host, port), timeout=timeout_s)
        try:
            self._socket = context.wrap_socket(
                raw, server_hostname=server_name or host, session=session
            )
        except BaseException:
            raw.close()
            raise
        self._socket.setblocking(False)
        self.version = str(self._socket.version())
        self.protocol = self._socket.selected_alpn_protocol() or ""
        self.closed = ""
        self.failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket without a TLS close_notify."""
        self._socket.close()

    @property
    def session(self) -> ssl.SSLSession | None:
        """The newest session ticket from the server: it comes after the handshake."""
        return self._socket.session

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed a session."""
        return bool(self._socket.session_reused)

    def exchange(
        self,
        data: bytes,
        take: Callable[[bytes], bytes],
        done: Callable[[], bool],
        timeout_s: float,
    ) -> bool:
        """Send all of `data` and read meanwhile, until `done`; return whether that was reached.

        Args:
            data: to send.
            take: is given received bytes as they come, and returns what to answer.
            done: evaluated whenever bytes were received, and once everything is sent.
            timeout_s: bound.
        """
        deadline = Deadline(timeout_s)
        rest = memoryview(data)
        while not self.closed and not deadline.passed():
            try:
                came = self._read()
                if came and (answer := take(came)):
                    rest = memoryview(bytes(rest) + answer)
                sent = self._write(rest)
            except OSError as error:  # ssl.SSLError is one
                self.closed, self.failure = type(error).__name__, error
                break
            rest = rest[sent:]
            if not rest and done():
                return True
            if not came and not sent and not self.closed:
                self._wait(deadline.left_s(), writing=bool(rest))
        return not rest and done()

    def _read(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            data = self._socket.recv(_PIECE_BYTES)
            self.closed = "" if data else "end"
            return data
        return b""

    def _write(self, rest: memoryview) -> int:
        if not rest or self.closed:
            return 0
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return self._socket.send(rest[:_PIECE_BYTES])
        return 0

    def _wait(self, timeout_s: float, *, writing: bool) -> None:
        # Not `select`: a process with many connections has descriptors beyond what that takes.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if writing else 0))
        poll.poll(timeout_s * 1000)


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """How a TLS handshake ended.

    Attributes:
        version: the negotiated one; empty if the handshake failed.
        error: the name of the exception; empty if it did not fail.
    """

    version: str
    error: str = ""

    def __str__(self) -> str:
        return f"refused: {self.error}" if self.error else self.version


def handshake(
    address: str, context: ssl.SSLContext, server_name: str | None = None
) -> HandshakeResult:
    """Connect, finish the handshake and close."""
    try:
        with TlsConnection(address, context, server_name=server_name) as connection:
            return HandshakeResult(connection.version)
    except OSError as error:
        return HandshakeResult("", type(error).__name__)
