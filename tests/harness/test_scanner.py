"""sslyze's report is read as it is; what was not scanned is unknown, not clean."""

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


def test_report_yields_suites_and_weaknesses() -> None:
    heartbleed = {"status": "COMPLETED", "result": {"is_vulnerable_to_heartbleed": True}}
    found = scan.read_report(report(heartbleed=heartbleed))
    assert found.scanner_version == "6"
    assert found.suites["TLS 1.3"] == ("TLS_AES_128_GCM_SHA256",)
    assert found.suites["TLS 1.2"] == ()
    assert found.weaknesses["Heartbleed"] is True
    assert found.weaknesses["compression (CRIME)"] is False


def test_failed_scan_is_unknown_not_clean() -> None:
    failed = {"status": "ERROR", "result": None}
    found = scan.read_report(report(tls_1_2_cipher_suites=failed, heartbleed=failed))
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
def test_text_that_is_not_a_report_is_broken(text: str) -> None:
    with pytest.raises(BrokenError):
        scan.read_report(text)


def test_missing_package_index_is_unsupported_with_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBWORKER_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "run", lambda *_: Done(2, "", "no route to the index"))
    with pytest.raises(UnsupportedError, match="a package index must be reachable once") as raised:
        environment.scanner_program()
    assert "no route to the index" in str(raised.value)
    assert list((tmp_path / "scanner").iterdir()) == []


def test_every_locked_package_is_pinned_with_hashes() -> None:
    lock = Path(environment.__file__).with_name(environment.LOCK_FILE).read_text()
    entries = lock.replace(" \\\n", " ").splitlines()
    assert any(entry.startswith("sslyze==") for entry in entries)
    assert any(entry.startswith("setuptools==") for entry in entries)
    for entry in entries:
        assert "==" in entry.split(" ")[0], entry
        assert "--hash=sha256:" in entry, entry
