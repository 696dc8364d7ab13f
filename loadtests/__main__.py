"""The command `python -m loadtests`: measures how a job worker streams, under loads of many kinds.

Exit codes, as the harness's: 0 all loads reached and all limits kept, 1 a promise or a limit was
broken, 2 inconclusive: a load was not reached, or the machine or the generator failed.
"""

import logging
import sys

import click

from harness.record.results import EXIT_CODES
from harness.record.verdict import BrokenError, Verdict
from loadtests.commands import COMMANDS


@click.group(commands=list(COMMANDS))
@click.option("-v", "--verbose", is_flag=True, help="Show every program that is run.")
def main(*, verbose: bool) -> None:
    """Measure how job workers stream under load, and compare them."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s")


def run() -> None:
    """Run the command line; a `BrokenError` ends as one message and exit code 2."""
    try:
        main()
    except BrokenError as error:
        click.echo(f"BROKEN: {error}", err=True)
        sys.exit(EXIT_CODES[Verdict.BROKEN])


if __name__ == "__main__":
    run()
