"""`python -m harness check`, `recheck`, `identities`, `selftest` and `verify`."""

import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from harness.checks import ALL
from harness.identities import make_identities
from harness.mutants import table
from harness.mutants.mutant import Mutant
from harness.places import Place, become_root_where_made_for_it
from harness.report import write_all
from harness.report.terminal import Terminal, render_list
from harness.results import load_report
from harness.runs import Choice, fill_seed, run_choice
from harness.selftest import Proof, guest_proofs, prove_local
from harness.session import rejudge
from harness.targets.local import checkout
from harness.targets.target import OUR_FLAGS
from harness.verdict import BrokenError
from harness.verify import verify as verify_choice

Command = Callable[..., None]

_SELECTION: Final = (
    click.option(
        "-k", "--keyword", default="", help="Only checks with this (a regular expression) in them."
    ),
    click.option("--area", "areas", multiple=True, help="Only checks of this area; repeatable."),
    click.option("--seed", default="", help="Repeat a run's choices of chance."),
    click.option(
        "--out", type=click.Path(path_type=Path),
        help="Directory for records and report; default: a new one in results/.",
    ),
    click.option(
        "--allow-skip", "skips_allowed", multiple=True,
        help="TARGET:NAME (with * and ?) that may be skipped; any other skip is BROKEN then.",
    ),
    click.option(
        "--parallel", default=4, show_default=True,
        help="Checks at a time, of those that may share the machine.",
    ),
)  # fmt: skip


def selection(command: Command) -> Command:
    """Add the options that choose checks."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def _flags(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for word in words:
        name, separator, flag = word.partition("=")
        if not separator or name not in OUR_FLAGS or "{}" not in flag:
            raise click.BadParameter(
                f"{word!r}; write SETTING='--flag {{}}', where SETTING is one of "
                f"{', '.join(OUR_FLAGS)}",
                param_hint="--launch-flag",
            )
        pairs.append((name, flag))
    return tuple(pairs)


def _fixed(choice: Choice) -> Choice:
    """Fill in what the command line left open."""
    return dataclasses.replace(
        choice, seed=fill_seed(choice.seed), skips_allowed=choice.skips_allowed or None
    )


@click.command()
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("local",),
    show_default=True,
    help="local (launched on this host), vm (in a guest with cgroup v2) or HOST:PORT; repeatable.",
)
@click.option(
    "--launch",
    default="",
    help="Command that starts another server than ours; {listen} {ca} {cert} {key} are filled in.",
)
@click.option(
    "--launch-flag",
    "launch_flags",
    multiple=True,
    help="How that server is told a setting, for example max_streams='--max {}'; repeatable.",
)
@click.option(
    "--identities",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Certificates made by `identities`; default: new ones.",
)
@click.option("--list", "listing", is_flag=True, help="Print every guarantee, and judge nothing.")
@selection
def check(*, listing: bool, launch_flags: tuple[str, ...], **chosen: object) -> None:
    """Judge a job worker, from outside. Exit code 0: pass, 1: a promise is broken, 2: broken."""
    choice = Choice(**chosen, launch_flags=_flags(launch_flags))  # type: ignore[arg-type]
    if listing:
        render_list(choice.checks())
        return
    sys.exit(run_choice(_fixed(choice)))


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
    become_root_where_made_for_it()
    sys.exit(verify_choice(_fixed(choice), place))


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
def recheck(directory: Path) -> None:
    """Judge a saved run again, without a server, by today's judges; rewrites its report."""
    report = rejudge(load_report(directory), directory, ALL)
    with Terminal(total=len(report.results)) as terminal:
        terminal.begin(report.about)
        for result in report.results:
            terminal.finished(result)
        write_all(report, directory)
        terminal.end(report, directory)
    sys.exit(report.exit_code)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", "names", multiple=True, help="Name or address of the server; repeatable.")
def identities(directory: Path, names: tuple[str, ...]) -> None:
    """Make an authority and every certificate that the checks use, in DIRECTORY."""
    make_identities(directory, names)
    click.echo(f"start your server with {directory}/ca.crt, {directory}/server.crt and server.key,")
    click.echo(f"then: python -m harness check --target HOST:PORT --identities {directory}")


@click.command()
@click.option("-k", "--keyword", default="", help="Only mutants with this in their name or check.")
@click.option("--list", "listing", is_flag=True, help="Print the table, and prove nothing.")
@click.option(
    "--where", type=click.Choice(["local", "vm", "all"]), default="all", show_default=True
)
@click.option(
    "--share", default="1/1", show_default=True,
    help="K/N proves every N-th mutant, from the K-th on: where there is no time for all.",
)  # fmt: skip
def selftest(keyword: str, where: str, share: str, *, listing: bool) -> None:
    """Prove the judge: break our server in every way of the table, and see each noticed."""
    first, step = _share(share)
    local, guest = (
        _fitting(mutants, keyword)[first::step] for mutants in (table.LOCAL, table.GUEST)
    )
    local, guest = (local if where != "vm" else ()), (guest if where != "local" else ())
    if not local and not guest:
        raise BrokenError(f"no mutant fits -k {keyword!r}; --list shows them all")
    if listing:
        for mutant in (*local, *guest):
            click.echo(f"{mutant.caught_by:32} catches a server that {mutant.name}")
        return
    missed = 0
    numbers = {mutant.name: number for number, mutant in enumerate((*local, *guest), 1)}
    count = len(numbers)

    def tell(mutant: Mutant, word: str, after: str = "") -> None:
        place = f"[{numbers[mutant.name]}/{count}]"
        what = f"{mutant.caught_by:32} a server that {mutant.name}{after}"
        click.echo(f"{place:>9}  {word:8}  {what}")

    for proof in _proofs(local, guest, lambda mutant: tell(mutant, "breaking")):
        missed += not proof.caught
        tell(proof.mutant, "caught" if proof.caught else "MISSED", f" ({proof.seconds:.0f} s)")
        _explain(proof)
    click.echo(
        f"{count - missed} of {count} mutants caught by their check, and by no other area's canary"
    )
    if step > 1:
        every = len(_fitting((*table.LOCAL, *table.GUEST), keyword))
        click.echo(f"the other {every - count} of {every} are other shares'")
    sys.exit(1 if missed else 0)


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(
            f"{text!r}; write K/N with K from 1 to N, as in 2/3", param_hint="--share"
        )
    return int(number) - 1, int(count)


def _fitting(mutants: tuple[Mutant, ...], keyword: str) -> tuple[Mutant, ...]:
    return tuple(
        mutant for mutant in mutants if re.search(keyword, f"{mutant.caught_by} {mutant.name}")
    )


def _proofs(
    local: tuple[Mutant, ...], guest: tuple[Mutant, ...], begun: Callable[[Mutant], None]
) -> Iterator[Proof]:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobworker-selftest-"))
        store = make_identities(Path(directory))
        if local:
            yield from prove_local(local, checkout(), store, begun)
        if guest:
            yield from stack.enter_context(guest_proofs(guest, checkout(), store, begun))


def _explain(proof: Proof) -> None:
    if not proof.caught:
        click.echo(f"           {proof.mutant.caught_by} is {proof.verdict}: {proof.saw}")
        for other in proof.disturbed:
            click.echo(f"           and beside it {other}")
