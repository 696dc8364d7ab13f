"""Runs a Python program under the happens-before detector, as `go run -race` does.

    python -m harness.races.live --watch FILE --report FILE -m MODULE [ARGUMENT ...]

`threading` is traced before the program's first import, so nothing of it holds an untraced lock.
The file to watch by is Python, with a `WATCH` (see `watching.Watch`). Each finding goes to stderr
and, as a line of JSON, to the report at once; lines at its begin and end tell how much was seen, so
that a program that was killed, or one in which nothing was watched, is not taken for a sound one.
Programs that run one after the other may share a report.
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
from harness.races.instrumentation import Watch, watched
from harness.races.primitives import traced
from harness.races.report import Found
from harness.races.scenario import load_module

WATCH_NAME: Final = "WATCH"


class Report:
    """A file of findings.

    Shared state and its guard: the file, under a lock that was made before anything was traced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._add({"begun": os.getpid()})

    def found(self, found: Found) -> None:
        """Add a finding."""
        sys.stderr.write(found.text() + "\n")
        self._add({"found": found.text()})

    def ended(self, detector: Detector) -> None:
        """Say that the program came to its end, and what was seen of it."""
        self._add(
            {"ended": os.getpid(), "accesses": detector.accesses, "threads": detector.threads}
        )

    def _add(self, line: dict[str, object]) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.races.live", description=__doc__)
    parser.add_argument("--watch", type=Path, required=True, help="file with a WATCH")
    parser.add_argument("--report", type=Path, required=True, help="file for what is found")
    parser.add_argument("-m", dest="module", required=True, help="the program, as for python -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    report = Report(chosen.report)
    detector = Detector(report.found)
    with traced(detector):
        watch: Watch = getattr(load_module(chosen.watch), WATCH_NAME)
        with watched(watch, lambda: detector):
            sys.argv = [chosen.module, *chosen.arguments]
            try:
                runpy.run_module(chosen.module, run_name="__main__", alter_sys=True)
            finally:
                report.ended(detector)


if __name__ == "__main__":
    main()
