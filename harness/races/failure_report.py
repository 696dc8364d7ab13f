"""A failure for people: what broke, the interleaving, and the command that replays it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Final

from harness.races.exploration import Exploration, ScheduleStep
from harness.races.findings import Frame, source
from harness.races.scenario import Scenario
from harness.races.subprocess_explorer import exploration_from
from harness.record.verdict import BrokenError

STEPS_SHOWN: Final = 60
_COLUMN: Final = 22


def failure_text(scenario: Scenario, exploration: Exploration, replay_command: str) -> str:
    """Return the text of a failure.

    Raises:
        ValueError: the exploration has no failure.
    """
    failure = exploration.failure
    if failure is None:
        raise ValueError("the exploration has no failure")
    how = "deadlock, every thread waits" if failure.kind == "deadlock" else "exception"
    lines = [
        f"{scenario.name}: {scenario.promise}",
        (
            f"broken in schedule {exploration.schedules} of {exploration.technique} "
            f"(seed {exploration.seed}): {how}"
        ),
        "",
        failure.what,
        "",
        *(f"{stack}\n" for stack in failure.stacks),
        *(f"{found}\n" for found in failure.found),
        *interleaving(failure.steps, scenario.files),
        "",
        f"replay: {replay_command}",
    ]
    return "\n".join(lines)


def interleaving(steps: Sequence[ScheduleStep], files: Sequence[str]) -> Iterator[str]:
    """Yield one line of text for each executed line of code, the threads in columns."""
    paths = {Path(file).name: file for file in files}
    rows = [(thread, place) for (thread, place), _ in groupby(
        (step.thread, step.place) for step in steps
    )]  # fmt: skip
    threads = list(dict.fromkeys(thread for thread, _ in rows))
    left_out = max(0, len(rows) - STEPS_SHOWN)
    yield f"the interleaving, last {len(rows) - left_out} of {len(rows)} lines:"
    for thread, place in rows[left_out:]:
        file, _, line = place.partition(":")
        text = source(Frame(paths[file], int(line), "")) if file in paths and line else ""
        indent = "  " * threads.index(thread)
        yield f"  {indent}{thread:<{_COLUMN - len(indent)}} {place:<18} {text}"


def save_failure(path: Path, exploration: Exploration, files: Sequence[Path]) -> None:
    """Write what a replay needs."""
    saved = {"scenarios": [str(file) for file in files]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved | {"exploration": asdict(exploration)}) + "\n")


def load_failure(path: Path) -> tuple[Exploration, tuple[Path, ...]]:
    """Read a file that `save_failure` wrote; return the exploration and the scenario files.

    Raises:
        BrokenError: the file is missing, or is not such a file.
    """
    try:
        saved = json.loads(path.read_text())
        exploration = exploration_from(saved["exploration"])
        return exploration, tuple(Path(file) for file in saved["scenarios"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(
            f"{path} is not a failure saved by `races explore`: {type(error).__name__}: {error}"
        ) from error
