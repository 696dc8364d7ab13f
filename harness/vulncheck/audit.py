"""Runs `pip-audit` and believes it only as far as it shows what it did."""

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.host.processes import run
from harness.record.verdict import BrokenError

AUDIT_TIMEOUT_S: Final = 300.0
# Vulnerable by any database of the last years: CVE-2019-11324 and more.
CANARY: Final = "urllib3==1.24.1"
# pip-audit wants hashes; none is fetched, so the canary's need not be real.
_CANARY_LINE: Final = f"{CANARY} --hash=sha256:{'0' * 64}\n"


class AuditOutcome(IntEnum):
    """What a check came to; the numbers are its exit codes."""

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
        audited: packages that it came back with, normalized, and their versions.
        skipped: packages that it did not audit, and why.
        vulnerabilities: what it found.
    """

    audited: Mapping[str, str]
    skipped: Mapping[str, str]
    vulnerabilities: tuple[Vulnerability, ...]


def locked_packages(lock: str) -> set[str]:
    """Return the packages of a lock file that apply to this machine, normalized."""
    names: set[str] = set()
    for line in lock.splitlines():
        if not line[:1].isalnum():
            continue
        text = line.partition(" --hash")[0].rstrip("\\ ").strip()
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise BrokenError(f"the lock file has {line!r}, which is no pin: {error}") from error
        if requirement.marker is None or requirement.marker.evaluate():
            names.add(canonicalize_name(requirement.name))
    return names


def audit(requirements: str, osv_url: str | None) -> Audit:
    """Run `pip-audit` on pinned and hashed requirements.

    Args:
        requirements: the text of a requirements file.
        osv_url: where to ask; None is OSV's own service.

    Raises:
        BrokenError: it did not come back with an answer that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="jobworker-audit-") as directory:
        path = Path(directory) / "requirements.txt"
        path.write_text(requirements)
        command = [sys.executable, "-m", "pip_audit", f"--requirement={path}", "--require-hashes"]
        command += ["--disable-pip", "--strict", "--progress-spinner=off", "--format=json"]
        # A cache of its own: an old one could answer for a service that is away.
        command += [f"--cache-dir={directory}/cache", "--vulnerability-service=osv"]
        if osv_url is not None:
            command.append(f"--osv-url={osv_url}")
        done = run(command, AUDIT_TIMEOUT_S)
    try:
        return _read(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2][:500]
        raise BrokenError(
            f"pip-audit gave no answer (exit code {done.exit_code}): {last or error}"
        ) from error


def _read(answer: Mapping[str, list[dict[str, object]]]) -> Audit:
    audited: dict[str, str] = {}
    skipped: dict[str, str] = {}
    found = []
    for each in answer["dependencies"]:
        name = canonicalize_name(str(each["name"]))
        if "skip_reason" in each or "version" not in each:
            skipped[name] = str(each.get("skip_reason", "no version"))
            continue
        audited[name] = str(each["version"])
        vulnerabilities = each["vulns"]
        if not isinstance(vulnerabilities, list):
            raise TypeError(f"vulns of {name} is no list")
        for vulnerability in vulnerabilities:
            fixed = tuple(map(str, vulnerability.get("fix_versions", ())))
            found.append(Vulnerability(name, str(each["version"]), str(vulnerability["id"]), fixed))
    return Audit(audited, skipped, tuple(found))


def require_canary(osv_url: str | None) -> int:
    """See that the known-bad pin is flagged; return by how many advisories.

    Raises:
        BrokenError: it is not: whatever was asked is no database of vulnerabilities.
    """
    found = audit(_CANARY_LINE, osv_url).vulnerabilities
    if not found:
        raise BrokenError(
            f"the canary {CANARY}, known to be vulnerable, was not flagged: what was asked does "
            "not know vulnerabilities"
        )
    return len(found)


def require_complete(result: Audit, wanted: set[str]) -> None:
    """See that every package that was to be audited was.

    Raises:
        BrokenError: some were not.
    """
    if result.skipped:
        shown = "; ".join(f"{name}: {why}" for name, why in sorted(result.skipped.items())[:5])
        raise BrokenError(f"{len(result.skipped)} packages were skipped: {shown}")
    missing = wanted - set(result.audited)
    if missing or not wanted:
        raise BrokenError(
            f"{len(missing)} of {len(wanted)} packages did not come back audited: "
            f"{', '.join(sorted(missing)[:5])}"
        )


def is_pin(text: str) -> bool:
    """Tell whether a text is one pinned package, NAME==VERSION."""
    return re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", text) is not None
