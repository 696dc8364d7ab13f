"""Run a Python program under the happens-before detector, as `go run -race` does for Go.

    python -m harness.races.live --watch FILE --report FILE -m MODULE [ARGUMENT ...]

`threading` is traced before the program's first import, so the program holds no untraced lock. The
watch file is Python and defines a `WATCH` (see `instrumentation.Watch`). Each finding is written at
once to stderr and, as a line of JSON, to the report. The report's first and last line record how
much was seen, so that a program that was killed, or one in which nothing was watched, does not
pass for a race-free one. Programs that run one after the other may share a report.
"""

import argparse
import json
import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Final

from harness.races.detector import Detector
from harness.races.findings import RaceFinding
from harness.races.instrumentation import Watch, instrument
from harness.races.primitives import trace_primitives
from harness.races.scenario import load_module

WATCH_NAME: Final = "WATCH"


class FindingsFile:
    """The report file.

    Shared state and its guard: the file, under a lock that was created before tracing began.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._add({"begun": os.getpid()})

    def add_finding(self, finding: RaceFinding) -> None:
        """Write a finding to stderr and to the file."""
        sys.stderr.write(finding.text() + "\n")
        self._add({"found": finding.text()})

    def add_end(self, detector: Detector) -> None:
        """Record that the program ended, and how much of it was seen."""
        self._add(
            {"ended": os.getpid(), "accesses": detector.accesses, "threads": detector.threads}
        )

    def _add(self, line: dict[str, object]) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.races.live", description=__doc__)
    parser.add_argument("--watch", type=Path, required=True, help="Python file that defines WATCH")
    parser.add_argument("--report", type=Path, required=True, help="file to append findings to")
    parser.add_argument("-m", dest="module", required=True, help="module to run, as in python -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    report = FindingsFile(chosen.report)
    detector = Detector(report.add_finding)
    with trace_primitives(detector):
        watch: Watch = getattr(load_module(chosen.watch), WATCH_NAME)
        with instrument(watch, lambda: detector):
            sys.argv = [chosen.module, *chosen.arguments]
            try:
                runpy.run_module(chosen.module, run_name="__main__", alter_sys=True)
            finally:
                report.add_end(detector)


if __name__ == "__main__":
    main()
