"""The options that choose checks, which `check` and `verify` share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from harness.run.choice import Choice
from harness.run.run_directory import fill_seed

Command = Callable[..., None]

_SELECTION: Final = (
    click.option(
        "-k", "--keyword", default="", help="Only checks with this (a regular expression) in them."
    ),
    click.option("--area", "areas", multiple=True, help="Only checks of this area; repeatable."),
    click.option("--seed", default="", help="Repeat a run's choices of chance."),
    click.option(
        "--out", type=click.Path(path_type=Path),
        help="Directory for records and report; default: a new one in results/.",
    ),
    click.option(
        "--allow-skip", "skips_allowed", multiple=True,
        help="TARGET:NAME (with * and ?) that may be skipped; any other skip is BROKEN then.",
    ),
    click.option(
        "--parallel", default=4, show_default=True,
        help="Checks at a time, of those that may share the machine.",
    ),
)  # fmt: skip


def selection(command: Command) -> Command:
    """Add the options that choose checks."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def complete(choice: Choice) -> Choice:
    """Fill in what the command line left open."""
    return dataclasses.replace(
        choice, seed=fill_seed(choice.seed), skips_allowed=choice.skips_allowed or None
    )
