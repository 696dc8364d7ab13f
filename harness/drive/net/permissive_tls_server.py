"""A TLS server that accepts what none should: the positive control of the probes.

A probe that finds nothing accepted may be one that cannot see. So each is first held against this
server, which speaks every version that this host's OpenSSL has, with every cipher, with ALPN or
without, and asks nobody for a certificate.
"""

import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.drive.identities import ADMIN, Authority, CertFiles, Wanted, server_wanted

_STEP_S: Final = 0.2
_CONNECTION_S: Final = 3.0
_AT_ONCE: Final = 16  # a scanner leaves connections open
_AUTHORITY_NUMBER: Final = 9  # its own key: nobody else's certificates are good here


@dataclass(frozen=True, slots=True)
class LaxServer:
    """Where it listens, and a client's certificate that goes with its own."""

    address: str
    client: CertFiles


@contextmanager
def lax_server() -> Iterator[LaxServer]:
    """Run it for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="jobworker-lax-") as name:
        directory = Path(name)
        authority = Authority("lax CA", _AUTHORITY_NUMBER)
        files = authority.write(directory, "server", server_wanted())
        client = authority.write_pair(directory, "client", Wanted(roles=(ADMIN,)))
        stopped = threading.Event()
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lax") as pool,
        ):
            listener.settimeout(_STEP_S)
            for _ in range(_AT_ONCE):
                pool.submit(_serve, listener, _context(files), stopped)
            try:
                yield LaxServer(f"127.0.0.1:{listener.getsockname()[1]}", client)
            finally:
                stopped.set()


def _context(files: CertFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(files.cert, files.key)
    return context


def _serve(listener: socket.socket, context: ssl.SSLContext, stopped: threading.Event) -> None:
    """Take connections, finish their handshake, and wait until they have gone."""
    while not stopped.is_set():
        with contextlib.suppress(OSError):  # a client that gives up, or nobody came for a while
            raw, _ = listener.accept()
            raw.settimeout(_CONNECTION_S)
            with context.wrap_socket(raw, server_side=True) as connection:
                while connection.recv(4096):
                    pass
