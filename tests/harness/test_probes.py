"""The TLS and HTTP/2 probes detect what they probe for, and how a call ends."""

import shutil
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.checks.identity.expiry import ResumedCall, SessionResumption, judge_resumption
from harness.checks.identity.handshakes import (
    UNPROVEN,
    VERSIONS,
    VersionProbe,
    VersionProbes,
    judge_versions,
)
from harness.checks.identity.openssl import negotiate
from harness.checks.raw_calls import call_anew, unknown_query
from harness.dialects.dialect import CANONICAL
from harness.drive.net.http2 import (
    PING,
    SETTINGS,
    CallEnd,
    CallOutcome,
    Http2,
    RawHttp2,
    frame,
    grpc_headers,
    grpc_message,
    header_block,
)
from harness.drive.net.permissive_tls_server import PermissiveTlsServer, permissive_tls_server
from harness.drive.net.tls_client import (
    HandshakeResult,
    TlsConnection,
    client_context,
    handshake,
)
from harness.record.history import History
from harness.record.verdict import Verdict, merge
from tests.support.service import Certificates, running_server
from worker_service.server import Server


@pytest.fixture(scope="module")
def permissive() -> Iterator[PermissiveTlsServer]:
    with permissive_tls_server() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(certificates: Certificates) -> Iterator[Server]:
    with running_server(certificates) as running:
        yield running


def test_handshake_reports_version_that_server_accepts(permissive: PermissiveTlsServer) -> None:
    for name in ("TLSv1.2", "TLSv1.3"):
        context = client_context(permissive.client, version=VERSIONS[name])
        assert handshake(permissive.address, context) == HandshakeResult(name)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_probe_distinguishes_accepted_from_refused_cipher(
    permissive: PermissiveTlsServer,
) -> None:
    old = ("-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0")
    assert negotiate(permissive.address, permissive.client, *old).cipher == "AES128-SHA"
    # The server's key is RSA: it cannot use this one.
    unusable = ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    assert negotiate(permissive.address, permissive.client, *unusable).refused


def test_connection_without_alpn_is_established_by_tls(permissive: PermissiveTlsServer) -> None:
    # So a check that sees it closed sees the server refuse it, not TLS.
    context = client_context(permissive.client, protocols=())
    with TlsConnection(permissive.address, context) as connection:
        seen = (connection.version, connection.protocol, connection.closed)
    assert seen == ("TLSv1.3", "", "")


def test_client_refuses_server_of_other_name_or_authority(
    permissive: PermissiveTlsServer, certificates: Certificates
) -> None:
    context = client_context(permissive.client)
    assert handshake(permissive.address, context, "another.example") == UNPROVEN
    other_trust = client_context(permissive.client, ca=certificates.admin.ca)
    assert handshake(permissive.address, other_trust) == UNPROVEN


def test_raw_call_returns_status_and_ticket_resumes_its_session(
    server: Server, certificates: Certificates
) -> None:
    context = client_context(certificates.user)
    with TlsConnection(server.address, context) as connection:
        http2 = Http2(connection)
        assert http2.call(*unknown_query(CANONICAL), 20).is_status("NOT_FOUND")
        unknown = http2.call("/jobworker.v1.JobWorker/Nothing", b"", 20)
        assert unknown == CallOutcome(CallEnd.STATUS, "UNIMPLEMENTED")
        assert http2.streams_allowed == 1000
        assert not connection.resumed
        session = connection.session
    assert isinstance(session, ssl.SSLSession)
    again = call_anew(server.address, context, unknown_query(CANONICAL), session)
    assert again.outcome.is_status("NOT_FOUND")
    # Resumed indeed: otherwise the check of resumption would judge a second full handshake.
    assert again.resumed


def test_raw_connection_distinguishes_ended_from_unanswered(
    server: Server, certificates: Certificates
) -> None:
    context = client_context(certificates.user)
    with TlsConnection(server.address, context) as connection:
        http2 = RawHttp2(connection)
        assert http2.greet(20)
        http2.send(frame(SETTINGS, 0, 0, b"five."), 20)  # not a multiple of six bytes
        assert http2.wait_ended(20)
        assert http2.outcome.end in {CallEnd.GOAWAY, CallEnd.CLOSED}
    with TlsConnection(server.address, context) as connection:
        http2 = RawHttp2(connection)
        assert http2.greet(20)
        assert http2.send(frame(PING, 0, 0, b"12345678"), 20)
        assert not http2.wait_ended(0.2)
        assert http2.outcome.end is CallEnd.UNANSWERED
        path, query = unknown_query(CANONICAL)
        call = frame(1, 4, 1, header_block(grpc_headers(path)))
        http2.send(call + frame(0, 1, 1, grpc_message(query)), 20)
        assert http2.wait_answer(20)
        assert http2.outcome == CallOutcome(CallEnd.ANSWERED)


def test_query_of_server_that_closes_the_connection_is_unconnected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        def hang_up() -> None:
            connection, _ = silent.accept()
            connection.close()

        hanging_up = pool.submit(hang_up)
        answer = call_anew(address, client_context(None), unknown_query(CANONICAL))
        assert answer.outcome.end is CallEnd.UNCONNECTED
        hanging_up.result(10)


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (CallOutcome(CallEnd.STATUS, "NOT_FOUND"), "NOT_FOUND"),
        (CallOutcome(CallEnd.RESET, "REFUSED_STREAM"), "RESET REFUSED_STREAM"),
        (CallOutcome(CallEnd.CLOSED, "end"), "closed: end"),
        (CallOutcome(CallEnd.UNANSWERED), "no answer"),
    ],
)
def test_call_outcome_is_shown_by_end_and_detail(outcome: CallOutcome, text: str) -> None:
    assert str(outcome) == text


def test_version_that_control_cannot_negotiate_is_skipped() -> None:
    refused = HandshakeResult("", "SSLError")

    def judged(control: HandshakeResult, server: HandshakeResult) -> Verdict:
        probes: dict[str, VersionProbe | None] = {
            name: VersionProbe(HandshakeResult(name), refused) for name in VERSIONS
        }
        probes["TLSv1.3"] = VersionProbe(HandshakeResult("TLSv1.3"), HandshakeResult("TLSv1.3"))
        probes["TLSv1"] = VersionProbe(control, server)
        return merge(judge_versions(History([VersionProbes(probes)])))

    accepted = HandshakeResult("TLSv1")
    assert judged(accepted, refused) is Verdict.PASS
    assert judged(accepted, accepted) is Verdict.FAIL
    # The control was refused too, so the server's refusal proves nothing.
    assert judged(refused, refused) is Verdict.SKIPPED


ADMITTED = CallOutcome(CallEnd.STATUS, "NOT_FOUND")


@pytest.mark.parametrize(
    ("expired", "verdict"),
    [
        (ResumedCall(CallOutcome(CallEnd.STATUS, "UNAUTHENTICATED"), resumed=True), Verdict.PASS),
        # The server no longer accepts the ticket and refuses the handshake.
        (ResumedCall(CallOutcome(CallEnd.UNCONNECTED, "SSLError"), resumed=False), Verdict.PASS),
        (ResumedCall(ADMITTED, resumed=True), Verdict.FAIL),
        (ResumedCall(CallOutcome(CallEnd.UNANSWERED), resumed=True), Verdict.FAIL),
    ],
)
def test_resumption_is_judged_only_if_it_worked_before_expiry(
    expired: ResumedCall, verdict: Verdict
) -> None:
    def judged(*, resumed_in_time: bool, refused_after_s: float | None = 1.0) -> Verdict:
        in_time = ResumedCall(ADMITTED, resumed_in_time)
        seen = SessionResumption(ADMITTED, in_time, refused_after_s, expired)
        return merge(judge_resumption(History([seen])))

    assert judged(resumed_in_time=True) is verdict
    # A ticket that was never accepted proves nothing, whatever came afterwards.
    assert judged(resumed_in_time=False) in {Verdict.BROKEN, Verdict.FAIL}
    assert judged(resumed_in_time=True, refused_after_s=None) in {Verdict.BROKEN, Verdict.FAIL}
