"""systemd judged as a job worker, where it is this machine's service manager and we are root."""

import os
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.checks.check import Need
from harness.dialects.load import load_dialect
from harness.drive.identities import make_identities
from harness.record.verdict import Verdict
from harness.run.check_runner import Options, Silent, run_checks
from harness.targets.local import ThisHostTarget

# sd_booted(3): this directory exists if systemd is the service manager.
BOOTED = Path("/run/systemd/system")
EXPECTED = {
    "lifecycle.exit-codes": Verdict.PASS,
    "lifecycle.literal": Verdict.PASS,
    "lifecycle.stop-twice": Verdict.PASS,
}


@pytest.mark.skipif(
    not BOOTED.is_dir() or os.geteuid() != 0,
    reason=f"systemd is not this machine's service manager ({BOOTED} is missing), or no root",
)
def test_systemd_starts_ends_and_stops_jobs(tmp_path: Path) -> None:
    dialect = load_dialect("systemd")
    target = ThisHostTarget(make_identities(tmp_path / "identities"), dialect)
    checks = [check for check in ALL if check.name in EXPECTED]
    has = dict.fromkeys(Need, "")

    results = run_checks(target, checks, Options("7", tmp_path / "run"), Silent(), has)

    assert {result.name: result.verdict for result in results} == EXPECTED
