"""A failure as people read it: what broke, the interleaving, and how to see it again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Final

from harness.races.exploration import Exploration, ScheduleStep
from harness.races.report import Frame, source
from harness.races.scenario import Scenario
from harness.races.subprocess_explorer import exploration_from
from harness.record.verdict import BrokenError

STEPS_SHOWN: Final = 60
_COLUMN: Final = 22


def story(scenario: Scenario, exploration: Exploration, replay_command: str) -> str:
    """Return the text of a failure."""
    failure = exploration.failure
    if failure is None:
        raise ValueError("nothing failed")
    how = "all its threads wait" if failure.kind == "deadlock" else "it raised"
    where = f"{exploration.technique} (seed {exploration.seed})"
    lines = [
        f"{scenario.name}: {scenario.promise}",
        f"broken in schedule {exploration.schedules} of {where}: {how}",
        "",
        failure.what,
        "",
        *(f"{stack}\n" for stack in failure.stacks),
        *(f"{found}\n" for found in failure.found),
        *interleaving(failure.steps, scenario.files),
        "",
        f"again: {replay_command}",
    ]
    return "\n".join(lines)


def interleaving(steps: Sequence[ScheduleStep], files: Sequence[str]) -> Iterator[str]:
    """Yield who did what, one line for each line of code, the threads side by side."""
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


def save(path: Path, exploration: Exploration, files: Sequence[Path]) -> None:
    """Keep what a replay needs."""
    kept = {"scenarios": [str(file) for file in files]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept | {"exploration": asdict(exploration)}) + "\n")


def restore(path: Path) -> tuple[Exploration, tuple[Path, ...]]:
    """Read what `save` kept.

    Raises:
        BrokenError: the file is not there, or is another.
    """
    try:
        kept = json.loads(path.read_text())
        exploration = exploration_from(kept["exploration"])
        return exploration, tuple(Path(file) for file in kept["scenarios"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(
            f"{path} is no failure that `races explore` saved: {type(error).__name__}: {error}"
        ) from error
