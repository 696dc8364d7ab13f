"""`python -m harness dialect`."""

import shlex
import sys
from pathlib import Path

import click

from harness.checks import require_promises
from harness.cli.identities import describe
from harness.dialects.dialect import RPCS, Dialect
from harness.dialects.load import builtin_names, load_dialect
from harness.drive.first_round import first_round
from harness.drive.identities import IdentityStore
from harness.host.repository import program
from harness.program import arguments


@click.command()
@click.argument("source", metavar="[DIALECT]", default="")
@click.option(
    "--address",
    type=arguments.target(()),
    metavar="HOST:PORT",
    help="A server of this kind: make one job's round there, and print its answers.",
)
@click.option(
    "--identities",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of certificates that `identities --scheme DIALECT` generated.",
)
def dialect(source: str, address: str | None, directory: Path | None) -> None:
    """Validate a dialect; without DIALECT, list the built-in ones.

    DIALECT is a TOML file, or the name of a built-in one. Exit code 0: it is valid, and the
    server's answers are those of a job worker. 1: an answer is not. 2: it is invalid, or the server
    cannot be reached.
    """
    if not source:
        if address is not None or directory is not None:
            raise click.UsageError("--address and --identities: name the DIALECT of the server")
        for name in builtin_names():
            click.echo(f"{name}: {load_dialect(name).description}")
        return
    if (address is None) != (directory is None):
        raise click.UsageError("--address and --identities: give both, or none")
    loaded = load_dialect(source)
    require_promises(loaded.terms)
    click.echo("\n".join(_described(loaded)))
    if address is None or directory is None:
        words = [*program(), "dialect", source, "--address", "HOST:PORT", "--identities", "DIR"]
        click.echo(f"valid; try it: {shlex.join(words)}")
        return
    store = IdentityStore(directory)
    store.require_scheme(loaded.identities, source)
    sys.exit(_try(loaded, address, store))


def _described(dialect: Dialect) -> list[str]:
    """Return what a dialect says, in lines."""
    terms, transport = dialect.terms, dialect.transport
    lines = [f"{dialect.name}: {dialect.description}"]
    if dialect.is_grpc:
        paths = {rpc: transport.path(rpc) for rpc in RPCS}
        lines += [f"  {rpc}: {path or 'lacking'}" for rpc, path in paths.items()]
    else:
        lines += ["  called by programs"]
    lines += [f"  a query reports: {', '.join(terms.reports)}"]
    lines += [f"  lacking: {', '.join(terms.lacks) or 'nothing'}"]
    lines += [f"  of this project's own promises: {', '.join(terms.promises) or 'none'}"]
    return [*lines, *(f"  {line}" for line in describe(dialect.identities))]


def _try(dialect: Dialect, address: str, identities: IdentityStore) -> int:
    """Make one job's round, and print it; return the exit code."""
    click.echo(f"one job's round at {address}, as an admin:")
    faults = 0
    for step in first_round(address, identities.files("admin"), dialect):
        faults += bool(step.fault)
        wanted = f"   <- want {step.fault}" if step.fault else ""
        click.echo(f"  {step.what}: {step.got}{wanted}")
    wrong = "1 answer is not that" if faults == 1 else f"{faults} answers are not those"
    click.echo(f"{wrong if faults else 'the answers are those'} of a job worker")
    return 1 if faults else 0
