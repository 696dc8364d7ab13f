"""`python -m harness verify`, which `make verify` runs."""

import sys

import click

from harness.cli.selection import complete, selection
from harness.project.verify import verify as verify_choice
from harness.project.verify_location import Location, become_root_on_disposable_host
from harness.run.choice import Choice


@click.command()
@selection
@click.option(
    "--in",
    "location",
    type=click.Choice([location.value for location in Location]),
    help="Where to verify: in the running Vagrant machine, on this host and in a VM (guest), or on "
    "this host alone (here); default: the first that is possible.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(["local", "vm"]),
    help="Where our server is launched, with --in guest or --in here; repeatable.",
)
@click.option(
    "--full",
    is_flag=True,
    help="Leave nothing out; default: without long searches, and without what another step of the "
    "same run shows. The report says what is left out.",
)
def verify(*, location: str | None, full: bool, **chosen: object) -> None:
    """Run lint, tests, audits and every check of our server.

    The checks of limits run in a Vagrant machine or a VM; see --in. Lint, tests and audits are the
    area `project`; -k and --area choose among them, too. Exit code 0: all passed. 1: one failed. 2:
    inconclusive: the harness or its environment failed.
    """
    choice = Choice(**chosen)  # type: ignore[arg-type]
    become_root_on_disposable_host()
    sys.exit(verify_choice(complete(choice), location, full=full))
