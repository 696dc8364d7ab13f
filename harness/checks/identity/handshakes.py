"""Connections: what TLS, ALPN and the server's own certificate must admit and refuse."""

import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from harness.checks.check import Check, Need, Stage
from harness.checks.raw_calls import (
    CALL_TIMEOUT_S,
    admission_query,
    call_anew,
    is_admitted,
)
from harness.dialects.channel import NO_PROXY, open_channel
from harness.dialects.dialect import RawCall
from harness.drive.net.http2 import CallEnd, CallOutcome
from harness.drive.net.permissive_tls_server import permissive_tls_server
from harness.drive.net.tls_client import HandshakeResult, client_context, handshake
from harness.drive.receiver import outcome_of
from harness.host.cert_files import CertFiles
from harness.judge.promises import assumed, equal, holds, one_of
from harness.record.foundations import version_refused
from harness.record.history import History, Observation
from harness.record.terms import REFUSING, terms_of
from harness.record.verdict import Finding, Verdict

STRANGERS_NAME: Final = "identity.strangers"
OTHER_NAME: Final = "another.example"
UNPROVEN: Final = HandshakeResult("", "SSLCertVerificationError")
# ALPN offers beside HTTP/2's; a server closes such a connection (RFC 9113, 3.3).
OTHER_PROTOCOLS: Final = {"no ALPN": (), "HTTP/1.1 by ALPN": ("http/1.1",)}
CLOSING: Final = frozenset({CallEnd.UNCONNECTED, CallEnd.CLOSED, CallEnd.GOAWAY})


@dataclass(frozen=True, slots=True)
class ConnectionAttempts(Observation):
    """Connections that lack something, and the controls that lack nothing.

    Attributes:
        admin_status: of an admin's query by gRPC: the control.
        lacking: the status of the same query without a certificate, and without TLS.
        http2_outcome: of an admin's query by a raw connection: the control.
        by_protocol: the same with other ALPN offers.
        other_name: the client's handshake, when it expects a server of another name.
        other_authority: the client's handshake, when it trusts another authority.
    """

    admin_status: str
    lacking: Mapping[str, str]
    http2_outcome: CallOutcome
    by_protocol: Mapping[str, CallOutcome]
    other_name: HandshakeResult
    other_authority: HandshakeResult


def run_strangers(stage: Stage) -> None:
    """Connect without a certificate, TLS or HTTP/2; and as a client that expects another server."""
    address, files = stage.server.address, stage.target.identities.files("admin")
    query = admission_query(stage)
    without_certificate = grpc.ssl_channel_credentials(files.ca.read_bytes())
    ways: dict[str, Callable[[], grpc.Channel]] = {
        "certificate": lambda: grpc.secure_channel(
            address, without_certificate, [("grpc.use_local_subchannel_pool", 1), NO_PROXY]
        ),
        "TLS": lambda: grpc.insecure_channel(address, [NO_PROXY]),
    }
    lacking: dict[str, str] = {}
    for name, connect in ways.items():
        with connect() as channel:
            lacking[name] = _status(channel, query)
    with open_channel(address, files) as channel:
        admin_status = _status(channel, query)
    by_protocol = {
        name: call_anew(address, client_context(files, protocols=protocols), query).outcome
        for name, protocols in OTHER_PROTOCOLS.items()
    }
    with permissive_tls_server() as permissive:
        other_trust = client_context(files, ca=permissive.client.ca)
    stage.record(
        ConnectionAttempts(
            admin_status=admin_status,
            lacking=lacking,
            http2_outcome=call_anew(address, client_context(files), query).outcome,
            by_protocol=by_protocol,
            other_name=handshake(address, client_context(files), OTHER_NAME),
            other_authority=handshake(address, other_trust),
        )
    )


def _status(channel: grpc.Channel, call: RawCall) -> str:
    """Make a call whose answer is not read, and return its status."""
    make: Any = channel.unary_unary(call.path)
    try:
        make(call.message, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        return outcome_of(error)[1]
    return "OK"


def judge_strangers(history: History) -> Iterator[Finding]:
    """The server refuses; the client refuses a server that cannot prove its identity."""
    seen, terms = history.the(ConnectionAttempts), terms_of(history)
    by_grpc = CallOutcome(CallEnd.STATUS, seen.admin_status)
    for how, got in (("gRPC", by_grpc), ("HTTP/2", seen.http2_outcome)):
        yield assumed(
            f"an admin's query by {how} is admitted",
            true=is_admitted(got, terms), got=str(got), want=" or ".join(terms.admitting),
        )  # fmt: skip
    for name, status in seen.lacking.items():
        yield one_of(f"a client without {name} is refused", status, REFUSING)
    # Another kind of server may use a gRPC library that takes HTTP/2 for granted.
    for name in OTHER_PROTOCOLS if terms.has_promised(STRANGERS_NAME) else ():
        outcome = seen.by_protocol[name]
        yield holds(
            f"a connection with {name} is closed without an answer (case 15)",
            kept=outcome.end in CLOSING, got=str(outcome), want="closed",
        )  # fmt: skip
    for server, number, result in (
        ("of another name", 12, seen.other_name),
        ("of an untrusted authority", 13, seen.other_authority),
    ):
        promise = f"a client refuses a server {server} (case {number})"
        yield equal(promise, str(result), str(UNPROVEN))


STRANGERS: Final = Check(
    STRANGERS_NAME,
    "The server requires a client certificate, TLS and HTTP/2, and proves its own identity.",
    run_strangers, judge_strangers, frozenset({Need.GRPC}),
    ("1", "11-13", "15", "R-TLS-1"),
)  # fmt: skip


REFUSED: Final = "refused: the task requires TLS 1.3 and no older version (R-TLS-1)"
VERSIONS: Final = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


@dataclass(frozen=True, slots=True)
class VersionProbe:
    """A handshake of one TLS version.

    Attributes:
        control: with a server that accepts every version.
        server: with the server under test.
    """

    control: HandshakeResult
    server: HandshakeResult


@dataclass(frozen=True, slots=True)
class VersionProbes(Observation):
    """A probe of each TLS version; None: this machine's OpenSSL no longer has the version."""

    by_version: Mapping[str, VersionProbe | None]


def _version_context(files: CertFiles, version: ssl.TLSVersion) -> ssl.SSLContext | None:
    try:
        return client_context(files, version=version)
    except ValueError:
        return None  # OpenSSL was built without the version


def run_versions(stage: Stage) -> None:
    """Try a handshake of each version, with the permissive server and with the server."""
    files = stage.target.identities.files("admin")
    probes: dict[str, VersionProbe | None] = {}
    with permissive_tls_server() as permissive:
        for name, version in VERSIONS.items():
            ours, control = (_version_context(each, version) for each in (files, permissive.client))
            probes[name] = (
                None
                if ours is None or control is None
                else VersionProbe(
                    handshake(permissive.address, control), handshake(stage.server.address, ours)
                )
            )
    stage.record(VersionProbes(probes))


def judge_versions(history: History) -> Iterator[Finding]:
    """TLS 1.3 alone; a version that the probe cannot try is SKIPPED."""
    probes = history.the(VersionProbes).by_version
    for name in VERSIONS:
        probe = probes[name]
        if probe is None or probe.control.version != name:
            reason = "it lacks the version" if probe is None else str(probe.control)
            yield Finding(
                Verdict.SKIPPED, f"this machine's OpenSSL cannot try {name}: {reason}; "
                "identity.scanner, or a machine whose OpenSSL can, judges it",
            )  # fmt: skip
        elif name == "TLSv1.3":
            yield equal("TLS 1.3 is accepted", str(probe.server), name)
        else:
            yield holds(
                version_refused(name), kept=bool(probe.server.error), got=str(probe.server),
                want=REFUSED,
            )  # fmt: skip


TLS_VERSIONS: Final = Check(
    "identity.versions",
    "The server accepts TLS 1.3 and no older version.",
    run_versions, judge_versions, frozenset({Need.GRPC}), ("14", "R-TLS-1"),
)  # fmt: skip
