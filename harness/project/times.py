"""How long `make verify` takes: the budget of each step, and what the last complete run took.

A budget is for two quiet cores and an emulated guest. A step over its budget is a warning in the
report, and changes no verdict: the machine may have been busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from harness.record.results import StepTime
from harness.record.whole_file import write_whole
from harness.report.summary import duration
from harness.run.choice import LOCAL, VM
from harness.run.run_directory import RESULTS_FOLDER
from harness.run.session import checks_step

TIMES_FILE: Final = RESULTS_FOLDER / "verify-times.json"
TOTAL: Final = "total"
CHECK_BUDGETS_S: Final = {checks_step(LOCAL): 180.0, checks_step(VM): 300.0}

type Times = dict[str, dict[str, float]]  # kind of run -> step -> seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a run takes.

    Attributes:
        kind: of the run; empty if nothing is known about runs of this kind.
        seconds: the duration.
        source: where that is from.
    """

    kind: str = ""
    seconds: float = 0.0
    source: str = ""

    def __str__(self) -> str:
        """Return the duration and its source."""
        return f"about {duration(self.seconds)} ({self.source})"


def estimate(kind: str, budget_s: float, path: Path = TIMES_FILE) -> Estimate:
    """Return what the last complete run of a kind took, or its budget."""
    last_s = _read(path).get(kind, {}).get(TOTAL, 0.0)
    if last_s > 0:
        return Estimate(kind, last_s, f"the last such run; its budget is {duration(budget_s)}")
    return Estimate(kind, budget_s, "its budget; no such run is recorded")


def remember(kind: str, steps: Sequence[StepTime], total_s: float, path: Path = TIMES_FILE) -> None:
    """Keep what a complete run took, for the estimate of the next one."""
    times = _read(path)
    times[kind] = {
        **{step.name: round(step.seconds, 1) for step in steps},
        TOTAL: round(total_s, 1),
    }
    path.parent.mkdir(exist_ok=True)
    write_whole(path, msgspec.json.format(msgspec.json.encode(times), indent=1).decode() + "\n")


def _read(path: Path) -> Times:
    """Return the times of earlier runs; empty if none are recorded, or if they cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, float]])
    except (OSError, ValueError):
        return {}
