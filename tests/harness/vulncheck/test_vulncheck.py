"""The vulnerability check: clean, found or not audited, and never clean when not audited."""

import contextlib
import datetime as dt
import http.client
import json
import os
import re
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from packaging.version import Version

from harness.cli.vulncheck import vulncheck as command
from harness.host.ports import free_port
from harness.record.verdict import BrokenError
from harness.vulncheck.audit import CANARIES, Audit, _read, installed_pins, require_complete
from harness.vulncheck.database import RECORDS_MIN, Database, load_database
from harness.vulncheck.endpoint import serve
from harness.vulncheck.pins import parse_pin

ROOT = Path(__file__).parents[3]
NOW = dt.datetime.now(dt.UTC)
HASH = "--hash=sha256:" + "0" * 64
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


CANARY_RECORDS = [
    record(pin.name, {"introduced": "0"}, {"last_affected": str(pin.version)})
    for pin in (parse_pin(canary.pin) for canary in CANARIES)
]
PLANTED = record("planted", {"introduced": "1.0"}, {"fixed": "1.6"})


def dump(path: Path, *records: dict[str, Any], others: int = RECORDS_MIN) -> Path:
    """Write a dump of some records, and of as many others as a complete one has."""
    rest = (
        record(f"other-{number}", {"introduced": "0"}, modified=OLD) for number in range(others)
    )
    with zipfile.ZipFile(path, "w") as archive:
        for number, each in enumerate((*records, *rest)):
            archive.writestr(f"{number}.json", json.dumps(each))
    return path


class Done(NamedTuple):
    """How the command ended."""

    returncode: int
    stdout: str
    stderr: str


# A developer's own settings must not decide a test.
UNSET = {
    name: None
    for name in os.environ
    if name.lower().endswith("_proxy") or name.startswith(("JOBWORKER_", "PIP_AUDIT_"))
}


def vulncheck(lock: Path | None, *words: str, environment: dict[str, str] | None = None) -> Done:
    """Run the command in this process: pip-audit, which it runs, is a process of its own."""
    chosen = ["--requirements", str(lock)] if lock else []
    runner = CliRunner(env={**UNSET, **(environment or {})})
    run = runner.invoke(command, [*chosen, *words])
    assert run.exception is None or isinstance(run.exception, SystemExit), run.exception
    return Done(run.exit_code, run.stdout, run.stderr)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text(LOCK)
    return path


def test_planted_vulnerability_is_reported_with_its_fix(lock: Path, tmp_path: Path) -> None:
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", *CANARY_RECORDS, PLANTED)))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FOUND planted 1.5: TEST-planted; fixed in 1.6" in done.stdout
    assert "1 vulnerabilities in 2 packages (2 pinned in lock.txt; 1 more" in done.stdout


def test_packages_without_advisories_are_clean(lock: Path, tmp_path: Path) -> None:
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", *CANARY_RECORDS)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CLEAN: 2 packages (2 pinned in lock.txt; 1 more for other machines" in done.stdout
    assert f"by a database of {NOW:%Y-%m-%d}" in done.stdout
    more = dump(tmp_path / "more.zip", *CANARY_RECORDS, record("more", {"introduced": "0"}))
    also = vulncheck(lock, "--offline", str(more), "--also", "more==1.0")
    assert also.returncode == 1, also.stdout + also.stderr


def test_database_without_the_canary_is_not_an_audit(lock: Path, tmp_path: Path) -> None:
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", PLANTED)))
    assert done.returncode == 2
    assert "NOT AUDITED: the canary urllib3==1.24.1" in done.stderr


def test_stale_database_is_refused_unless_allowed(lock: Path, tmp_path: Path) -> None:
    old = [{**each, "modified": OLD} for each in CANARY_RECORDS]
    path = str(dump(tmp_path / "all.zip", *old))
    refused = vulncheck(lock, "--offline", path)
    assert refused.returncode == 2
    assert "the database of 2024-10-10 is " in refused.stderr
    allowed = vulncheck(lock, "--offline", path, "--allow-stale")
    assert allowed.returncode == 0
    assert "by a STALE database of 2024-10-10" in allowed.stdout


def test_incomplete_database_is_not_an_audit(lock: Path, tmp_path: Path) -> None:
    npm = [record("elsewhere", {"introduced": "0"}) for _ in range(RECORDS_MIN)]
    for each in npm:
        each["affected"][0]["package"]["ecosystem"] = "npm"
    for records in (CANARY_RECORDS[:1], [CANARY_RECORDS[0], *npm]):
        done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", *records, others=0)))
        assert done.returncode == 2, done.stdout + done.stderr
        assert "NOT AUDITED: the database has 1 advisories for PyPI packages" in done.stderr


def test_record_dated_in_the_future_does_not_make_a_stale_database_fresh(
    lock: Path, tmp_path: Path
) -> None:
    tomorrow = (NOW + dt.timedelta(days=2)).isoformat().replace("+00:00", "Z")
    future = record("future", {"introduced": "0"}, modified=tomorrow)
    path = str(dump(tmp_path / "all.zip", {**CANARY_RECORDS[0], "modified": OLD}, future))
    for words in ([], ["--allow-stale"]):
        done = vulncheck(lock, "--offline", path, *words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "in the future" in done.stderr


def test_unreachable_service_is_not_an_audit(lock: Path) -> None:
    unreachable = {"PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{free_port()}/v1/query"}
    done = vulncheck(lock, environment=unreachable)
    assert done.returncode == 2
    assert "NOT AUDITED: pip-audit failed" in done.stderr


@pytest.mark.parametrize("content", [b"", b"PK no zip", None])
def test_invalid_dump_is_not_an_audit(content: bytes | None, lock: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    if content is not None:
        path.write_bytes(content)
    done = vulncheck(lock, "--offline", str(path))
    assert done.returncode == 2
    assert "NOT AUDITED" in done.stderr
    assert "Traceback" not in done.stderr


def test_invalid_arguments_are_not_an_audit(lock: Path, tmp_path: Path) -> None:
    for words in (["--also", "planted"], ["--also", "planted>=1.0"], ["--also", "x==1; rm"]):
        done = vulncheck(lock, *words)
        assert done.returncode == 2
        assert "write NAME==VERSION" in done.stderr
    assert vulncheck(tmp_path / "missing").returncode == 2
    lock.write_text("planted>=1\n")
    assert (
        vulncheck(lock, "--offline", str(dump(tmp_path / "a.zip", *CANARY_RECORDS))).returncode == 2
    )


def test_skipped_or_missing_packages_are_not_audited() -> None:
    answer = {
        "dependencies": [
            {"name": "A_B", "version": "1.0", "vulns": []},
            {"name": "c", "skip_reason": "not found"},
        ]
    }
    result = _read(json.dumps(answer))
    audited = frozenset({("a-b", Version("1"))})
    assert result == Audit(audited, {"c": "not found"}, ())
    with pytest.raises(BrokenError, match="1 packages were skipped: c: not found"):
        require_complete(result, [parse_pin("a-b==1")])
    for missing in ("b==1", "a-b==2"):
        with pytest.raises(BrokenError, match=rf"^1 of 2 packages were not audited: {missing}$"):
            require_complete(Audit(audited, {}, ()), [parse_pin("A.B==1.0"), parse_pin(missing)])
    with pytest.raises(BrokenError, match="0 of 0"):
        require_complete(Audit(frozenset(), {}, ()), [])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dependencies": [{"name": 1}]}'])
def test_answer_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        _read(text)


def test_own_lock_file_and_environment_are_audited_together(tmp_path: Path) -> None:
    """Every installed package is in the lock file; any other would be listed."""
    done = vulncheck(None, "--offline", str(dump(tmp_path / "all.zip", *CANARY_RECORDS)))
    assert done.returncode == 0, done.stdout + done.stderr
    count = len(installed_pins())
    assert f"all {count} installed packages" in done.stdout
    assert count > 40


# Each names a package of its own, so that one audit shows which forms are read.
FORMS = (
    f"\ufeff  with-mark==1.5 \\\n  {HASH}\n",  # a mark stands at the beginning of a file
    "-r other-1.txt\n",
    "-r {directory}/other-2.txt\n",
    "--requirement=other-3.txt\n",
    f"Capital == 01.5 {HASH}\n",
    f"with-extra[more]==1.5 {HASH}\n",
    f"identical===1.5.0 {HASH}\n",
    f"with-marker==1.5 ; python_version > '3' {HASH}\n",
)
NAMED = {"with-mark", "other-1", "other-2", "other-3", "capital", "with-extra", "identical",
         "with-marker"}  # fmt: skip


def test_vulnerable_pin_is_found_in_every_form(tmp_path: Path) -> None:
    for name in ("other-1", "other-2", "other-3"):
        (tmp_path / f"{name}.txt").write_text(f"{name}==1.5 {HASH}\n")
    lock = tmp_path / "lock.txt"
    lock.write_text("".join(FORMS).replace("{directory}", str(tmp_path)))
    planted = [record(name, {"introduced": "1.0"}, {"fixed": "1.6"}) for name in NAMED]
    done = vulncheck(lock, "--offline", str(dump(tmp_path / "all.zip", *CANARY_RECORDS, *planted)))
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(NAMED) == len(FORMS)
    assert set(re.findall(r"^FOUND (\S+) 1\.5", done.stdout, re.MULTILINE)) == NAMED


def test_own_endpoint_is_never_queried_through_proxy(lock: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"), url)
    path = str(dump(tmp_path / "all.zip", *CANARY_RECORDS))
    done = vulncheck(lock, "--offline", path, environment=unreachable)
    assert done.returncode == 0, done.stdout + done.stderr


def test_failure_through_proxy_names_the_variable(lock: Path) -> None:
    unreachable = {"https_proxy": f"http://127.0.0.1:{free_port()}"}
    done = vulncheck(lock, environment=unreachable)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"through https_proxy={unreachable['https_proxy']}" in done.stderr


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
def test_query_evaluates_ranges_as_osv_specifies(
    events: list[dict[str, str]], inside: list[str], outside: list[str], tmp_path: Path
) -> None:
    database = load_database(dump(tmp_path / "all.zip", record("Some_Name", *events)))
    assert [v for v in inside if not database.query("some-name", Version(v))] == []
    assert [v for v in outside if database.query("some-name", Version(v))] == []


def test_query_ignores_withdrawn_records_other_ecosystems_and_invalid_versions(
    tmp_path: Path,
) -> None:
    other = record("here", {"introduced": "0"})
    other["affected"][0]["package"]["ecosystem"] = "npm"
    withdrawn = record("here", {"introduced": "0"}, withdrawn="2024-01-01T00:00:00Z")
    database = load_database(dump(tmp_path / "all.zip", other, withdrawn, CANARY_RECORDS[0]))
    assert database.query("here", Version("1.0")) == []


def post(url: str, body: bytes) -> tuple[int, bytes]:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", parts.path, body)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"package": {}}', b'{"version": "1"}'])
def test_endpoint_refuses_invalid_queries(body: bytes) -> None:
    with serve(Database(NOW, 0, {})) as endpoint:
        assert post(endpoint.url, body)[0] == 400
        assert post(endpoint.url, b'{"package": {"name": "x"}, "version": "1"}') == (200, b"{}")
        assert endpoint.queried() == {("x", Version("1"))}


def test_record_that_pip_audit_would_drop_is_found(tmp_path: Path) -> None:
    changes: dict[str, dict[str, str | None]] = {
        "of-another-schema": {"schema_version": "2.0.0"},
        "withdrawn-by-nobody": {"withdrawn": ""},
        "withdrawn-never": {"withdrawn": None},
    }
    lock = tmp_path / "lock.txt"
    lock.write_text("".join(f"{name}==1.5 {HASH}\n" for name in changes))
    records = [{**record(name, {"introduced": "1.0"}), **changes[name]} for name in changes]
    path = str(dump(tmp_path / "all.zip", *CANARY_RECORDS, *records))
    done = vulncheck(lock, "--offline", path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert set(re.findall(r"^FOUND (\S+) 1\.5", done.stdout, re.MULTILINE)) == set(changes)


def test_local_version_is_audited_as_its_public_version_too(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"planted==1.5+deb1 {HASH}\n")
    last = record("planted", {"introduced": "0"}, {"last_affected": "1.5"})
    path = str(dump(tmp_path / "all.zip", *CANARY_RECORDS, last))
    done = vulncheck(lock, "--offline", path)
    assert done.returncode == 1, done.stdout + done.stderr
