"""`python -m harness security`."""

import sys
from pathlib import Path

import click

from harness.host.repository import ROOT
from harness.project.security_table import (
    DOCUMENT,
    TARGET,
    documented,
    find_differences,
    table,
    with_table,
)
from harness.record.results import load_report
from harness.record.verdict import BrokenError


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--write", is_flag=True, help=f"Write the table into {DOCUMENT} instead of printing it."
)
@click.option(
    "--hold",
    is_flag=True,
    help=f"Compare {DOCUMENT} with the run; exit code 1 and a diff if they differ.",
)
def security(run: Path, *, write: bool, hold: bool) -> None:
    """Print the table of security cases for a run.

    RUN is the directory of a run of `check`.
    """
    lines = table([each for each in load_report(run).results if each.target == TARGET])
    path = ROOT / DOCUMENT
    try:
        if hold:
            differences = find_differences(documented(path.read_text()), lines)
            click.echo("\n".join(differences) or f"{DOCUMENT} agrees with this run")
            sys.exit(1 if differences else 0)
        if write:
            path.write_text(with_table(path.read_text(), lines))
        else:
            click.echo("\n".join(lines))
    except OSError as error:
        raise BrokenError(f"{path}: {error.strerror}") from error
