"""`python -m harness identities`."""

import shlex
from pathlib import Path

import click

from harness.dialects.dialect import CANONICAL
from harness.dialects.identity_scheme import Scheme
from harness.dialects.load import load_dialect
from harness.drive.identities import make_identities
from harness.host.repository import program
from harness.program import arguments


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--name",
    "names",
    type=arguments.HOST,
    multiple=True,
    metavar="NAME",
    help="Host name or IP address of the server; repeatable.",
)
@click.option(
    "--scheme",
    "source",
    metavar="DIALECT",
    default=CANONICAL.name,
    show_default=True,
    help="What the certificates are like: the table [identities] of a dialect, a TOML file or the "
    "name of a built-in one.",
)
def identities(directory: Path, names: tuple[str, ...], source: str) -> None:
    """Generate the checks' certificates and their authority.

    DIRECTORY then has ca.crt, server.crt and server.key for the server, and the clients'
    certificates for --identities.
    """
    dialect = load_dialect(source)
    make_identities(directory, names, dialect.identities)
    words = [*program(), "check", "--target", "HOST:PORT"]
    if dialect is not CANONICAL:
        click.echo("\n".join(describe(dialect.identities)))
        words += ["--dialect", source]
    words += ["--identities", str(directory)]
    click.echo(f"start the server with {directory}/ca.crt, {directory}/server.crt and server.key,")
    click.echo(f"then: {shlex.join(words)}")


def describe(scheme: Scheme) -> list[str]:
    """Return lines that say what the certificates of a scheme are like."""
    if not scheme.has_roles:
        lines = ["roles: none; every valid certificate may do everything"]
    else:
        lines = [f"roles: {scheme.roles}; admin.crt has {scheme.admin.text!r}, and may do all"]
        if scheme.user is None:
            lines += ["no other role: user.crt has it, too"]
        else:
            may = "do all" if scheme.user.may is None else ", ".join(scheme.user.may)
            lines += [f"user.crt has {scheme.user.text!r}, and may {may}"]
    lines += [f"keys: {scheme.key}"]
    return lines + [f"{path}: a copy of {name}" for path, name in scheme.files.items()]
