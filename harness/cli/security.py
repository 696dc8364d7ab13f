"""`python -m harness security`."""

import sys
from pathlib import Path

import click

from harness.host.repository import ROOT
from harness.project.security_table import (
    DOCUMENT,
    TARGET,
    differing,
    documented,
    table,
    with_table,
)
from harness.record.results import load_report
from harness.record.verdict import BrokenError


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--write", is_flag=True, help=f"Put it into {DOCUMENT}, not on the terminal.")
@click.option(
    "--hold", is_flag=True, help=f"Print where {DOCUMENT} says otherwise; exit code 1 if it does."
)
def security(run: Path, *, write: bool, hold: bool) -> None:
    """Print the table of security cases, with what a run (its directory) saw of each."""
    lines = table([each for each in load_report(run).results if each.target == TARGET])
    path = ROOT / DOCUMENT
    try:
        if hold:
            untrue = differing(documented(path.read_text()), lines)
            click.echo("\n".join(untrue) or f"{DOCUMENT} says what this run saw")
            sys.exit(1 if untrue else 0)
        if write:
            path.write_text(with_table(path.read_text(), lines))
        else:
            click.echo("\n".join(lines))
    except OSError as error:
        raise BrokenError(f"{path}: {error.strerror}") from error
