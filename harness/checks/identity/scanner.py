"""sslyze, a scanner that is independent of this project, examines the server's TLS."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.openssl import MANDATORY, STRONG
from harness.drive.net.permissive_tls_server import permissive_tls_server
from harness.drive.sslyze.scan import VERSIONS, WEAKNESSES, Scan, scan
from harness.judge.promises import assumed, equal, holds, repeating
from harness.record.foundations import version_refused
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.verdict import Finding

# What `identity.versions` calls the old versions that it probes.
PROBED: Final = {"TLS 1.0": "TLSv1", "TLS 1.1": "TLSv1.1", "TLS 1.2": "TLSv1.2"}
CONTROL_OPTIONS: Final = ("--tlsv1_2", "--tlsv1_3")


@dataclass(frozen=True, slots=True)
class ScannerReports(Observation):
    """Scans of the permissive server (the control: TLS 1.2 and 1.3 only) and of the server."""

    control: Scan
    server: Scan


def run_scanner(stage: Stage) -> None:
    """Scan a permissive server, to prove that the scanner detects acceptance; then the server."""
    with permissive_tls_server() as permissive:
        control = scan(permissive.address, permissive.client, CONTROL_OPTIONS)
    server = scan(stage.server.address, stage.target.identities.files("admin"))
    stage.record(ScannerReports(control, server))


def judge_scanner(history: History) -> Iterator[Finding]:
    """TLS 1.3 with strong suites alone, and none of the known weaknesses."""
    reports = history.the(ScannerReports)
    control, server = reports.control, reports.server
    detected = [version for version in VERSIONS if control.suites[version]]
    yield assumed(
        "the scanner detects TLS 1.2 and 1.3 in the permissive server",
        true={"TLS 1.2", "TLS 1.3"} <= set(detected), got=detected,
    )  # fmt: skip
    versions = (_judge_version(version, server) for version in VERSIONS)
    weaknesses = (_judge_weakness(weakness, server) for weakness in WEAKNESSES)
    yield from separately((*versions, *weaknesses))


def _judge_version(version: str, server: Scan) -> Iterator[Finding]:
    suites, by = server.suites[version], f"by sslyze {server.scanner_version}"
    yield assumed(f"{version} was scanned", true=suites is not None, got=suites)
    if suites is None:
        return
    if version == "TLS 1.3":
        yield holds(
            f"{version} has strong cipher suites alone, {by}",
            kept=MANDATORY in suites and set(suites) <= set(STRONG),
            got=", ".join(sorted(suites)), want=f"{MANDATORY}, and of {', '.join(STRONG)}",
        )  # fmt: skip
    else:
        finding = equal(f"accepted cipher suites of {version}, {by}", list(suites), [])
        yield repeating(finding, version_refused(PROBED.get(version, "")))


def _judge_weakness(weakness: str, server: Scan) -> Iterator[Finding]:
    found, by = server.weaknesses[weakness], f"by sslyze {server.scanner_version}"
    yield assumed(f"{weakness} was scanned for", true=found is not None, got=found)
    if found is not None:
        yield holds(
            f"the server does not have {weakness}, {by}",
            kept=not found, got="it has", want="it has not",
        )  # fmt: skip


SCANNER: Final = Check(
    "identity.scanner",
    "An independent scanner finds TLS 1.3 with strong ciphers and no known weakness.",
    run_scanner, judge_scanner, frozenset({Need.NATIVE, Need.GRPC}),
    ("14", "27", "28", "R-TLS-1"), 240,
)  # fmt: skip
