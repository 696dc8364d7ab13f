"""Dumps of advisories: versions are compared by PEP 440; an invalid record is not skipped."""

import datetime as dt
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from harness.record.verdict import BrokenError
from harness.vulncheck.database import Database, load_database

PACKAGE = {"ecosystem": "PyPI", "name": "Some_Name"}
MODIFIED = "2026-11-01T00:00:00Z"


def load(path: Path, *records: Any) -> Database:
    with zipfile.ZipFile(path, "w") as archive:
        for number, record in enumerate(records):
            text = record if isinstance(record, str) else json.dumps(record)
            archive.writestr(f"{number}.json", text)
    return load_database(path)


def record(*affected: Any, **more: Any) -> dict[str, Any]:
    return {"id": "TEST-1", "modified": MODIFIED, "affected": list(affected), **more}


def listed(*versions: str) -> dict[str, Any]:
    return {"package": PACKAGE, "versions": list(versions)}


def ranged(*events: dict[str, str]) -> dict[str, Any]:
    return {"package": PACKAGE, "ranges": [{"type": "ECOSYSTEM", "events": list(events)}]}


@pytest.mark.parametrize(
    ("advisory", "pin"),
    [
        ("1.01", "1.1"), ("1.1", "1.01"), ("1.1", "1.1.0"), ("1.0rc1", "1.0-RC.1"),
        ("v1.1", "1.1"), ("1.0.post1", "1.0-1"), ("1!2", "1!2.0"),
    ],
)  # fmt: skip
def test_listed_version_is_compared_by_pep_440(advisory: str, pin: str, tmp_path: Path) -> None:
    database = load(tmp_path / "all.zip", record(listed("0.1", advisory)))
    assert database.query("some.name", Version(pin))
    assert not database.query("some-name", Version("9"))


@pytest.mark.parametrize(
    "affected",
    [
        {"package": PACKAGE},
        {"package": PACKAGE, "versions": None, "ranges": None},
        {"package": PACKAGE, "ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]},
        {"package": PACKAGE, "ranges": [{"type": "ECOSYSTEM", "events": [{}]}]},
        {"package": PACKAGE, "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "?"}]}]},
        {"package": PACKAGE, "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}]}]},
        {"package": {**PACKAGE, "ecosystem": "PyPI:https://example.org"}, "versions": ["1.0"]},
        {"package": PACKAGE, "versions": ["release-1"]},
        ranged({"introducd": "0"}),
        ranged(),
        ranged({"fixed": "0.5"}),
        ranged({"last_affected": "0.5"}),
        ranged({"fixed": "0.5", "introduced": "2"}),
        ranged({"introduced": "1.0"}, {"last_affected": "1.0"}),
        ranged({"introduced": "0"}, {"limit": "*"}),
    ],
)
def test_entry_without_comparable_versions_affects_every_version(
    affected: dict[str, Any], tmp_path: Path
) -> None:
    [found] = load(tmp_path / "all.zip", record(affected)).query("some-name", Version("1.0"))
    assert found["affected"][0]["ranges"] is not None  # pip-audit iterates over both
    assert found["affected"][0]["versions"] is not None


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [
        (record(affected=None) | {"affected": None}, "about no package"),
        ({"id": "TEST-2", "modified": MODIFIED}, "about no package"),
        (record({"versions": ["1.0"]}), "about no Python package"),
        (record({"package": None, "versions": ["1.0"]}), "about no Python package"),
        (record({"package": {"ecosystem": "npm", "name": "x"}}), "about no Python package"),
        (record(listed("1.0"), withdrawn=MODIFIED), "withdrawn"),
    ],
)
def test_record_that_cannot_apply_is_skipped_and_counted(
    skipped: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    database = load(tmp_path / "all.zip", skipped, record(listed("2.0")))
    assert database.skipped == {reason: 1}
    assert database.size == 1
    assert not database.query("some-name", Version("1.0"))


def test_entry_without_package_does_not_hide_others_of_its_record(tmp_path: Path) -> None:
    database = load(tmp_path / "all.zip", record({"versions": ["3"]}, listed("1.0")))
    [found] = database.query("some-name", Version("1.0"))
    assert [each["package"] for each in found["affected"]] == [PACKAGE]


@pytest.mark.parametrize(
    "unreadable",
    [
        [], 1, "null", {"id": 1}, {},
        record({"package": {"ecosystem": "PyPI"}}),
        record({"package": {"name": "x"}}),
        record({"package": PACKAGE, "versions": "1.0"}),
        record({"package": PACKAGE, "ranges": [{"events": []}]}),
        record("x"),
        record(listed("1.0"), modified="yesterday"),
        record(listed("1.0"), modified=None),
        "[" * 100_000 + "]" * 100_000,
        "no JSON",
    ],
)  # fmt: skip
def test_invalid_record_makes_the_dump_invalid(unreadable: Any, tmp_path: Path) -> None:
    with pytest.raises(BrokenError, match=r"is invalid|not a dump of advisories"):
        load(tmp_path / "all.zip", record(listed("1.0")), unreadable)


def test_date_is_that_of_the_newest_change_in_any_format(tmp_path: Path) -> None:
    changes = ["2026-11-01T00:00:00", "2026-11-01T01:00:00+02:00", "2026-10-31T23:30:00.5Z"]
    database = load(
        tmp_path / "all.zip", *(record(listed("1"), modified=change) for change in changes)
    )
    assert database.date == dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
