"""The scanner's report is read as what it says, and what it did not scan is not taken for clean."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.drive.sslyze import environment, scan
from harness.host.processes import Done
from harness.record.verdict import BrokenError, UnsupportedError


def report(**changes: object) -> str:
    suites = {"accepted_cipher_suites": [{"cipher_suite": {"name": "TLS_AES_128_GCM_SHA256"}}]}
    results: dict[str, Any] = {
        name: {"status": "COMPLETED", "result": {"accepted_cipher_suites": []}}
        for name in scan.VERSIONS.values()
    }
    results["tls_1_3_cipher_suites"] = {"status": "COMPLETED", "result": suites}
    for name, field in scan.WEAKNESSES.values():
        results[name] = {"status": "COMPLETED", "result": {field: False}}
    server = {"scan_status": "COMPLETED", "scan_result": results | changes}
    return json.dumps({"sslyze_version": "6", "server_scan_results": [server]})


def test_what_was_accepted_and_what_was_found_is_read() -> None:
    heartbleed = {"status": "COMPLETED", "result": {"is_vulnerable_to_heartbleed": True}}
    found = scan.read(report(heartbleed=heartbleed))
    assert found.version == "6"
    assert found.suites["TLS 1.3"] == ["TLS_AES_128_GCM_SHA256"]
    assert found.suites["TLS 1.2"] == []
    assert found.weaknesses["Heartbleed"] is True
    assert found.weaknesses["compression (CRIME)"] is False


def test_what_failed_or_was_not_scanned_is_unknown_not_clean() -> None:
    failed = {"status": "ERROR", "result": None}
    found = scan.read(report(tls_1_2_cipher_suites=failed, heartbleed=failed))
    assert found.suites["TLS 1.2"] is None
    assert found.weaknesses["Heartbleed"] is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", '{"server_scan_results": []}',
        json.dumps({"server_scan_results": [
            {"scan_status": "ERROR_NO_CONNECTIVITY", "connectivity_error_trace": "no way"}]}),
    ],
)  # fmt: skip
def test_what_is_no_report_is_broken(text: str) -> None:
    with pytest.raises(BrokenError):
        scan.read(text)


def test_without_a_package_index_it_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBWORKER_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "run", lambda *_: Done(2, "", "no route to the index"))
    with pytest.raises(UnsupportedError, match="a package index must be reached once") as told:
        environment.scanner_program()
    assert "no route to the index" in str(told.value)
    assert list((tmp_path / "scanner").iterdir()) == []


def test_every_package_of_its_environment_is_pinned_with_hashes() -> None:
    lock = Path(environment.__file__).with_name(environment.LOCK_FILE).read_text()
    entries = lock.replace(" \\\n", " ").splitlines()
    assert any(entry.startswith("sslyze==") for entry in entries)
    assert any(entry.startswith("setuptools==") for entry in entries)
    for entry in entries:
        assert "==" in entry.split(" ")[0], entry
        assert "--hash=sha256:" in entry, entry
