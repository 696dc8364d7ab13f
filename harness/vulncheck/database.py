"""A dump of advisories in OSV's format (`all.zip`: one JSON file a record), and what it knows.

Source: https://ossf.github.io/osv-schema/ ("affected", "evaluation").
"""

import datetime as dt
import json
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.record.verdict import BrokenError

ECOSYSTEM: Final = "PyPI"
RECORDS_MAX: Final = 200_000
# Variables that stand for `vulncheck --offline` and `--allow-stale`.
ADVISORIES: Final = "JOBWORKER_ADVISORIES"
ALLOW_STALE: Final = "JOBWORKER_ALLOW_STALE"
# The PyPA's own database, a part of OSV's, had 2,651 in October 2024: with fewer, some are missing.
RECORDS_MIN: Final = 2_500
RECORD_MAX_BYTES: Final = 4 * 1024 * 1024

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Database:
    """Advisories by package.

    Attributes:
        date: of the newest change in it.
        size: how many records it has for Python's packages.
        by_name: records by normalized package name.
    """

    date: dt.datetime
    size: int
    by_name: Mapping[str, tuple[Record, ...]]

    def query(self, name: str, version: str) -> list[Record]:
        """Return the records that a version of a package is affected by."""
        wanted = canonicalize_name(name)
        return [
            record
            for record in self.by_name.get(wanted, ())
            if any(_is_affected(each, wanted, version) for each in record["affected"])
        ]


def load_database(path: Path) -> Database:
    """Read a dump.

    Raises:
        BrokenError: it is not there, no dump, or has nothing for Python.
    """
    by_name: dict[str, list[Record]] = defaultdict(list)
    newest, size = "", 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if each.filename.endswith(".json")]
            if len(members) > RECORDS_MAX or any(m.file_size > RECORD_MAX_BYTES for m in members):
                raise BrokenError(f"{path} is no dump of advisories: too many or too large records")
            for member in members:
                record = json.loads(archive.read(member))
                newest = max(newest, str(record.get("modified", "")))
                names = _names(record)
                size += bool(names)
                for name in names:
                    by_name[name].append(record)
        date = dt.datetime.fromisoformat(newest)
    except (OSError, zipfile.BadZipFile, ValueError, AttributeError, KeyError) as error:
        raise BrokenError(
            f"{path} is no dump of advisories ({error}); give an OSV all.zip of PyPI"
        ) from error
    return Database(date, size, {name: tuple(records) for name, records in by_name.items()})


def _names(record: Record) -> set[str]:
    if record.get("withdrawn"):
        return set()
    return {
        canonicalize_name(affected["package"]["name"])
        for affected in record.get("affected", [])
        if affected["package"]["ecosystem"] == ECOSYSTEM
    }


def _is_affected(affected: Record, name: str, version: str) -> bool:
    """Tell whether a version is listed, or lies in one of the ranges."""
    package = affected["package"]
    if package["ecosystem"] != ECOSYSTEM or canonicalize_name(package["name"]) != name:
        return False
    if version in affected.get("versions", ()):
        return True
    try:
        found = Version(version)
    except InvalidVersion:
        return False
    return any(
        _is_in_range(each["events"], found)
        for each in affected.get("ranges", ())
        if each["type"] == "ECOSYSTEM"
    )


def _is_in_range(events: list[Mapping[str, str]], version: Version) -> bool:
    """Walk the events in the order of their versions: in after `introduced`, out at `fixed`.

    A range that cannot be read counts as one that the version lies in: better asked than missed.
    """
    try:
        return _walk(events, version)
    except InvalidVersion:
        return True


def _walk(events: list[Mapping[str, str]], version: Version) -> bool:
    inside = False
    for event in sorted(events, key=_event_version):
        [(kind, text)] = list(event.items())[:1]
        at = Version("0") if text == "0" else Version(text)
        if kind == "introduced" and (text == "0" or version >= at):
            inside = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            inside = False
    return inside


def _event_version(event: Mapping[str, str]) -> tuple[Version, bool]:
    [(kind, text)] = list(event.items())[:1]
    # "0" stands for before the first version; a fix at a version comes before what starts there.
    return (Version("0.dev0") if text == "0" else Version(text), kind == "introduced")
