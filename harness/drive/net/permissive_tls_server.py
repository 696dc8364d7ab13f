"""A TLS server that accepts what no server should: the positive control of the probes.

A probe that reports "refused" may be a probe that cannot detect acceptance. So each one first runs
against this server, which speaks every version and cipher of this host's OpenSSL, with ALPN or
without, and requires no client certificate.
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

from harness.drive.certificates import ADMIN, Authority, CertificateSpec, server_spec
from harness.host.cert_files import CertFiles

_STEP_S: Final = 0.2
_CONNECTION_S: Final = 3.0
_AT_ONCE: Final = 16  # a scanner leaves connections open
_AUTHORITY_NUMBER: Final = 9  # its own key: no other certificate is valid here


@dataclass(frozen=True, slots=True)
class PermissiveTlsServer:
    """Its address, and a client certificate of the same authority."""

    address: str
    client: CertFiles


@contextmanager
def permissive_tls_server() -> Iterator[PermissiveTlsServer]:
    """Run the server for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="jobworker-permissive-") as name:
        directory = Path(name)
        authority = Authority("permissive CA", _AUTHORITY_NUMBER)
        files = authority.write(directory, "server", server_spec())
        client = authority.write_pair(directory, "client", CertificateSpec(roles=(ADMIN,)))
        stopped = threading.Event()
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="permissive-tls") as pool,
        ):
            listener.settimeout(_STEP_S)
            for _ in range(_AT_ONCE):
                pool.submit(_serve, listener, _context(files), stopped)
            try:
                yield PermissiveTlsServer(f"127.0.0.1:{listener.getsockname()[1]}", client)
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
    """Accept connections, finish each handshake, and wait until the client disconnects."""
    while not stopped.is_set():
        with contextlib.suppress(OSError):  # a client gave up, or none connected for a step
            raw, _ = listener.accept()
            raw.settimeout(_CONNECTION_S)
            with context.wrap_socket(raw, server_side=True) as connection:
                while connection.recv(4096):
                    pass
