"""The options of `check` and `verify` that choose checks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from harness.program import arguments
from harness.run.choice import Choice
from harness.run.run_directory import fill_seed

Command = Callable[..., None]


def _parse_new_file(text: str) -> Path:
    """Return the path of a file that does not exist: another has reasons that people wrote."""
    path = Path(text)
    if path.exists() or not path.parent.is_dir():
        problem = "exists" if path.exists() else "is in a directory that does not exist"
        raise ValueError(f"a new file, and this one {problem}")
    return path


KNOWN_FAILING: Final = click.option(
    "--known-failing",
    "known_failing_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="File of checks that are known to fail, one a line: TARGET:CHECK  # reason. Other "
    "failures, listed checks that pass, and listed checks that are not judged end the run "
    "with 1 or 2.",
)
WRITE_KNOWN_FAILING: Final = click.option(
    "--write-known-failing",
    type=arguments.Argument("file", _parse_new_file),
    metavar="FILE",
    help="Write the run's failures to a new file for --known-failing.",
)

PARALLEL_MAX: Final = 64

_SELECTION: Final = (
    click.option(
        "-k", "--keyword", type=arguments.PATTERN, default="", metavar="REGEX",
        help="Run only checks whose name matches.",
    ),
    click.option("--area", "areas", multiple=True, help="Run only checks of AREA; repeatable.",
                 metavar="AREA"),
    click.option(
        "--seed", default="", metavar="SEED", help="Reuse a run's random seed; default: a new one."
    ),
    click.option(
        "--out", type=click.Path(path_type=Path),
        help="Directory for the records and the report; default: a new one in results/.",
    ),
    click.option(
        "--allow-skip", "skips_allowed", multiple=True,
        help="Allow skips that match TARGET:CHECK (glob), and no others; repeatable.",
        metavar="GLOB",
    ),
    click.option(
        "--parallel", type=arguments.whole(1, PARALLEL_MAX), default=4, show_default=True,
        help="Number of checks to run at the same time; those that measure run alone.",
    ),
)  # fmt: skip


def selection(command: Command) -> Command:
    """Add the options that choose checks."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def complete(choice: Choice) -> Choice:
    """Fill in the defaults of options that were not given."""
    return dataclasses.replace(
        choice,
        targets=tuple(dict.fromkeys(choice.targets)),  # a second run would replace the records
        seed=fill_seed(choice.seed),
        skips_allowed=choice.skips_allowed or None,
    )
