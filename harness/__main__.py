"""The command `python -m harness`. A new command is one entry in `COMMANDS`."""

import logging
import sys
import traceback
from typing import Final

import click

from harness.cli.check import check, identities, recheck
from harness.cli.races import races
from harness.cli.security import security
from harness.cli.selftest import selftest
from harness.cli.verify import verify
from harness.cli.vm import vm
from harness.cli.vulncheck import vulncheck
from harness.record.verdict import BrokenError, UnsupportedError

EXIT_BROKEN: Final = 2

COMMANDS: Final = (check, recheck, identities, races, selftest, verify, vulncheck, security, vm)


@click.group(commands=list(COMMANDS))
@click.option("-v", "--verbose", is_flag=True, help="Log every program that the harness runs.")
def main(*, verbose: bool) -> None:
    """Test a job worker through its API, and run the VMs that this needs."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s")


def run() -> None:
    """Run the command line; an error of the harness prints one message and exits with 2."""
    try:
        main()
    except (BrokenError, UnsupportedError) as error:
        click.echo(f"BROKEN: {error}", err=True)
        sys.exit(EXIT_BROKEN)
    except Exception:  # noqa: BLE001 - exit code 1 means that a server broke a promise
        click.echo(f"BROKEN: {traceback.format_exc()}", err=True)
        sys.exit(EXIT_BROKEN)


if __name__ == "__main__":
    run()
