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
@click.option("-v", "--verbose", is_flag=True, help="Show every program that is run.")
def main(*, verbose: bool) -> None:
    """Judge job workers from outside, and run the machines that this takes."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s")


def run() -> None:
    """Run the command line; what is broken ends in one clear text and exit code 2."""
    try:
        main()
    except (BrokenError, UnsupportedError) as error:
        click.echo(f"BROKEN: {error}", err=True)
        sys.exit(EXIT_BROKEN)
    except Exception:  # noqa: BLE001 - exit code 1 is for broken promises of a server's
        click.echo(f"BROKEN: {traceback.format_exc()}", err=True)
        sys.exit(EXIT_BROKEN)


if __name__ == "__main__":
    run()
