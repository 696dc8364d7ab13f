"""OpenSSL's own client as an independent eye: versions, ciphers, protocols, early data.

Each probe is first held against a server that accepts what it looks for: one that finds nothing
there sees nothing.
"""

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.drive.identities import CertFiles
from harness.drive.net.permissive_tls_server import lax_server
from harness.drive.net.tls_client import host_and_port
from harness.host.clock import came_true, poll_until
from harness.host.ports import free_port
from harness.host.processes import run
from harness.judge.promises import assumed, equal, floor, one_of
from harness.record.history import History
from harness.record.verdict import BrokenError, Finding, Verdict

TIMEOUT_S: Final = 20.0
AT_ONCE: Final = 4
LISTEN_TIMEOUT_S: Final = 10.0
# The lowest security level: it must be the server that refuses, not this library's policy.
LOWEST: Final = ":@SECLEVEL=0"
OLD_VERSIONS: Final = {"TLSv1": "-tls1", "TLSv1.1": "-tls1_1", "TLSv1.2": "-tls1_2"}
# RFC 8446, B.4. The two of CCM are for small devices; one is all but unused, the other shortened.
SUITES: Final = (
    "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256",
)  # fmt: skip
STRONG: Final = SUITES[:3]
MANDATORY: Final = SUITES[0]  # RFC 8446, 9.1
# What a server with an RSA key can take of TLS 1.2, as far as this OpenSSL has it: some twenty.
OLD_CIPHERS_LEAST: Final = 10
REFUSED: Final = "refused"
NO_TICKET: Final = "no ticket"
# Ends the connection of any server: no HTTP/2 begins like this.
NOT_HTTP2: Final = "GET / HTTP/1.1\r\n\r\n"


def _s_client(address: str, files: CertFiles, *options: str | Path, text_in: str = "") -> str:
    """Run openssl's client, ended by its input's end or the server, and return what it says."""
    words: list[str | Path] = ["openssl", "s_client", "-connect", address, "-CAfile", files.ca]
    words += ["-cert", files.cert, "-key", files.key, *options]
    done = run(["timeout", f"{TIMEOUT_S / 2:g}", *words], TIMEOUT_S, text_in=text_in)
    if "CONNECTED(" not in done.stdout:
        raise BrokenError(f"openssl s_client did not connect to {address}: {done.stderr[-500:]}")
    return done.stdout


def _negotiated(address: str, files: CertFiles, *options: str | Path) -> str:
    """Return the version and cipher that a handshake came to, or `refused`."""
    said = _s_client(address, files, *options)
    found = re.search(r"^New, (\S+), Cipher is (\S+)$", said, re.MULTILINE)
    if found is None:
        raise BrokenError(f"openssl s_client says no cipher: {said[-500:]}")
    return REFUSED if found[2] == "(NONE)" else f"{found[1]} {found[2]}"


def _old_ciphers() -> list[str]:
    # Without those that need a key of a kind that the control does not have.
    listed = run(["openssl", "ciphers", "-s", "-tls1_2", f"ALL:!aECDSA:!aDSS{LOWEST}"], TIMEOUT_S)
    return listed.require("openssl ciphers").strip().split(":")


def run_openssl(stage: Stage) -> None:
    """Each version, each suite, each old cipher alone; ALPN; and what a ticket allows."""
    address, files = stage.server.address, stage.target.identities.files("admin")
    with lax_server() as lax, ThreadPoolExecutor(AT_ONCE) as pool:
        both = (("control", lax.address, lax.client), ("server", address, files))

        def probe(label: str, *options: str | Path) -> None:
            for who, where, whose in both:
                stage.fact(f"{who} {label}", _negotiated(where, whose, "-alpn", "h2", *options))

        def old_cipher(name: str) -> None:
            options = ("-tls1_2", "-cipher", f"{name}{LOWEST}")
            if _negotiated(lax.address, lax.client, *options) != REFUSED:
                got = _negotiated(address, files, "-alpn", "h2", *options)
                stage.fact(f"old cipher {name}", got)

        waiting = [
            pool.submit(probe, version, option, "-cipher", f"ALL{LOWEST}")
            for version, option in OLD_VERSIONS.items()
        ]
        waiting += [pool.submit(probe, s, "-tls1_3", "-ciphersuites", s) for s in SUITES]
        waiting += [pool.submit(old_cipher, name) for name in _old_ciphers()]
        waiting += [
            pool.submit(lambda: stage.fact("ALPN", _alpn(address, files))),
            pool.submit(lambda: stage.fact("server early data", _early_data(address, files))),
            pool.submit(lambda: stage.fact("control early data", _early_data_control(lax.client))),
        ]
        for each in waiting:
            each.result()


def _alpn(address: str, files: CertFiles) -> str:
    said = _s_client(address, files, "-tls1_3", "-alpn", "http/1.1,h2,spdy/3")
    found = re.search(r"^ALPN protocol: (\S+)$", said, re.MULTILINE)
    return found[1] if found else "none"


def _early_data(address: str, files: CertFiles, hang_up: Callable[[], None] = lambda: None) -> str:
    """Return how many bytes of early data (0-RTT) a server's ticket allows.

    Args:
        address: of the server.
        files: whose certificate to show.
        hang_up: makes the server do so once the ticket is there, if nothing else does.
    """
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool:
        ticket = Path(directory) / "ticket"
        options = ("-tls1_3", "-alpn", "h2", "-sess_out", ticket, "-ign_eof")
        talking = pool.submit(_s_client, address, files, *options, text_in=NOT_HTTP2)
        came_true(lambda: talking.done() or _has_something(ticket), TIMEOUT_S / 2)
        hang_up()
        talking.result()
        if not _has_something(ticket):
            return NO_TICKET
        shown = run(["openssl", "sess_id", "-in", ticket, "-noout", "-text"], TIMEOUT_S)
        found = re.search(r"Max Early Data: (\d+)", shown.require("openssl sess_id"))
        return found[1] if found else "not told"


def _has_something(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _early_data_control(files: CertFiles) -> str:
    """Return the same of a server that allows early data."""
    port = free_port()
    words = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-naccept", "2", "-tls1_3"]
    # The probe's own certificate will do for it.
    words += ["-early_data", "-cert", str(files.cert), "-key", str(files.key)]
    read_end, write_end = os.pipe()  # it ends with its input
    with (
        os.fdopen(read_end, "rb") as quiet,
        os.fdopen(write_end, "wb") as last_word,
        ThreadPoolExecutor(1) as pool,
    ):
        serving = pool.submit(run, words, TIMEOUT_S, stdin=quiet)
        address = f"127.0.0.1:{port}"
        try:
            poll_until(lambda: _connects(address), LISTEN_TIMEOUT_S, "openssl s_server")
            return _early_data(address, files, last_word.close)
        finally:
            last_word.close()
            serving.result()


def _connects(address: str) -> bool | None:
    try:
        socket.create_connection(host_and_port(address), 5).close()
    except OSError:
        return None
    return True


def judge_openssl(history: History) -> Iterator[Finding]:
    """TLS 1.3, its strong suites, HTTP/2; nothing older, nothing early."""
    for version in OLD_VERSIONS:
        if history.fact(f"control {version}") == REFUSED:
            yield Finding(Verdict.SKIPPED, f"this machine's openssl cannot speak {version}")
            continue
        yield equal(f"{version} is refused", history.fact(f"server {version}"), REFUSED)
    for suite in SUITES:
        control, got = (history.fact(f"{who} {suite}") for who in ("control", "server"))
        spoken = f"TLSv1.3 {suite}"
        if suite == MANDATORY:
            yield assumed(f"openssl can speak {suite}", true=control == spoken, got=control)
            yield equal(f"{suite}, which every server must have, is spoken", got, spoken)
        elif suite in STRONG:
            yield one_of(f"{suite} is spoken or not", got, (spoken, REFUSED))
        else:
            yield equal(f"{suite} is refused", got, REFUSED)
    old = history.facts("old cipher ")
    yield floor("ciphers of TLS 1.2 that the probe could see", len(old), OLD_CIPHERS_LEAST)
    taken = [fact.label.removeprefix("old cipher ") for fact in old if fact.value != REFUSED]
    yield equal(f"ciphers of TLS 1.2 that are taken, of {len(old)}", taken, [])
    yield equal("ALPN comes to HTTP/2, whatever else is offered", history.fact("ALPN"), "h2")
    early = history.fact("control early data")
    seen = str(early).isdigit() and early != "0"
    yield assumed("a ticket that allows early data is seen", true=seen, got=early)
    got = history.fact("server early data")
    yield one_of("bytes of early data (0-RTT) that a ticket allows", got, ("0", NO_TICKET))


CHECKS: Final = (
    Check(
        "identity.openssl",
        "OpenSSL's own client gets TLS 1.3 with strong ciphers over HTTP/2, and nothing else.",
        run_openssl, judge_openssl, frozenset({Need.NATIVE}), ("14", "15", "27", "28", "R-TLS-1"),
    ),
)  # fmt: skip
