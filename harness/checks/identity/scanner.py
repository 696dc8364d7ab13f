"""A scanner that knows nothing of this project looks at the server's TLS."""

from collections.abc import Iterator, Mapping
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.openssl import MANDATORY, STRONG
from harness.drive.net.permissive_tls_server import lax_server
from harness.drive.sslyze.scan import VERSIONS, WEAKNESSES, scan
from harness.judge.promises import assumed, equal, holds
from harness.record.history import History, Json
from harness.record.verdict import BrokenError, Finding

CONTROL_OPTIONS: Final = ("--tlsv1_2", "--tlsv1_3")


def run_scanner(stage: Stage) -> None:
    """A scan of a server that accepts much, to see that it sees; then of the server."""
    with lax_server() as lax:
        control = scan(lax.address, lax.client, CONTROL_OPTIONS)
    stage.fact("control suites", dict[str, Json](control.suites))
    found = scan(stage.server.address, stage.target.identities.files("admin"))
    stage.fact("scanned by", found.version)
    stage.fact("suites", dict[str, Json](found.suites))
    stage.fact("weaknesses", dict[str, Json](found.weaknesses))


def _table(history: History, label: str) -> Mapping[str, Json]:
    value = history.fact(label)
    if not isinstance(value, Mapping):
        raise BrokenError(f"fact {label!r} is no table")
    return value


def judge_scanner(history: History) -> Iterator[Finding]:
    """TLS 1.3 with strong suites alone, and none of the known weaknesses."""
    control, suites = (_table(history, label) for label in ("control suites", "suites"))
    by = f"by sslyze {history.fact('scanned by')}"
    seen = [version for version in VERSIONS if control[version]]
    yield assumed(
        "the scanner sees TLS 1.2 and 1.3 where they are",
        true={"TLS 1.2", "TLS 1.3"} <= set(seen), got=seen,
    )  # fmt: skip
    for version, found in suites.items():
        yield assumed(f"{version} was scanned", true=found is not None, got=found)
        if found is None:
            continue
        if version == "TLS 1.3":
            names = sorted(map(str, found)) if isinstance(found, list) else []
            yield holds(
                f"{version} has strong cipher suites alone, {by}",
                kept=MANDATORY in names and set(names) <= set(STRONG),
                got=", ".join(names), want=f"{MANDATORY}, and of {', '.join(STRONG)}",
            )  # fmt: skip
        else:
            yield equal(f"cipher suites of {version} that are accepted, {by}", found, [])
    weaknesses = _table(history, "weaknesses")
    for what in WEAKNESSES:
        found = weaknesses[what]
        yield assumed(f"{what} was looked for", true=found is not None, got=found)
        if found is not None:
            yield equal(f"{what} is there, {by}", found, False)


CHECKS: Final = (
    Check(
        "identity.scanner",
        "An independent scanner finds TLS 1.3 with strong ciphers and no known weakness.",
        run_scanner, judge_scanner, frozenset({Need.NATIVE}), ("14", "27", "28", "R-TLS-1"), 240,
    ),
)  # fmt: skip
