"""Judges a job worker under many bursty streamers while the detector watches it from inside."""

import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.host.processes import run
from harness.record.verdict import BrokenError

CHECK_MAX_S: Final = 600.0
EXIT_BROKEN: Final = 2


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of it.

    Attributes:
        found: the detector's findings, as text.
        accesses: how many accesses it saw.
        threads: of how many threads.
        said: the end of what the checks said.
        checks_passed: whether they did.
    """

    found: tuple[str, ...]
    accesses: int
    threads: int
    said: str
    checks_passed: bool


def judge_watched(watch: Path, launch: str, checks: str, tree: Path | None = None) -> Watched:
    """Run checks against a server under the detector.

    Args:
        watch: the file with its `WATCH`.
        launch: how it is started: a Python module and its arguments, as the harness fills them in.
        checks: a regular expression: which.
        tree: a source tree that the server imports from, before all others.

    Raises:
        BrokenError: nothing can be said: the checks did not run, the server did not end by itself,
            or nothing of it was seen.
    """
    with tempfile.TemporaryDirectory(prefix="races-server-") as directory:
        report = Path(directory) / "report.jsonl"
        path = ":".join(str(each) for each in (*([tree] if tree else []), Path.cwd()))
        command = (
            f"env {shlex.quote(f'PYTHONPATH={path}')} {shlex.quote(sys.executable)} "
            f"-m harness.races.live --watch {shlex.quote(str(watch.resolve()))} "
            f"--report {shlex.quote(str(report))} -m {launch}"
        )
        out = str(Path(directory) / "results")
        done = run(
            [
                sys.executable, "-m", "harness", "check", "--keyword", checks, "--out", out,
                "--launch", command,
            ],
            CHECK_MAX_S,
        )  # fmt: skip
        said = (done.stdout + done.stderr).strip()[-3000:]
        if done.exit_code == EXIT_BROKEN or not report.exists():
            raise BrokenError(f"the checks came to no verdict:\n{said}")
        return _read(report, said, checks_passed=done.exit_code == 0)


def _read(report: Path, said: str, *, checks_passed: bool) -> Watched:
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    begun = sorted(line["begun"] for line in lines if "begun" in line)
    ends = [line for line in lines if "ended" in line]
    if begun != sorted(line["ended"] for line in ends):
        raise BrokenError(f"{len(begun)} servers began and {len(ends)} came to their end:\n{said}")
    accesses = sum(line["accesses"] for line in ends)
    if not accesses:
        raise BrokenError("the detector saw no access: it watches other classes than the server's")
    return Watched(
        tuple(line["found"] for line in lines if "found" in line),
        accesses,
        sum(line["threads"] for line in ends),
        said,
        checks_passed,
    )
