"""Real processes of a server that is protected from the OOM killer: none stays so."""

import os
import subprocess
import sys
from pathlib import Path

# Given as a program of its own: a process cannot lower again what it has raised, unless it is root.
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


def test_what_a_job_forked_before_it_was_adjusted_is_adjusted_too(tmp_path: Path) -> None:
    done = scores(tmp_path, "Cgroup")
    assert done.stdout.split() == ["0", "0", "0"]
    assert done.stderr == ""


def test_a_job_that_forks_all_the_time_is_not_looked_through_for_ever(tmp_path: Path) -> None:
    done = scores(tmp_path, "ForkBomb")
    assert set(done.stdout.split()) == {"0"}
    assert "forks faster than its OOM scores can be adjusted" in done.stderr
