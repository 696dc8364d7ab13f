"""`python -m harness verify`, which `make verify` runs."""

import sys

import click

from harness.cli.selection import complete, selection
from harness.project.verify import verify as verify_choice
from harness.project.verify_location import Place, become_root_on_disposable_host
from harness.run.choice import Choice


@click.command()
@selection
@click.option(
    "--in",
    "place",
    type=click.Choice([place.value for place in Place]),
    help="Where; default: a running Vagrant machine, else a guest, else this machine.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(["local", "vm"]),
    help="Where our server is judged; default: what the place has.",
)
def verify(*, place: str | None, **chosen: object) -> None:
    """Style, types, tests, and every check of our server, where limits can be had.

    The area `project` is style, types and tests; -k and --area choose among them, too.
    """
    choice = Choice(**chosen)  # type: ignore[arg-type]
    become_root_on_disposable_host()
    sys.exit(verify_choice(complete(choice), place))
