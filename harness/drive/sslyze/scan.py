"""Runs sslyze against a server and reads what it found."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.drive.identities import CertFiles
from harness.drive.sslyze.environment import scanner_program
from harness.host.processes import run
from harness.record.verdict import BrokenError

SCAN_TIMEOUT_S: Final = 100.0
COMPLETED: Final = "COMPLETED"
# The scanner's name of each version's scan, in the order of age.
VERSIONS: Final = {
    "SSL 2.0": "ssl_2_0_cipher_suites",
    "SSL 3.0": "ssl_3_0_cipher_suites",
    "TLS 1.0": "tls_1_0_cipher_suites",
    "TLS 1.1": "tls_1_1_cipher_suites",
    "TLS 1.2": "tls_1_2_cipher_suites",
    "TLS 1.3": "tls_1_3_cipher_suites",
}
# What else it looks for: its name of the scan, and the field that is true when it found it.
WEAKNESSES: Final = {
    "compression (CRIME)": ("tls_compression", "supports_compression"),
    "Heartbleed": ("heartbleed", "is_vulnerable_to_heartbleed"),
    "CCS injection": ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
    "renegotiation by the client": (
        "session_renegotiation", "is_vulnerable_to_client_renegotiation_dos",
    ),
}  # fmt: skip
# Not --early_data: it waits for an answer of HTTP/1.1, and crashes without one.
EVERYTHING: Final = (
    "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression",
    "--heartbleed", "--openssl_ccs", "--reneg",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scan:
    """What it found.

    Attributes:
        version: the scanner's own.
        suites: the cipher suites that were accepted, by version; None where nothing can be said.
        weaknesses: whether each is there; None where nothing can be said.
    """

    version: str
    suites: Mapping[str, list[str] | None]
    weaknesses: Mapping[str, bool | None]


def scan(address: str, files: CertFiles, options: Sequence[str] = EVERYTHING) -> Scan:
    """Scan a server, as a client with a certificate.

    Args:
        address: HOST:PORT.
        files: the client's certificate.
        options: what to look for, as the program has it.

    Raises:
        UnsupportedError: the scanner cannot be installed.
        BrokenError: it did not come to its end, or could not connect.
    """
    with tempfile.TemporaryDirectory(prefix="jobworker-scan-") as directory:
        found = Path(directory) / "found.json"
        words: list[str | Path] = [scanner_program(), "--quiet", "--mozilla_config=disable"]
        words += [f"--json_out={found}", "--cert", files.cert, "--key", files.key, *options]
        done = run([*words, address], SCAN_TIMEOUT_S)
        try:
            return read(found.read_text())
        except OSError as error:
            said = (done.stdout + done.stderr)[-2000:]
            raise BrokenError(f"sslyze found nothing (exit {done.exit_code}): {said}") from error


def read(text: str) -> Scan:
    """Read the scanner's report on one server.

    Raises:
        BrokenError: it is none, or of a server that it could not connect to.
    """
    try:
        report = json.loads(text)
        [server] = report["server_scan_results"]
        if server["scan_status"] != COMPLETED:
            raise BrokenError(f"sslyze could not scan: {server['connectivity_error_trace']}")
        results = server["scan_result"]
        return Scan(
            version=str(report["sslyze_version"]),
            suites={version: _suites(results[name]) for version, name in VERSIONS.items()},
            weaknesses={
                what: _weakness(results[name], field) for what, (name, field) in WEAKNESSES.items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenError(f"no report of sslyze: {error!r}: {text[:500]}") from error


def _suites(attempt: Mapping[str, Any]) -> list[str] | None:
    if attempt["status"] != COMPLETED:
        return None
    accepted = attempt["result"]["accepted_cipher_suites"]
    return [str(each["cipher_suite"]["name"]) for each in accepted]


def _weakness(attempt: Mapping[str, Any], field: str) -> bool | None:
    return bool(attempt["result"][field]) if attempt["status"] == COMPLETED else None
