"""Programs under the detector: races are reported; a program that was not watched is BROKEN."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.races.server import judge_under_detector
from harness.record.verdict import BrokenError

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, threading

class Box:
    def __init__(self):
        self.lock = threading.Lock()
        self.value = 0
    def careless(self):
        self.value += 1
    def careful(self):
        with self.lock:
            self.value += 1

if __name__ == "__main__":
    box = Box()
    threads = [threading.Thread(target=getattr(box, sys.argv[1])) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def run_under_detector(directory: Path, how: str) -> list[dict[str, object]]:
    (directory / "box.py").write_text(PROGRAM)
    (directory / "program.py").write_text(
        PROGRAM.partition("class Box")[0] + "from box import Box\n"
        "if __name__" + PROGRAM.partition("if __name__")[2]
    )
    (directory / "watch.py").write_text(
        "from box import Box\nfrom harness.races.instrumentation import Watch\n"
        "WATCH = Watch((Box,))\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "harness.races.live", "--watch", str(directory / "watch.py"),
            "--report", str(directory / "report"), "-m", "program", how,
        ],
        cwd=ROOT, env={"PYTHONPATH": f"{directory}:{ROOT}"}, timeout=60, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (directory / "report").read_text().splitlines()]
    assert ("DATA RACE on Box.value" in done.stderr) == any("found" in line for line in lines)
    return lines


def test_race_in_a_program_is_reported(tmp_path: Path) -> None:
    lines = run_under_detector(tmp_path, "careless")
    assert "begun" in lines[0]
    assert any("DATA RACE on Box.value" in str(line.get("found")) for line in lines)
    assert "ended" in lines[-1]


def test_program_without_races_has_no_findings_but_counted_accesses(tmp_path: Path) -> None:
    begun, ended = run_under_detector(tmp_path, "careful")
    assert begun["begun"] == ended["ended"]
    assert isinstance(ended["accesses"], int)
    assert ended["accesses"] >= 4
    assert ended["threads"] == 3  # the main thread and two


@pytest.mark.timeout(300)
def test_server_without_watched_classes_is_broken(tmp_path: Path) -> None:
    (tmp_path / "watch.py").write_text(
        "from harness.races.instrumentation import Watch\nWATCH = Watch(())\n"
    )
    launch = (
        "worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} --no-limits"
    )
    with pytest.raises(BrokenError, match="recorded no access"):
        judge_under_detector(tmp_path / "watch.py", launch, "^streams.after-end$")
