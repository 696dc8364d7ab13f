"""`python -m harness vm box`, which `make box` runs."""

from pathlib import Path

import click

from harness.vm.box import PUBLIC_NAME, built_box
from harness.vm.image import PROJECT


@click.command()
@click.option(
    "--session",
    is_flag=True,
    help="For a user without rights on the system's libvirt, with or without KVM.",
)
@click.option("--name", default=PUBLIC_NAME, show_default=True, help="What to offer it as.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=PROJECT / "build/box",
    help="Where to; default: build/box, which whoever has the checkout may read.",
)  # fmt: skip
def box(name: str, out: Path, *, session: bool) -> None:
    """Build the project's own Vagrant box for libvirt, and a catalogue that offers it."""
    made = built_box(name, session=session, out=out)
    size_mib = made.file.stat().st_size / 1024**2
    click.echo(f"{made.file} ({size_mib:.0f} MiB), {made.name} {made.version}")
    click.echo(f"  vagrant box add {made.catalogue}     then: vagrant up")
    click.echo(f"  or: JOBWORKER_VAGRANT_BOX_URL={made.catalogue} vagrant up")
