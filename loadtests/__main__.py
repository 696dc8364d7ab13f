"""The command `python -m loadtests`: measures how a job worker streams, under loads of many kinds.

Exit codes as the harness's: 0 reached and kept, 1 a promise or a limit was broken, 2 nothing can be
said.
"""

import logging
import sys
from typing import Final

import click

from harness.record.verdict import BrokenError
from loadtests.commands import COMMANDS

EXIT_BROKEN: Final = 2


@click.group(commands=list(COMMANDS))
@click.option("-v", "--verbose", is_flag=True, help="Show every program that is run.")
def main(*, verbose: bool) -> None:
    """Measure how job workers stream under load, and compare them."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s")


def run() -> None:
    """Run the command line; what is broken ends in one clear text and exit code 2."""
    try:
        main()
    except BrokenError as error:
        click.echo(f"BROKEN: {error}", err=True)
        sys.exit(EXIT_BROKEN)


if __name__ == "__main__":
    run()
