"""`python -m harness selftest`, which `make selftest` runs."""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from harness.drive.identities import make_identities
from harness.host.repository import ROOT
from harness.mutation import check_mutants as table
from harness.mutation.mutation import Mutation
from harness.record.verdict import BrokenError
from harness.run.selftest import MutantProof, guest_proofs, prove_local


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

    def tell(mutant: Mutation, word: str, after: str = "") -> None:
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


def _fitting(mutants: tuple[Mutation, ...], keyword: str) -> tuple[Mutation, ...]:
    return tuple(
        mutant for mutant in mutants if re.search(keyword, f"{mutant.caught_by} {mutant.name}")
    )


def _proofs(
    local: tuple[Mutation, ...], guest: tuple[Mutation, ...], begun: Callable[[Mutation], None]
) -> Iterator[MutantProof]:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobworker-selftest-"))
        store = make_identities(Path(directory))
        if local:
            yield from prove_local(local, ROOT, store, begun)
        if guest:
            yield from stack.enter_context(guest_proofs(guest, ROOT, store, begun))


def _explain(proof: MutantProof) -> None:
    if not proof.caught:
        click.echo(f"           {proof.mutant.caught_by} is {proof.verdict}: {proof.saw}")
        for other in proof.disturbed:
            click.echo(f"           and beside it {other}")
