"""The command `python -m loadtests`: measures how a job worker streams, under loads of many kinds.

Exit codes, as the harness's: 0 all loads reached and all limits kept, 1 a promise or a limit was
broken, 2 inconclusive: a load was not reached, or the machine or the generator failed.
"""

import logging
from typing import Final

import click

from harness.program.commands import Commands
from harness.program.entry import run_program

COMMANDS: Final = Commands(
    dict.fromkeys(("run", "sweep", "compare", "report"), "loadtests.commands")
)


@click.group(commands=COMMANDS)
@click.option("-v", "--verbose", is_flag=True, help="Show every program that is run.")
def main(*, verbose: bool) -> None:
    """Measure how job workers stream under load, and compare them."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s")


def run() -> None:
    """Run the command line as a program."""
    run_program(main)


if __name__ == "__main__":
    run()
