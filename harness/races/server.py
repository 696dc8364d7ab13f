"""Runs checks against a job worker while the race detector runs inside it."""

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
class WatchedRun:
    """The detector's findings and the checks' result.

    Attributes:
        found: the detector's findings, as text.
        accesses: the number of accesses that it recorded.
        threads: the number of threads that it recorded.
        checks_output: the last part of the checks' output.
        checks_passed: whether every check passed.
    """

    found: tuple[str, ...]
    accesses: int
    threads: int
    checks_output: str
    checks_passed: bool


def judge_under_detector(
    watch: Path, launch: str, checks: str, tree: Path | None = None
) -> WatchedRun:
    """Run checks against a server under the detector.

    Args:
        watch: the Python file that defines `WATCH`.
        launch: the server, a Python module and its arguments; `{...}` as in `check --launch`.
        checks: the checks to run, a regular expression.
        tree: a source tree that the server imports from before all others.

    Raises:
        BrokenError: inconclusive: the checks did not run, a server did not exit by itself, or the
            detector recorded no access.
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
        output = (done.stdout + done.stderr).strip()[-3000:]
        if done.exit_code == EXIT_BROKEN or not report.exists():
            raise BrokenError(f"the checks are BROKEN under the detector:\n{output}")
        return _read(report, output, checks_passed=done.exit_code == 0)


def _read(report: Path, output: str, *, checks_passed: bool) -> WatchedRun:
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    begun = sorted(line["begun"] for line in lines if "begun" in line)
    ends = [line for line in lines if "ended" in line]
    if begun != sorted(line["ended"] for line in ends):
        raise BrokenError(
            f"{len(begun)} servers started and {len(ends)} exited by themselves:\n{output}"
        )
    accesses = sum(line["accesses"] for line in ends)
    if not accesses:
        raise BrokenError(
            "the detector recorded no access: the server does not use the watched classes"
        )
    return WatchedRun(
        tuple(line["found"] for line in lines if "found" in line),
        accesses,
        sum(line["threads"] for line in ends),
        output,
        checks_passed,
    )
