"""The command `jobworker-judge` of the wheel: the judge without a checkout."""

import logging
from typing import Final

import click

from harness.cli.check import check, recheck
from harness.cli.dialect import dialect
from harness.cli.identities import identities
from harness.host.repository import require_checkout, version
from harness.program.entry import run_program

COMMANDS: Final = (check, recheck, identities, dialect)
# They change, or run, what only a checkout has: the sources of a server, its tests, its guests.
OF_A_CHECKOUT: Final = (
    "races", "selftest", "wire", "mutation-score", "soak", "verify", "vulncheck", "security", "vm"
)  # fmt: skip


def _stay_away(name: str) -> click.Command:
    """Return a command that says in one line why it is missing here."""

    def explain(**_: object) -> None:
        require_checkout(f"the command {name}")

    return click.Command(
        name,
        callback=explain,
        params=[click.Argument(["words"], nargs=-1)],
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
        hidden=True,
    )


@click.group(commands=[*COMMANDS, *map(_stay_away, OF_A_CHECKOUT)])
@click.version_option(version(), message="%(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Log every program that the harness runs.")
def main(*, verbose: bool) -> None:
    """Test a job worker through its API, and report what it promises and keeps."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s")


def run() -> None:
    """Run the command line as a program."""
    run_program(main)
