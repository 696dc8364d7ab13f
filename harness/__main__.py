"""The command `python -m harness`. A new command is one entry in `COMMANDS`."""

import logging
from typing import Final

import click

from harness.program.commands import Commands
from harness.program.entry import run_program

COMMANDS: Final = Commands(
    {
        "check": "harness.cli.check",
        "recheck": "harness.cli.check",
        "identities": "harness.cli.identities",
        "dialect": "harness.cli.dialect",
        "races": "harness.cli.races",
        "selftest": "harness.cli.selftest",
        "wire": "harness.cli.wire",
        "mutation-score": "harness.cli.mutation_score",
        "verify": "harness.cli.verify",
        "vulncheck": "harness.cli.vulncheck",
        "security": "harness.cli.security",
        "vm": "harness.cli.vm",
        "soak": "harness.cli.soak",
    }
)


@click.group(commands=COMMANDS)
@click.option("-v", "--verbose", is_flag=True, help="Log every program that the harness runs.")
def main(*, verbose: bool) -> None:
    """Test a job worker through its API, and run the VMs that this needs."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s")


def run() -> None:
    """Run the command line as a program."""
    run_program(main)


if __name__ == "__main__":
    run()
