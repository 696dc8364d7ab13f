"""The probes see what they look for: versions, protocols, tickets, calls, and how a call ends."""

import shutil
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.checks.identity.access import (
    VERSIONS,
    call_over,
    judge_versions,
)
from harness.checks.identity.openssl import REFUSED, _negotiated
from harness.checks.identity.validity import judge_resumption
from harness.checks.raw_calls import QUERY_PATH, UNKNOWN_QUERY
from harness.drive.net.http2 import (
    PING,
    SETTINGS,
    RawHttp2,
    frame,
    grpc_headers,
    grpc_message,
    header_block,
)
from harness.drive.net.http2 import Http2 as Http2Client
from harness.drive.net.permissive_tls_server import LaxServer, lax_server
from harness.drive.net.tls_client import TlsLine, client_context, handshake
from harness.record.history import Fact, History, Json
from harness.record.verdict import Verdict, merge
from tests.support.service import Certificates, running_server
from worker_service.server import Server


@pytest.fixture(scope="module")
def lax() -> Iterator[LaxServer]:
    with lax_server() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(certificates: Certificates) -> Iterator[Server]:
    with running_server(certificates) as running:
        yield running


def test_a_server_that_accepts_old_versions_is_seen_to(lax: LaxServer) -> None:
    for name in ("TLSv1.2", "TLSv1.3"):
        context = client_context(lax.client, version=VERSIONS[name])
        assert handshake(lax.address, context) == name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_sees_ciphers_that_are_taken_and_ones_that_are_not(lax: LaxServer) -> None:
    old = ("-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0")
    assert _negotiated(lax.address, lax.client, *old).endswith(" AES128-SHA")
    # The server's key is RSA: it has nothing to offer for this one.
    none = ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    assert _negotiated(lax.address, lax.client, *none) == REFUSED


def test_a_server_that_answers_without_alpn_would_be_seen(lax: LaxServer) -> None:
    # The connection itself comes about: what refuses is what is said on it.
    with TlsLine(lax.address, client_context(lax.client, protocols=())) as line:
        assert (line.version, line.protocol, line.closed) == ("TLSv1.3", "", "")


def test_a_name_and_an_authority_are_checked_by_the_client(
    lax: LaxServer, certificates: Certificates
) -> None:
    context = client_context(lax.client)
    unproven = "refused: SSLCertVerificationError"
    assert handshake(lax.address, context, "another.example") == unproven
    trusting = client_context(lax.client, ca=certificates.admin.ca)
    assert handshake(lax.address, trusting) == unproven


def test_a_call_by_hand_gets_its_status_and_is_resumed_with_a_ticket(
    server: Server, certificates: Certificates
) -> None:
    context = client_context(certificates.user)
    with TlsLine(server.address, context) as line:
        http2 = Http2Client(line)
        assert http2.call(QUERY_PATH, UNKNOWN_QUERY, 20) == "NOT_FOUND"
        assert http2.call("/jobworker.v1.JobWorker/Nothing", b"", 20) == "UNIMPLEMENTED"
        assert http2.streams_allowed == 1000
        assert not line.resumed
        session = line.session
    assert isinstance(session, ssl.SSLSession)
    with TlsLine(server.address, context, session=session) as line:
        assert Http2Client(line).call(QUERY_PATH, UNKNOWN_QUERY, 20) == "NOT_FOUND"
        # Really resumed, so what is judged of resumption is no second full handshake.
        assert line.resumed


def test_a_call_that_is_cut_off_is_told_from_one_that_is_not_answered(
    server: Server, certificates: Certificates
) -> None:
    context = client_context(certificates.user)
    with TlsLine(server.address, context) as line:
        http2 = RawHttp2(line)
        assert http2.greet(20)
        http2.send(frame(SETTINGS, 0, 0, b"five."), 20)  # no multiple of six bytes
        assert http2.wait_ended(20)
        assert http2.ended
    with TlsLine(server.address, context) as line:
        http2 = RawHttp2(line)
        assert http2.greet(20)
        assert http2.send(frame(PING, 0, 0, b"12345678"), 20)
        assert not http2.wait_ended(0.2)
        assert http2.ended == ""
        call = frame(1, 4, 1, header_block(grpc_headers(QUERY_PATH)))
        http2.send(call + frame(0, 1, 1, grpc_message(UNKNOWN_QUERY)), 20)
        assert http2.wait_answer(20)


def test_a_server_that_says_nothing_gives_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        def hang_up() -> None:
            connection, _ = silent.accept()
            connection.close()

        hanging_up = pool.submit(hang_up)
        assert call_over(address, client_context(None)).startswith("refused: ")
        hanging_up.result(10)


def test_a_version_that_this_machine_cannot_try_is_not_passed_off_as_refused() -> None:
    def facts(control: str, server: str) -> History:
        told = [Fact(f"control {name}", name) for name in VERSIONS if name != "TLSv1"]
        told += [Fact(f"server {name}", "refused: SSLError") for name in ("TLSv1.1", "TLSv1.2")]
        told += [Fact("server TLSv1.3", "TLSv1.3")]
        return History([*told, Fact("control TLSv1", control), Fact("server TLSv1", server)])

    refused = "refused: SSLError"
    assert merge(judge_versions(facts("TLSv1", refused))) is Verdict.PASS
    assert merge(judge_versions(facts("TLSv1", "TLSv1"))) is Verdict.FAIL
    # The control failed too: then nothing can be said.
    assert merge(judge_versions(facts(refused, refused))) is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("after_the_end", "verdict"),
    [
        (["UNAUTHENTICATED", True], Verdict.PASS),
        (["refused: SSLError", False], Verdict.PASS),  # the ticket is no longer taken: as good
        (["NOT_FOUND", True], Verdict.FAIL),
        (["no answer", True], Verdict.FAIL),
    ],
)
def test_a_resumed_session_is_judged_only_if_resuming_worked_before(
    after_the_end: list[Json], verdict: Verdict
) -> None:
    def facts(in_time: list[Json]) -> History:
        return History([
            Fact("full handshake", "NOT_FOUND"), Fact("resumed in time", in_time),
            Fact("full handshake refused after", 1.0), Fact("resumed after the end", after_the_end),
        ])  # fmt: skip

    assert merge(judge_resumption(facts(["NOT_FOUND", True]))) is verdict
    # A ticket that was never taken proves nothing, whatever came afterwards.
    assert merge(judge_resumption(facts(["NOT_FOUND", False]))) in {Verdict.BROKEN, Verdict.FAIL}
