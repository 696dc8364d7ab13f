"""The vulnerability check says clean, found, or not audited, and never the first for the last."""

import contextlib
import datetime as dt
import http.client
import json
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness.host.ports import free_port
from harness.record.verdict import BrokenError
from harness.vulncheck.audit import Audit, _read, locked_packages, require_complete
from harness.vulncheck.database import RECORDS_MIN, Database, load_database
from harness.vulncheck.endpoint import serving

ROOT = Path(__file__).parents[3]
NOW = dt.datetime.now(dt.UTC)
OLD = "2024-10-10T17:22:00.587279Z"
LOCK = (
    "planted==1.5 --hash=sha256:" + "0" * 64 + "\n"
    "harmless==2.0 ; sys_platform == 'linux' \\\n    --hash=sha256:" + "0" * 64 + "\n"
    "elsewhere==1.0 ; sys_platform == 'win32' --hash=sha256:" + "0" * 64 + "\n"
)


def record(name: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "id": f"TEST-{name}",
        "modified": NOW.isoformat().replace("+00:00", "Z"),
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": name},
                "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
            }
        ],
        **more,
    }


CANARY = record("urllib3", {"introduced": "0"}, {"fixed": "1.24.2"})
PLANTED = record("planted", {"introduced": "1.0"}, {"fixed": "1.6"})


def dump(path: Path, *records: dict[str, Any], others: int = RECORDS_MIN) -> Path:
    """Write a dump of some records, and of as many others as a whole one has."""
    rest = (
        record(f"other-{number}", {"introduced": "0"}, modified=OLD) for number in range(others)
    )
    with zipfile.ZipFile(path, "w") as archive:
        for number, each in enumerate((*records, *rest)):
            archive.writestr(f"{number}.json", json.dumps(each))
    return path


def vulncheck(
    lock: Path, *words: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "vulncheck", "--requirements", str(lock), *words],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", **(environment or {})}, capture_output=True,
        text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text(LOCK)
    return path


def test_a_planted_vulnerability_is_found_and_told_with_its_fix(lock: Path, tmp_path: Path) -> None:
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", CANARY, PLANTED)))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FOUND planted 1.5: TEST-planted; fixed in 1.6" in done.stdout
    assert "1 vulnerabilities in 2 locked packages" in done.stdout


def test_without_one_it_is_clean(lock: Path, tmp_path: Path) -> None:
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", CANARY)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"CLEAN: 2 locked packages, by a database of {NOW:%Y-%m-%d}" in done.stdout
    more = dump(tmp_path / "more.zip", CANARY, record("more", {"introduced": "0"}))
    also = vulncheck(lock, "--offline", str(more), "--also", "more==1.0")
    assert also.returncode == 1, also.stdout + also.stderr


def test_a_database_that_does_not_know_the_canary_is_no_audit(lock: Path, tmp_path: Path) -> None:
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", PLANTED)))
    assert done.returncode == 2
    assert "NOT AUDITED: the canary urllib3==1.24.1" in done.stderr


def test_an_old_database_is_no_plain_pass(lock: Path, tmp_path: Path) -> None:
    old = {**CANARY, "modified": OLD}
    path = str(dump(tmp_path / "all.zip", old))
    refused = vulncheck(lock, "--offline", path)
    assert refused.returncode == 2
    assert "the database is of 2024-10-10" in refused.stderr
    allowed = vulncheck(lock, "--offline", path, "--allow-stale")
    assert allowed.returncode == 0
    assert "by a STALE database of 2024-10-10" in allowed.stdout


def test_a_database_of_a_few_records_is_no_audit(lock: Path, tmp_path: Path) -> None:
    npm = [record("elsewhere", {"introduced": "0"}) for _ in range(RECORDS_MIN)]
    for each in npm:
        each["affected"][0]["package"]["ecosystem"] = "npm"
    for records in ([CANARY], [CANARY, *npm]):
        done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", *records, others=0)))
        assert done.returncode == 2, done.stdout + done.stderr
        assert "NOT AUDITED: the database has 1 advisories for Python's packages" in done.stderr


def test_one_date_of_the_future_does_not_make_an_old_database_fresh(
    lock: Path, tmp_path: Path
) -> None:
    tomorrow = (NOW + dt.timedelta(days=2)).isoformat().replace("+00:00", "Z")
    future = record("future", {"introduced": "0"}, modified=tomorrow)
    path = str(dump(tmp_path / "all.zip", {**CANARY, "modified": OLD}, future))
    for words in ([], ["--allow-stale"]):
        done = vulncheck(lock, "--offline", path, *words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "which has not come" in done.stderr


def test_a_service_that_is_away_is_no_audit(lock: Path) -> None:
    away = {"PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{free_port()}/v1/query"}
    done = vulncheck(lock, environment=away)
    assert done.returncode == 2
    assert "NOT AUDITED: pip-audit gave no answer" in done.stderr


@pytest.mark.parametrize("content", [b"", b"PK no zip", None])
def test_what_is_no_dump_is_no_audit(content: bytes | None, lock: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    if content is not None:
        path.write_bytes(content)
    done = vulncheck(lock, "--offline", str(path))
    assert done.returncode == 2
    assert "NOT AUDITED" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_no_audit(lock: Path, tmp_path: Path) -> None:
    for words in (["--also", "planted"], ["--also", "planted==1.0"], ["--also", "x==1; rm"]):
        done = vulncheck(lock, *words)
        assert done.returncode == 2
        assert "write NAME==VERSION" in done.stderr
    assert vulncheck(tmp_path / "missing").returncode == 2
    lock.write_text("planted>=1\n")
    assert vulncheck(lock, "--offline", str(dump(tmp_path / "a.zip", CANARY))).returncode == 2


def test_what_was_skipped_or_did_not_come_back_was_not_audited() -> None:
    answer: dict[str, list[dict[str, object]]] = {
        "dependencies": [
            {"name": "A_B", "version": "1", "vulns": []},
            {"name": "c", "skip_reason": "not found"},
        ]
    }
    result = _read(answer)
    assert result == Audit({"a-b": "1"}, {"c": "not found"}, ())
    with pytest.raises(BrokenError, match="1 packages were skipped: c: not found"):
        require_complete(result, {"a-b"})
    with pytest.raises(BrokenError, match="1 of 2 packages did not come back"):
        require_complete(Audit({"a": "1"}, {}, ()), {"a", "b"})
    with pytest.raises(BrokenError, match="0 of 0"):
        require_complete(Audit({}, {}, ()), set())


def test_a_lock_file_names_what_applies_here() -> None:
    assert locked_packages(LOCK) == {"planted", "harmless"}
    assert len(locked_packages((ROOT / "requirements.lock").read_text())) > 40


@pytest.mark.parametrize(
    ("events", "inside", "outside"),
    [
        ([{"introduced": "0"}, {"fixed": "2.0"}], ["0.1", "1.9", "2.0rc1"], ["2.0", "3"]),
        ([{"introduced": "1.0"}, {"last_affected": "1.5"}], ["1.0", "1.5"], ["0.9", "1.5.1"]),
        ([{"introduced": "0"}], ["0.0.1", "99"], []),
        (
            [{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "4"}],
            ["1", "1.9", "3", "3.9"], ["0.5", "2", "2.5", "4"],
        ),
        ([{"fixed": "2"}, {"introduced": "1"}], ["1.5"], ["2", "0.5"]),
        ([{"introduced": "no-version-at-all"}], ["1.5"], []),
    ],
)  # fmt: skip
def test_ranges_are_read_as_osv_means_them(
    events: list[dict[str, str]], inside: list[str], outside: list[str], tmp_path: Path
) -> None:
    database = load_database(dump(tmp_path / "all.zip", record("Some_Name", *events)))
    assert [v for v in inside if not database.query("some-name", v)] == []
    assert [v for v in outside if database.query("some-name", v)] == []


def test_withdrawn_records_other_ecosystems_and_odd_versions_do_not_count(tmp_path: Path) -> None:
    other = record("here", {"introduced": "0"})
    other["affected"][0]["package"]["ecosystem"] = "npm"
    withdrawn = record("here", {"introduced": "0"}, withdrawn="2024-01-01T00:00:00Z")
    database = load_database(dump(tmp_path / "all.zip", other, withdrawn, CANARY))
    assert database.query("here", "1.0") == []
    assert database.query("urllib3", "no version") == []


def post(url: str, body: bytes) -> tuple[int, bytes]:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", parts.path, body)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"package": {}}', b'{"version": "1"}'])
def test_the_endpoint_refuses_what_is_no_question(body: bytes) -> None:
    with serving(Database(NOW, 0, {})) as endpoint:
        assert post(endpoint.url, body)[0] == 400
        assert post(endpoint.url, b'{"package": {"name": "x"}, "version": "1"}') == (200, b"{}")
        assert endpoint.asked() == {"x"}
