"""Real processes of a server that is protected from the OOM killer: no job stays protected."""

import os
import subprocess
import sys
from pathlib import Path

# Run as a separate program: only root can lower a score that was raised.
PROTECTED = """
import subprocess, sys
from pathlib import Path
from worker_service.cgroup import Cgroup
from worker_service.oom_score import make_killable

Path("/proc/self/oom_score_adj").write_text("300")
folder = Path(sys.argv[1])
children = []

def fork():
    children.append(subprocess.Popen(["sleep", "100"]))
    (folder / "cgroup.procs").write_text("\\n".join(str(child.pid) for child in children))

class ForkBomb(Cgroup):
    def processes(self):
        fork()
        return super().processes()

try:
    for _ in range(3):
        fork()
    make_killable(children[0].pid, {cgroup}(folder))
    print(*(Path(f"/proc/{{child.pid}}/oom_score_adj").read_text().strip() for child in children))
finally:
    for child in children:
        child.kill()
        child.wait()
"""


def scores(folder: Path, cgroup: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROTECTED.format(cgroup=cgroup), os.fspath(folder)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def test_processes_forked_before_the_adjustment_are_adjusted(tmp_path: Path) -> None:
    done = scores(tmp_path, "Cgroup")
    assert done.stdout.split() == ["0", "0", "0"]
    assert done.stderr == ""


def test_scan_of_a_fork_bomb_is_bounded_and_logged(tmp_path: Path) -> None:
    done = scores(tmp_path, "ForkBomb")
    assert set(done.stdout.split()) == {"0"}
    assert "forks faster than its OOM scores can be adjusted" in done.stderr
