"""A dump of advisories in OSV's format (`all.zip`, one JSON file per record), and queries on it.

Fails closed: an invalid record could be about any package, so it makes the whole dump invalid.
Records that cannot apply to a Python package are skipped and counted.

Source: https://ossf.github.io/osv-schema/ ("affected", "evaluation").
"""

import datetime as dt
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.record.verdict import BrokenError

# Environment variables for `vulncheck --offline` and `--allow-stale`.
ADVISORIES: Final = "JOBWORKER_ADVISORIES"
ALLOW_STALE: Final = "JOBWORKER_ALLOW_STALE"
ECOSYSTEM: Final = "PyPI"
RECORDS_MAX: Final = 200_000
# The PyPA's own database, a part of OSV's, had 2,651 in October 2024: a smaller dump lacks some.
RECORDS_MIN: Final = 2_500
RECORD_MAX_BYTES: Final = 4 * 1024 * 1024
_COMPARABLE_RANGES: Final = frozenset({"ECOSYSTEM", "SEMVER"})


@dataclass(frozen=True, slots=True)
class Package:
    """An advisory's package."""

    ecosystem: str
    name: str

    @property
    def is_python(self) -> bool:
        """Whether it is a PyPI package; a suffix after a colon names another index."""
        return self.ecosystem.partition(":")[0] == ECOSYSTEM


@dataclass(frozen=True, slots=True)
class Range:
    """Versions between events if the type is in `_COMPARABLE_RANGES`; commits if it is GIT."""

    type: str
    events: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Affected:
    """A package, and its versions that an advisory affects."""

    package: Package | None = None
    versions: tuple[str, ...] | None = None
    ranges: tuple[Range, ...] | None = None

    def includes(self, version: Version) -> bool:
        """Return whether a version is listed, or is in one of the ranges.

        Versions are compared by PEP 440: 1.01 equals 1.1. An entry without a readable version
        and without a range of versions includes every version, since it could be about this one.
        """
        ranges = [each for each in self.ranges or () if each.type in _COMPARABLE_RANGES]
        if not ranges and not any(_is_version(text) for text in self.versions or ()):
            return True
        return any(_is_same(text, version) for text in self.versions or ()) or any(
            _is_in_range(each.events, version) for each in ranges
        )


@dataclass(frozen=True, slots=True)
class Advisory:
    """One record, as far as it is read here; all times are ISO 8601."""

    id: str
    modified: str = ""
    withdrawn: str | None = None
    affected: tuple[Affected, ...] | None = None


@dataclass(frozen=True, slots=True)
class Database:
    """Advisories by package.

    Attributes:
        date: of the newest change in it.
        size: how many records it has for Python's packages.
        by_name: by normalized package name: the records, and what of each is about this package.
        skipped: how many records cannot apply, by reason.
    """

    date: dt.datetime
    size: int
    by_name: Mapping[str, Sequence[tuple[Mapping[str, Any], Affected]]]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def query(self, name: str, version: Version) -> list[Mapping[str, Any]]:
        """Return the records that affect a version of a package."""
        found = {
            record["id"]: record
            for record, affected in self.by_name.get(canonicalize_name(name), ())
            if affected.includes(version)
        }
        return list(found.values())


def load_database(path: Path) -> Database:
    """Read a dump.

    Raises:
        BrokenError: it is missing, is not a dump, or has an invalid record.
    """
    by_name: dict[str, list[tuple[Mapping[str, Any], Affected]]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    newest, size = dt.datetime.min.replace(tzinfo=dt.UTC), 0
    for name, values in _members(path):
        try:
            advisory = msgspec.convert(values, type=Advisory)
            newest = max(newest, _instant(advisory.modified))
        except ValueError as error:
            raise BrokenError(
                f"{path}: record {name} is invalid and could be about any package ({error}); "
                "fetch OSV's all.zip of PyPI again"
            ) from error
        reason = _why_skipped(advisory)
        if reason:
            skipped[reason] += 1
            continue
        size += 1
        for affected in _of_python(advisory):
            by_name[affected[0]].append((_served(values, affected[0]), affected[1]))
    if not size:
        raise BrokenError(
            f"{path} has no advisory for a Python package; give OSV's all.zip of PyPI"
        )
    return Database(newest, size, by_name, skipped)


def _members(path: Path) -> Iterator[tuple[str, object]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if each.filename.endswith(".json")]
            if len(members) > RECORDS_MAX or any(m.file_size > RECORD_MAX_BYTES for m in members):
                raise BrokenError(f"{path} is not a dump of advisories: too many or large records")
            for member in members:
                yield member.filename, json.loads(archive.read(member))
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError) as error:
        raise BrokenError(
            f"{path} is not a dump of advisories ({error}); give OSV's all.zip of PyPI"
        ) from error


def _instant(text: str) -> dt.datetime:
    """Parse an ISO 8601 time; without a zone it is UTC, as in the schema."""
    instant = dt.datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)


def _why_skipped(advisory: Advisory) -> str:
    """Return why a record cannot apply to a Python package; "" if it can."""
    if advisory.withdrawn:
        return "withdrawn"
    if not advisory.affected:
        return "about no package"
    return "" if any(_of_python(advisory)) else "about no Python package"


def _of_python(advisory: Advisory) -> Iterator[tuple[str, Affected]]:
    for affected in advisory.affected or ():
        if affected.package is not None and affected.package.is_python:
            yield canonicalize_name(affected.package.name), affected


def _served(values: Any, name: str) -> Mapping[str, Any]:  # noqa: ANN401 - JSON
    """Return a record such that pip-audit uses it: with the entries of one package alone.

    pip-audit fails on some entries of others, and silently drops records of another version of the
    schema, and those that have `withdrawn`, even if it is empty.
    """
    return {
        **{name: value for name, value in values.items() if name != "withdrawn"},
        "schema_version": "1.0.0",
        "affected": [
            {**each, "ranges": each.get("ranges") or [], "versions": each.get("versions") or []}
            for each in values["affected"]
            if (package := each.get("package"))
            and package["ecosystem"].partition(":")[0] == ECOSYSTEM
            and canonicalize_name(package["name"]) == name
        ],
    }


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _is_same(text: str, version: Version) -> bool:
    """Return whether a listed version equals this one; an invalid one equals none."""
    try:
        return Version(text) == version
    except InvalidVersion:
        return False


def _is_in_range(events: Sequence[Mapping[str, str]], version: Version) -> bool:
    """Return whether a range includes a version.

    An invalid range includes every version: a false positive is better than a miss.
    """
    try:
        return _walk(events, version)
    except (InvalidVersion, ValueError):
        return True


# Events at the same version in the order in which they act: out before in, and at the last affected
# version still in.
_EVENT_ORDER: Final = {"fixed": 0, "limit": 0, "introduced": 1, "last_affected": 2}


def _walk(events: Sequence[Mapping[str, str]], version: Version) -> bool:
    """Walk the events in the order of their versions: in after `introduced`, out at `fixed`.

    Raises:
        ValueError: an event is not one of the schema's, or none is `introduced`.
    """
    inside = False
    parsed = sorted(map(_parse_event, events))
    if not any(order == _EVENT_ORDER["introduced"] for _, order in parsed):
        raise ValueError("no version is introduced")
    for at, order in parsed:
        if order == _EVENT_ORDER["introduced"] and version >= at:
            inside = True
        elif (order == _EVENT_ORDER["fixed"] and version >= at) or (
            order == _EVENT_ORDER["last_affected"] and version > at
        ):
            inside = False
    return inside


def _parse_event(event: Mapping[str, str]) -> tuple[Version, int]:
    [(kind, text)] = event.items()
    if kind not in _EVENT_ORDER:
        raise ValueError(f"{kind!r} is not an event")
    # "0" is before the first version, pre-releases included; "*" is a limit beyond the last.
    at = {"0": "0.dev0", "*": f"{2**31}!0"}.get(text, text)
    return Version(at), _EVENT_ORDER[kind]
