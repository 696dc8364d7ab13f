"""Programs under the detector: what races is reported, and what was not seen is no success."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.races.server import judge_watched
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


def under_the_detector(directory: Path, how: str) -> list[dict[str, object]]:
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


def test_a_race_in_a_program_is_reported(tmp_path: Path) -> None:
    lines = under_the_detector(tmp_path, "careless")
    assert "begun" in lines[0]
    assert any("DATA RACE on Box.value" in str(line.get("found")) for line in lines)
    assert "ended" in lines[-1]


def test_a_sound_program_is_silent_and_was_seen(tmp_path: Path) -> None:
    begun, ended = under_the_detector(tmp_path, "careful")
    assert begun["begun"] == ended["ended"]
    assert isinstance(ended["accesses"], int)
    assert ended["accesses"] >= 4
    assert ended["threads"] == 3  # the main one and two


@pytest.mark.timeout(300)
def test_a_server_in_which_nothing_is_watched_is_not_taken_for_a_sound_one(tmp_path: Path) -> None:
    (tmp_path / "watch.py").write_text(
        "from harness.races.instrumentation import Watch\nWATCH = Watch(())\n"
    )
    launch = (
        "worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} --no-limits"
    )
    with pytest.raises(BrokenError, match="saw no access"):
        judge_watched(tmp_path / "watch.py", launch, "^streams.after-end$")
