"""Runs `pip-audit`, and believes only the answers that it shows."""

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.host.processes import run
from harness.record.verdict import BrokenError
from harness.vulncheck.pins import Pin, read_pins

AUDIT_TIMEOUT_S: Final = 300.0
OWN_PACKAGE: Final = "jobworker"  # this project itself, which no index has
# pip-audit requires hashes; no file is fetched, so they need not be real.
_HASH: Final = f"--hash=sha256:{'0' * 64}"
_SHOWN_MAX: Final = 5


class AuditOutcome(IntEnum):
    """The result of a vulnerability check; the numbers are its exit codes."""

    CLEAN = 0
    FOUND = 1
    NOT_AUDITED = 2


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """One finding: the package as it is pinned, the advisory, and the versions without it."""

    package: str
    version: str
    advisory: str
    fixed_in: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What `pip-audit` showed.

    Attributes:
        audited: the packages that it returned, normalized, each with its version.
        skipped: packages that it did not audit, and why.
        vulnerabilities: what it found.
    """

    audited: frozenset[tuple[str, Version]]
    skipped: Mapping[str, str]
    vulnerabilities: tuple[Vulnerability, ...]


def audit(pins: Sequence[Pin], osv_url: str | None) -> Audit:
    """Run `pip-audit` on pins; on several versions of a package in as many runs.

    Args:
        pins: what to audit. Their names and versions are passed on normalized, so that nothing
            depends on how a second parser would read them.
        osv_url: the service; None is OSV's own.

    Raises:
        BrokenError: it gave no answer that can be read.
    """
    results = [_run(batch, osv_url) for batch in _batches(pins)]
    return Audit(
        frozenset().union(*(each.audited for each in results)),
        {name: why for each in results for name, why in each.skipped.items()},
        tuple(found for each in results for found in each.vulnerabilities),
    )


def _batches(pins: Iterable[Pin]) -> Iterator[list[Pin]]:
    by_name: dict[str, dict[Version, Pin]] = defaultdict(dict)
    for pin in pins:
        by_name[pin.name][pin.version] = pin
    while batch := [versions.popitem()[1] for versions in by_name.values() if versions]:
        yield batch


def _run(pins: Sequence[Pin], osv_url: str | None) -> Audit:
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="jobworker-audit-") as directory:
        path = Path(directory) / "requirements.txt"
        path.write_text("".join(f"{pin} {_HASH}\n" for pin in pins))
        command = [sys.executable, "-m", "pip_audit", f"--requirement={path}", "--require-hashes"]
        command += ["--disable-pip", "--strict", "--progress-spinner=off", "--format=json"]
        # A cache of its own: an old one could answer for a service that is unreachable.
        command += [f"--cache-dir={directory}/cache", "--vulnerability-service=osv"]
        if osv_url is not None:
            command.append(f"--osv-url={osv_url}")
            # Our own endpoint is on loopback, where a proxy cannot reach it.
            environment |= {"NO_PROXY": "*", "no_proxy": "*"}
        done = run(command, AUDIT_TIMEOUT_S, environment=environment)
    try:
        return _read(done.stdout)
    except (ValueError, InvalidVersion) as error:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2][:500]
        proxies = [] if osv_url is not None else _proxies()
        through = f"; it was asked through {', '.join(proxies)}" if proxies else ""
        raise BrokenError(
            f"pip-audit gave no answer (exit code {done.exit_code}): {last or error}{through}"
        ) from error


def _proxies() -> list[str]:
    """Return the variables of the environment that send calls to the service through a proxy."""
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    return [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]


@dataclass(frozen=True, slots=True)
class _Advisory:
    id: str
    fix_versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Dependency:
    name: str
    version: str | None = None
    skip_reason: str | None = None
    vulns: tuple[_Advisory, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    dependencies: tuple[_Dependency, ...]


def _read(text: str) -> Audit:
    """Return what `pip-audit --format=json` printed.

    Raises:
        ValueError: it is of another form.
    """
    audited: set[tuple[str, Version]] = set()
    skipped: dict[str, str] = {}
    found: list[Vulnerability] = []
    for each in msgspec.convert(json.loads(text), type=_Answer).dependencies:
        name = canonicalize_name(each.name)
        if each.skip_reason is not None or each.version is None or each.vulns is None:
            skipped[name] = each.skip_reason or "no version, or no list of vulnerabilities"
            continue
        audited.add((name, Version(each.version)))
        found += [
            Vulnerability(name, each.version, advisory.id, advisory.fix_versions)
            for advisory in each.vulns
        ]
    return Audit(frozenset(audited), skipped, tuple(found))


def require_complete(result: Audit, pins: Iterable[Pin]) -> None:
    """Require that every pin was audited, at its version.

    Raises:
        BrokenError: some were not, or there are no pins.
    """
    if result.skipped:
        shown = "; ".join(f"{name}: {why}" for name, why in sorted(result.skipped.items()))
        raise BrokenError(f"{len(result.skipped)} packages were skipped: {shown[:500]}")
    wanted = {(pin.name, pin.version): pin for pin in pins}
    missing = [str(pin) for key, pin in wanted.items() if key not in result.audited]
    if missing or not wanted:
        raise BrokenError(
            f"{len(missing)} of {len(wanted)} packages were not audited: "
            f"{', '.join(missing[:_SHOWN_MAX])}"
        )


def installed_pins() -> tuple[Pin, ...]:
    """Return the packages that are installed beside this program, but for this project itself.

    Raises:
        BrokenError: one has no name or a version that is not PEP 440's.
    """
    pins = []
    for each in metadata.distributions():
        name, version = each.metadata["Name"], each.version
        try:
            pin = Pin(canonicalize_name(name), Version(version), applies=True, origin="installed")
        except (TypeError, AttributeError, InvalidVersion) as error:
            raise BrokenError(f"an installed package is {name!r} {version!r}: {error}") from error
        if pin.name != OWN_PACKAGE:
            pins.append(pin)
    return tuple(pins)


@dataclass(frozen=True, slots=True)
class Canary:
    """A known-bad pin, in a form in which one could be overlooked.

    Attributes:
        kind: the form.
        pin: as NAME==VERSION; vulnerable by any database of the last years.
        lines: a requirements file; "{nested}" is the path of one with the second text.
        nested: that second text.
    """

    kind: str
    pin: str
    lines: str
    nested: str = ""


CANARIES: Final = (
    Canary("plain", "urllib3==1.24.1", f"urllib3==1.24.1 {_HASH}\n"),
    Canary("nested file", "jinja2==2.10", "-r {nested}\n", f"jinja2==2.10 {_HASH}\n"),
    Canary("other spelling", "pyyaml==5.1", f"  PyYAML == 05.01 \\\n    {_HASH}\n"),
    Canary("marker", "requests==2.19.1", f"requests==2.19.1 ; python_version > '3' {_HASH}\n"),
    Canary("extra", "twisted==19.2.0", f"twisted[tls]==19.2.0 {_HASH}\n"),
)


def require_canaries(osv_url: str | None) -> dict[Canary, int]:
    """Require that each canary is read and flagged; return by how many advisories.

    Raises:
        BrokenError: one is not: this check would overlook a package of its form, or the service
            knows no vulnerabilities.
    """
    pins: dict[Canary, Pin] = {}
    with tempfile.TemporaryDirectory(prefix="jobworker-canaries-") as directory:
        for number, canary in enumerate(CANARIES):
            path, nested = Path(directory) / f"{number}.txt", Path(directory) / f"{number}-in.txt"
            nested.write_text(canary.nested)
            path.write_text(canary.lines.format(nested=nested))
            [pins[canary]] = [pin for pin in read_pins(path) if pin.applies]
    result = audit(list(pins.values()), osv_url)
    flagged = {
        canary: sum(found.package == pin.name for found in result.vulnerabilities)
        for canary, pin in pins.items()
    }
    for canary, count in flagged.items():
        if not count:
            raise BrokenError(
                f"the canary {canary.pin} ({canary.kind}), known to be vulnerable, was not "
                "flagged: the service does not know vulnerabilities"
            )
    return flagged
