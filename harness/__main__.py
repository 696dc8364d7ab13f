"""The command `python -m harness`. A new command is one entry in `COMMANDS`."""

import logging
from typing import Final

import click

from harness.cli.check import check, recheck
from harness.cli.dialect import dialect
from harness.cli.identities import identities
from harness.cli.mutation_score import mutation_score
from harness.cli.races import races
from harness.cli.security import security
from harness.cli.selftest import selftest
from harness.cli.soak import soak
from harness.cli.verify import verify
from harness.cli.vm import vm
from harness.cli.vulncheck import vulncheck
from harness.cli.wire import wire
from harness.program.entry import run_program

COMMANDS: Final = (
    check, recheck, identities, dialect, races, selftest, wire, mutation_score, verify, vulncheck,
    security, vm, soak,
)  # fmt: skip


@click.group(commands=list(COMMANDS))
@click.option("-v", "--verbose", is_flag=True, help="Log every program that the harness runs.")
def main(*, verbose: bool) -> None:
    """Test a job worker through its API, and run the VMs that this needs."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s")


def run() -> None:
    """Run the command line as a program."""
    run_program(main)


if __name__ == "__main__":
    run()
