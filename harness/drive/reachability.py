"""Tests once, before any check, whether a server can be judged with the admin's certificate.

A set-up error is reported with the side that refused, the reason that the TLS library gives, and
what to change. On one connection: the address accepts it, both sides finish the TLS 1.3 handshake,
the server speaks HTTP/2 and has the rpcs of a job worker. Without gRPC, the programs of its dialect
start a job and query it.

Leaves out whether it answers them rightly: that is for the checks.
"""

import shlex
import socket
import ssl
from typing import Final

import grpc

from harness.dialects.dialect import CANONICAL, Dialect
from harness.drive.net.http2 import CallEnd, Http2
from harness.drive.net.tls_client import TlsConnection, client_context, host_and_port
from harness.host.cert_files import CertFiles
from harness.host.repository import program
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

ASK_TIMEOUT_S: Final = 20.0
_ANOTHER_SERVER: Final = (
    "--target must be the address of a job worker, and --dialect the way in which it is spoken to"
)


def require_job_worker(
    address: str,
    files: CertFiles,
    dialect: Dialect = CANONICAL,
    timeout_s: float = ASK_TIMEOUT_S,
) -> None:
    """Return if the server at an address can be judged.

    Args:
        address: HOST:PORT.
        files: the admin's certificate, and the authority that the server's must be of.
        dialect: how the server is spoken to; one without gRPC must start and query a job.
        timeout_s: of each step.

    Raises:
        BrokenError: it cannot be judged; says why, and what to change.
    """
    path = dialect.transport.path("QueryJob")
    if not path:
        _require_programs(address, files, dialect, timeout_s)
        return
    try:
        socket.create_connection(host_and_port(address), timeout_s).close()
    except OSError as error:
        reason = error.strerror or f"no answer within {timeout_s:g} s"
        refusal = f"no connection: {reason}; start the server, or correct the address"
    else:
        try:
            refusal = _refusal(address, files, path, timeout_s)
        except OSError as error:  # ssl.SSLError is one
            refusal = _tls_refusal(error, timeout_s, dialect)
    if refusal:
        raise BrokenError(f"the server at {address} cannot be judged: {refusal}")


def _require_programs(address: str, files: CertFiles, dialect: Dialect, timeout_s: float) -> None:
    """Return if the programs of a dialect start a job, and query it."""
    call = "start of `true`"
    try:
        with dialect.connect(address, files) as connection:
            request = pb.StartJobRequest(command_name="true")
            job_id = connection.stub.StartJob(request, timeout=timeout_s).job_id
            call = "query of that job"
            connection.stub.QueryJob(pb.QueryJobRequest(job_id=job_id), timeout=timeout_s)
    except grpc.RpcError as error:
        raise BrokenError(
            f"the job worker cannot be judged: {call}: {error.code().name}: {error.details()}; "
            "start the server, or correct [command] in the dialect's file"
        ) from error


def _refusal(address: str, files: CertFiles, path: str, timeout_s: float) -> str:
    """Return why a server that accepts connections cannot be judged; '' if it can.

    Raises:
        OSError: the TLS handshake failed, or the connection ended.
    """
    with TlsConnection(address, client_context(files), timeout_s=timeout_s) as connection:
        if connection.protocol != "h2":
            return f"it speaks TLS, but not HTTP/2 (ALPN h2); {_ANOTHER_SERVER}"
        outcome = Http2(connection).call(path, b"", timeout_s)
        if outcome.end is CallEnd.CLOSED:
            raise connection.failure or ConnectionResetError
    if outcome.is_status("UNIMPLEMENTED", "HTTP 404"):
        return f"it has no rpc {path[1:]} ({outcome.detail}); {_ANOTHER_SERVER}"
    if outcome.end is CallEnd.UNANSWERED:
        return f"it answered no call within {timeout_s:g} s; {_ANOTHER_SERVER}"
    return ""


def _certificates(dialect: Dialect) -> str:
    """Return with which certificates the server must be started."""
    words = [*program(), "identities", "DIR", "--name", "HOST"]
    words += ["--scheme", dialect.source] if dialect is not CANONICAL else []
    return (
        "start the server with the ca.crt, server.crt and server.key of the directory that "
        f"`{shlex.join(words)}` made, and give --identities DIR here"
    )


def _tls_refusal(error: OSError, timeout_s: float, dialect: Dialect) -> str:
    """Return which side refused a TLS handshake, why in the library's words, and what to change."""
    certificates = _certificates(dialect)
    said = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or "closed"
    said = said.replace("_", " ").lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message
        return f"this side refused the server's certificate: {why}; {certificates}"
    if "alert protocol version" in said:
        return f"the server refused TLS 1.3: {said}; it must speak TLS 1.3"
    if "alert" in said:
        return f"the server refused this side's certificate: {said}; {certificates}"
    if "wrong version number" in said:
        return f"it does not speak TLS: {said}; start it with TLS, or correct the address"
    if isinstance(error, TimeoutError):
        silence = f"it accepted the connection and did not answer within {timeout_s:g} s"
        return f"{silence}; {_ANOTHER_SERVER}"
    return (
        f"the server ended the connection without a reason ({said}): it does not speak TLS, or "
        f"does not trust this side's certificate; {certificates}"
    )
