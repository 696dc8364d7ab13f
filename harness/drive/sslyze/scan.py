"""Runs sslyze against a server and reads its report."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.drive.sslyze.environment import scanner_program
from harness.host.cert_files import CertFiles
from harness.host.processes import run
from harness.record.verdict import BrokenError

SCAN_TIMEOUT_S: Final = 100.0
COMPLETED: Final = "COMPLETED"
# The scan of each version, by sslyze's name; oldest first.
VERSIONS: Final = {
    "SSL 2.0": "ssl_2_0_cipher_suites",
    "SSL 3.0": "ssl_3_0_cipher_suites",
    "TLS 1.0": "tls_1_0_cipher_suites",
    "TLS 1.1": "tls_1_1_cipher_suites",
    "TLS 1.2": "tls_1_2_cipher_suites",
    "TLS 1.3": "tls_1_3_cipher_suites",
}
# Each weakness: sslyze's name of the scan, and the field that is true if the server has it.
WEAKNESSES: Final = {
    "compression (CRIME)": ("tls_compression", "supports_compression"),
    "Heartbleed": ("heartbleed", "is_vulnerable_to_heartbleed"),
    "CCS injection": ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
    "client-initiated renegotiation": (
        "session_renegotiation", "is_vulnerable_to_client_renegotiation_dos",
    ),
}  # fmt: skip
# Not --early_data: it waits for an HTTP/1.1 response, and crashes without one.
EVERYTHING: Final = (
    "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression",
    "--heartbleed", "--openssl_ccs", "--reneg",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scan:
    """The report on one server.

    Attributes:
        scanner_version: of sslyze.
        suites: the accepted cipher suites, by TLS version; None: not scanned.
        weaknesses: whether the server has each; None: not scanned.
    """

    scanner_version: str
    suites: Mapping[str, tuple[str, ...] | None]
    weaknesses: Mapping[str, bool | None]


def scan(address: str, files: CertFiles, options: Sequence[str] = EVERYTHING) -> Scan:
    """Scan a server, as a client with a certificate.

    Args:
        address: HOST:PORT.
        files: the client's certificate.
        options: what to scan for, as options of sslyze.

    Raises:
        UnsupportedError: the scanner cannot be installed.
        BrokenError: sslyze failed, timed out or could not connect.
    """
    with tempfile.TemporaryDirectory(prefix="jobworker-scan-") as directory:
        found = Path(directory) / "found.json"
        words: list[str | Path] = [scanner_program(), "--quiet", "--mozilla_config=disable"]
        words += [f"--json_out={found}", "--cert", files.cert, "--key", files.key, *options]
        done = run([*words, address], SCAN_TIMEOUT_S)
        try:
            return read_report(found.read_text())
        except OSError as error:
            said = (done.stdout + done.stderr)[-2000:]
            raise BrokenError(f"sslyze wrote no report (exit {done.exit_code}): {said}") from error


def read_report(text: str) -> Scan:
    """Read sslyze's report on one server.

    Raises:
        BrokenError: the text is not a report, or sslyze could not connect to the server.
    """
    try:
        report = json.loads(text)
        [server] = report["server_scan_results"]
        if server["scan_status"] != COMPLETED:
            raise BrokenError(f"sslyze could not scan: {server['connectivity_error_trace']}")
        results = server["scan_result"]
        return Scan(
            scanner_version=str(report["sslyze_version"]),
            suites={version: _suites(results[name]) for version, name in VERSIONS.items()},
            weaknesses={
                what: _weakness(results[name], field) for what, (name, field) in WEAKNESSES.items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenError(f"not a report of sslyze: {error!r}: {text[:500]}") from error


def _suites(attempt: Mapping[str, Any]) -> tuple[str, ...] | None:
    if attempt["status"] != COMPLETED:
        return None
    accepted = attempt["result"]["accepted_cipher_suites"]
    return tuple(str(each["cipher_suite"]["name"]) for each in accepted)


def _weakness(attempt: Mapping[str, Any], field: str) -> bool | None:
    return bool(attempt["result"][field]) if attempt["status"] == COMPLETED else None
