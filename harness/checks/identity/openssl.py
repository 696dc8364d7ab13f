"""OpenSSL's own client as an independent probe: versions, ciphers, ALPN, early data.

Each probe first runs against a server that accepts what it probes for: a probe that is refused
there too cannot detect acceptance.
"""

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.drive.net.permissive_tls_server import permissive_tls_server
from harness.drive.net.tls_client import host_and_port
from harness.host.cert_files import CertFiles
from harness.host.clock import poll_until, seconds_until
from harness.host.ports import free_port
from harness.host.processes import run
from harness.judge.promises import assumed, equal, floor, holds, one_of, repeating
from harness.record.foundations import version_refused
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.verdict import BrokenError, Finding, Verdict

TIMEOUT_S: Final = 20.0
AT_ONCE: Final = 4
LISTEN_TIMEOUT_S: Final = 10.0
# The lowest security level: it must be the server that refuses, not this library's policy.
LOWEST: Final = ":@SECLEVEL=0"
OLD_VERSIONS: Final = {"TLSv1": "-tls1", "TLSv1.1": "-tls1_1", "TLSv1.2": "-tls1_2"}
# RFC 8446, B.4. The two CCM suites are for small devices: one is rarely used, the other has a
# shortened tag.
SUITES: Final = (
    "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256",
)  # fmt: skip
STRONG: Final = SUITES[:3]
MANDATORY: Final = SUITES[0]  # RFC 8446, 9.1
# TLS 1.2 ciphers that a server with an RSA key can use and this OpenSSL has: some twenty.
OLD_CIPHERS_LEAST: Final = 10
REFUSED: Final = "refused"
# Makes any server end the connection: no HTTP/2 connection begins like this.
NOT_HTTP2: Final = "GET / HTTP/1.1\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a handshake negotiated, as openssl prints it; both fields are empty if it was refused.

    `version` is the TLS version that introduced the cipher: of TLS 1.1 it is TLSv1.0.
    """

    version: str
    cipher: str

    def __str__(self) -> str:
        return f"{self.version} {self.cipher}" if self.cipher else REFUSED

    @property
    def refused(self) -> bool:
        """Whether the handshake was refused."""
        return not self.cipher


@dataclass(frozen=True, slots=True)
class OpensslProbe:
    """The same handshake with the permissive server (the control) and with the server."""

    control: Negotiated
    server: Negotiated


@dataclass(frozen=True, slots=True)
class OpensslProbes(Observation):
    """What OpenSSL's client negotiated.

    Attributes:
        old_versions: each old version alone, with every cipher.
        suites: each cipher suite of TLS 1.3 alone.
        old_ciphers: each TLS 1.2 cipher alone that the control accepted, with the server.
        alpn: the protocol that the server chose among several; "none" if it chose none.
        early_data_bytes: what a session ticket of the server allows; None: it sent none.
        control_early_data_bytes: the same of openssl's own server, which allows some.
    """

    old_versions: Mapping[str, OpensslProbe]
    suites: Mapping[str, OpensslProbe]
    old_ciphers: Mapping[str, Negotiated]
    alpn: str
    early_data_bytes: int | None
    control_early_data_bytes: int | None


def _s_client(address: str, files: CertFiles, *options: str | Path, text_in: str = "") -> str:
    """Run openssl's client until its input or the connection ends, and return its output."""
    words: list[str | Path] = ["openssl", "s_client", "-connect", address, "-CAfile", files.ca]
    words += ["-cert", files.cert, "-key", files.key, *options]
    done = run(["timeout", f"{TIMEOUT_S / 2:g}", *words], TIMEOUT_S, text_in=text_in)
    if "CONNECTED(" not in done.stdout:
        raise BrokenError(f"openssl s_client did not connect to {address}: {done.stderr[-500:]}")
    return done.stdout


def negotiate(address: str, files: CertFiles, *options: str | Path) -> Negotiated:
    """Return what a handshake of openssl's client negotiates."""
    output = _s_client(address, files, *options)
    found = re.search(r"^New, (\S+), Cipher is (\S+)$", output, re.MULTILINE)
    if found is None:
        raise BrokenError(f"openssl s_client reports no cipher: {output[-500:]}")
    return Negotiated("", "") if found[2] == "(NONE)" else Negotiated(found[1], found[2])


def _old_ciphers() -> list[str]:
    # Without those that need a kind of key that the control does not have.
    listed = run(["openssl", "ciphers", "-s", "-tls1_2", f"ALL:!aECDSA:!aDSS{LOWEST}"], TIMEOUT_S)
    return listed.require("openssl ciphers").strip().split(":")


def run_openssl(stage: Stage) -> None:
    """Try each version, each suite and each old cipher alone; ALPN; and a ticket's early data."""
    address, files = stage.server.address, stage.target.identities.files("admin")
    with permissive_tls_server() as permissive, ThreadPoolExecutor(AT_ONCE) as pool:
        alpn = pool.submit(_alpn, address, files)
        early_data = pool.submit(_early_data_bytes, address, files)
        control_early_data = pool.submit(_control_early_data_bytes, permissive.client)

        def probe(*options: str) -> OpensslProbe:
            words = ("-alpn", "h2", *options)
            return OpensslProbe(
                negotiate(permissive.address, permissive.client, *words),
                negotiate(address, files, *words),
            )

        def probe_version(option: str) -> OpensslProbe:
            return probe(option, "-cipher", f"ALL{LOWEST}")

        def probe_suite(suite: str) -> OpensslProbe:
            return probe("-tls1_3", "-ciphersuites", suite)

        def probe_old_cipher(name: str) -> Negotiated | None:
            options = ("-tls1_2", "-cipher", f"{name}{LOWEST}")
            if negotiate(permissive.address, permissive.client, *options).refused:
                return None
            return negotiate(address, files, "-alpn", "h2", *options)

        ciphers = _old_ciphers()
        old_versions = pool.map(probe_version, OLD_VERSIONS.values())
        suites = pool.map(probe_suite, SUITES)
        old_ciphers = zip(ciphers, pool.map(probe_old_cipher, ciphers), strict=True)
        stage.record(
            OpensslProbes(
                old_versions=dict(zip(OLD_VERSIONS, old_versions, strict=True)),
                suites=dict(zip(SUITES, suites, strict=True)),
                old_ciphers={name: got for name, got in old_ciphers if got is not None},
                alpn=alpn.result(),
                early_data_bytes=early_data.result(),
                control_early_data_bytes=control_early_data.result(),
            )
        )


def _alpn(address: str, files: CertFiles) -> str:
    output = _s_client(address, files, "-tls1_3", "-alpn", "http/1.1,h2,spdy/3")
    found = re.search(r"^ALPN protocol: (\S+)$", output, re.MULTILINE)
    return found[1] if found else "none"


def _early_data_bytes(
    address: str, files: CertFiles, hang_up: Callable[[], None] = lambda: None
) -> int | None:
    """Return how many bytes of early data (0-RTT) a server's ticket allows; None: no ticket.

    Args:
        address: of the server.
        files: the client's certificate.
        hang_up: makes the server close the connection once the ticket was received.
    """
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool:
        ticket = Path(directory) / "ticket"
        options = ("-tls1_3", "-alpn", "h2", "-sess_out", ticket, "-ign_eof")
        talking = pool.submit(_s_client, address, files, *options, text_in=NOT_HTTP2)
        seconds_until(lambda: talking.done() or _is_filled(ticket), TIMEOUT_S / 2)
        hang_up()
        talking.result()
        if not _is_filled(ticket):
            return None
        shown = run(["openssl", "sess_id", "-in", ticket, "-noout", "-text"], TIMEOUT_S)
        found = re.search(r"Max Early Data: (\d+)", shown.require("openssl sess_id"))
        if found is None:
            raise BrokenError(f"openssl sess_id reports no early data: {shown.stdout[-500:]}")
        return int(found[1])


def _is_filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _control_early_data_bytes(files: CertFiles) -> int | None:
    """Return the same for a server that allows early data."""
    port = free_port()
    words = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-naccept", "2", "-tls1_3"]
    # The client's own certificate serves as the server's.
    words += ["-early_data", "-cert", str(files.cert), "-key", str(files.key)]
    read_end, write_end = os.pipe()  # the server ends with its input
    with (
        os.fdopen(read_end, "rb") as silence,
        os.fdopen(write_end, "wb") as open_input,
        ThreadPoolExecutor(1) as pool,
    ):
        serving = pool.submit(run, words, TIMEOUT_S, stdin=silence)
        address = f"127.0.0.1:{port}"
        try:
            poll_until(lambda: _connects(address), LISTEN_TIMEOUT_S, "openssl s_server")
            return _early_data_bytes(address, files, open_input.close)
        finally:
            open_input.close()
            _connects(address)  # if our client failed, the server still waits for one
            serving.result()


def _connects(address: str) -> bool | None:
    try:
        socket.create_connection(host_and_port(address), 5).close()
    except OSError:
        return None
    return True


def judge_openssl(history: History) -> Iterator[Finding]:
    """TLS 1.3 with strong suites over HTTP/2; nothing older, no early data."""
    seen = history.the(OpensslProbes)
    for version in OLD_VERSIONS:
        probe = seen.old_versions[version]
        if probe.control.refused:
            yield Finding(Verdict.SKIPPED, f"this machine's openssl cannot speak {version}")
            continue
        promise = version_refused(version)
        yield repeating(equal(promise, str(probe.server), REFUSED), promise)
    yield equal("ALPN chooses HTTP/2, whatever else is offered", seen.alpn, "h2")
    suites = (_judge_suite(suite, seen.suites[suite]) for suite in SUITES)
    yield from separately((*suites, _judge_old_ciphers(seen), _judge_early_data(seen)))


def _judge_suite(suite: str, probe: OpensslProbe) -> Iterator[Finding]:
    control, got, accepted = str(probe.control), str(probe.server), f"TLSv1.3 {suite}"
    if suite == MANDATORY:
        yield assumed(f"openssl can speak {suite}", true=control == accepted, got=control)
        yield equal(f"{suite}, which is mandatory, is accepted", got, accepted)
    elif suite in STRONG:
        yield one_of(f"{suite} is accepted or refused", got, (accepted, REFUSED))
    else:
        yield equal(f"{suite} is refused", got, REFUSED)


def _judge_old_ciphers(seen: OpensslProbes) -> Iterator[Finding]:
    tried = len(seen.old_ciphers)
    yield floor("TLS 1.2 ciphers that the control accepts", tried, OLD_CIPHERS_LEAST)
    accepted_ciphers = [name for name, got in seen.old_ciphers.items() if not got.refused]
    finding = equal(f"accepted ciphers of TLS 1.2, of {tried}", accepted_ciphers, [])
    yield repeating(finding, version_refused("TLSv1.2"))


def _judge_early_data(seen: OpensslProbes) -> Iterator[Finding]:
    control_bytes = seen.control_early_data_bytes
    yield assumed(
        "a ticket that allows early data is detected", true=bool(control_bytes), got=control_bytes
    )
    allowed = "no ticket" if seen.early_data_bytes is None else seen.early_data_bytes
    yield holds(
        "bytes of early data (0-RTT) that a ticket allows", kept=not seen.early_data_bytes,
        got=allowed, want="0 or no ticket",
    )  # fmt: skip


OPENSSL: Final = Check(
    "identity.openssl",
    "OpenSSL's own client gets TLS 1.3 with strong ciphers over HTTP/2, and nothing else.",
    run_openssl, judge_openssl, frozenset({Need.NATIVE, Need.GRPC}),
    ("14", "15", "27", "28", "R-TLS-1"),
)  # fmt: skip
