"""Runs `pip-audit` and accepts its result only with proof of what it audited."""

import dataclasses
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
OSV_URL_VARIABLE: Final = "PIP_AUDIT_OSV_URL"
# Warnings of pip-audit about records that it then passes over.
_IGNORED: Final = ("Unsupported OSV schema version", "is missing 'affected'")
OWN_PACKAGE: Final = "jobworker"  # this project, which is on no index
# pip-audit requires hashes. Nothing is downloaded, so they need not be real.
_HASH: Final = f"--hash=sha256:{'0' * 64}"
_SHOWN_MAX: Final = 5


class AuditOutcome(IntEnum):
    """The result of a vulnerability check; the numbers are its exit codes."""

    CLEAN = 0
    FOUND = 1
    NOT_AUDITED = 2


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """One vulnerability: the pinned package, the advisory, and the versions that fix it."""

    package: str
    version: str
    advisory: str
    fixed_in: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What `pip-audit` reported.

    Attributes:
        audited: the audited packages, normalized, each with its version.
        skipped: the packages that it did not audit, with the reason.
        vulnerabilities: the vulnerabilities that it found.
    """

    audited: frozenset[tuple[str, Version]]
    skipped: Mapping[str, str]
    vulnerabilities: tuple[Vulnerability, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """An advisory service.

    Attributes:
        url: of its queries; "" is OSV's own service, whose URL pip-audit knows.
        is_own: whether it is this program's endpoint on loopback.
    """

    url: str = ""
    is_own: bool = False

    def __str__(self) -> str:
        """Return it for people."""
        return self.url or "the live OSV service"


def live_service() -> Service:
    """Return OSV's service, or the one that pip-audit's own variable names."""
    return Service(os.environ.get(OSV_URL_VARIABLE, ""))


def audit(pins: Sequence[Pin], service: Service) -> Audit:
    """Run `pip-audit` on pins; several versions of one package take several runs.

    Args:
        pins: what to audit. Their normalized names and versions are passed on, so the result does
            not depend on how another parser reads them. A local version, 1.0+deb1, is audited as
            its public version too: a distribution's build of the same code.
        service: the advisory service.

    Raises:
        BrokenError: it gave no readable answer.
    """
    public = [
        dataclasses.replace(pin, version=Version(pin.version.public))
        for pin in pins
        if pin.version.local is not None
    ]
    results = [_run(batch, service) for batch in _batches([*pins, *public])]
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


def _run(pins: Sequence[Pin], service: Service) -> Audit:
    # Of pip-audit's own variables none: they change what it does.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PIP_AUDIT_")
    }
    if service.is_own:
        environment |= {"NO_PROXY": "*", "no_proxy": "*"}  # no proxy can reach our loopback
    with tempfile.TemporaryDirectory(prefix="jobworker-audit-") as directory:
        path = Path(directory) / "requirements.txt"
        path.write_text("".join(f"{pin} {_HASH}\n" for pin in pins))
        command = [sys.executable, "-m", "pip_audit", f"--requirement={path}", "--require-hashes"]
        command += ["--disable-pip", "--strict", "--progress-spinner=off", "--format=json"]
        # A new cache: an old one could answer for a service that is unreachable.
        command += [f"--cache-dir={directory}/cache", "--vulnerability-service=osv"]
        command += [f"--osv-url={service.url}"] if service.url else []
        done = run(command, AUDIT_TIMEOUT_S, environment=environment)
    if ignored := [text for text in _IGNORED if text in done.stderr]:
        raise BrokenError(f"pip-audit ignored a part of the answer: {ignored[0]}")
    try:
        return _read(done.stdout)
    except (ValueError, InvalidVersion) as error:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2][:500]
        proxies = [] if service.is_own else _proxies()
        through = f"; queried through {', '.join(proxies)}" if proxies else ""
        raise BrokenError(
            f"pip-audit failed (exit code {done.exit_code}): {last or error}{through}"
        ) from error


def _proxies() -> list[str]:
    """Return the environment variables that route queries through a proxy."""
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
    """Parse the output of `pip-audit --format=json`.

    Raises:
        ValueError: it has another form.
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
        BrokenError: packages were skipped or are missing from the result, or `pins` is empty.
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
    """Return the packages installed in this environment, without this project.

    Raises:
        BrokenError: a package has no name, or its version does not follow PEP 440.
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
    """A known-bad pin, in a form that a parser could overlook.

    Attributes:
        kind: the form.
        pin: NAME==VERSION; vulnerable in every database since 2019.
        lines: a requirements file; "{nested}" is replaced by the path of a second one.
        nested: the content of that second file.
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


def require_canaries(service: Service) -> dict[Canary, int]:
    """Require that each canary is read and flagged; return the number of its advisories.

    Raises:
        BrokenError: one is not flagged: pins of its form would be overlooked, or the service does
            not know vulnerabilities.
    """
    pins: dict[Canary, Pin] = {}
    with tempfile.TemporaryDirectory(prefix="jobworker-canaries-") as directory:
        for number, canary in enumerate(CANARIES):
            path, nested = Path(directory) / f"{number}.txt", Path(directory) / f"{number}-in.txt"
            nested.write_text(canary.nested)
            path.write_text(canary.lines.format(nested=nested))
            [pins[canary]] = [pin for pin in read_pins(path) if pin.applies]
    result = audit(list(pins.values()), service)
    flagged = {
        canary: sum(found.package == pin.name for found in result.vulnerabilities)
        for canary, pin in pins.items()
    }
    for canary, count in flagged.items():
        if not count:
            raise BrokenError(
                f"the canary {canary.pin} ({canary.kind}) has known vulnerabilities and was not "
                "flagged; use an advisory service or dump that covers PyPI"
            )
    return flagged
