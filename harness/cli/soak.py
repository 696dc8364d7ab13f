"""`python -m harness soak`."""

import sys
from pathlib import Path
from typing import Final

import click

from harness.checks.check import Extent
from harness.cli.selection import complete
from harness.program import arguments
from harness.run.choice import LOCAL, VM, Choice
from harness.run.session import run_session

HOURS_MAX: Final = 1000
MINUTES_MAX: Final = 60 * HOURS_MAX


@click.command()
@click.option("--hours", type=arguments.number(0, HOURS_MAX), default=0, help="Hours to go on.")
@click.option(
    "--minutes", type=arguments.number(0, MINUTES_MAX), default=0, help="Minutes, added to these."
)
@click.option(
    "--target",
    type=click.Choice([LOCAL, VM]),
    default=LOCAL,
    show_default=True,
    help="Launch the server on this host, or in a VM with cgroup v2.",
)
@click.option(
    "--seed", default="", metavar="SEED", help="Reuse a run's random seed; default: a new one."
)
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Directory for the records and the report; default: a new one in results/.",
)  # fmt: skip
def soak(*, hours: float, minutes: float, target: str, seed: str, out: Path | None) -> None:
    """Work a server for hours, and judge whether it grows.

    This is the check streams.soak for as long as --hours and --minutes say: tens of thousands of
    jobs an hour, streams that are interrupted and resumed, stops, deletes, renewed certificates of
    the server and denied ones of a client. A line each minute shows what the server has. Memory,
    descriptors, threads, children and cgroups must have no slope. The exit code is that of `check`.
    """
    lasting_s = hours * 3600 + minutes * 60
    if not lasting_s:
        raise click.UsageError("give --hours or --minutes")
    choice = Choice(
        targets=(target,),
        keyword=r"^streams\.soak$",
        seed=seed,
        out=out,
        extent=Extent(lasting_s=lasting_s),
    )
    sys.exit(run_session(complete(choice)))
