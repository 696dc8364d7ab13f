"""`python -m harness selftest`, which `make selftest` runs."""

import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import click

from harness.drive.identities import make_identities
from harness.host.repository import ROOT, program
from harness.mutation import check_mutants as table
from harness.mutation.mutation import Mutation
from harness.program import arguments
from harness.record.number import Number
from harness.record.verdict import BrokenError, Verdict
from harness.run.matrix import HEADER, MEDIAN_FAILS_MAX, matrix_on_this_host
from harness.run.selftest import MutantProof, prove_in_guest, prove_on_this_host

_SHARES: Final = Number(1, 1000, whole=True)


def _parse_share(text: str) -> tuple[int, int]:
    """Return the first mutant of a share K/N, and the step to the next one."""
    number, _, count = text.partition("/")
    try:
        share, shares = _SHARES.accept_whole(number), _SHARES.accept_whole(count)
    except ValueError:
        share, shares = 1, 0
    if share > shares:
        raise ValueError("K/N with K from 1 to N and N at most 1000, for example 2/3")
    return share - 1, shares


SHARE: Final = arguments.Argument("share", _parse_share)


@click.command()
@click.option(
    "-k", "--keyword", type=arguments.PATTERN, default="", metavar="REGEX",
    help="Run only mutants whose name or check matches.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the mutants without running them.")
@click.option(
    "--where", type=click.Choice(["local", "vm", "all"]), default="all", show_default=True,
    help="Where mutants run: local is this host, vm a VM (the mutants that need cgroup v2).",
)  # fmt: skip
@click.option(
    "--share", type=SHARE, default="1/1", show_default=True, metavar="K/N",
    help="Split the mutants into N shares, and run share K.",
)  # fmt: skip
@click.option(
    "--matrix",
    "as_matrix",
    is_flag=True,
    help="Judge each mutant of this host by all quick checks, and count those that FAIL.",
)
def selftest(
    keyword: str, where: str, share: tuple[int, int], *, listing: bool, as_matrix: bool
) -> None:
    """Mutation-test the harness with broken servers.

    Each mutant is a copy of our server with one fault: its check must fail, and the control checks
    of other areas must pass. With --matrix, the median mutant must make one check fail.

    Exit code 0: every mutant is caught. 1: a mutant is missed. 2: the harness or its environment
    failed.
    """
    first, step = share
    local, guest = (
        _matching(mutants, keyword)[first::step] for mutants in (table.LOCAL, table.GUEST)
    )
    local, guest = (local if where != "vm" else ()), (guest if where != "local" else ())
    if not local and not guest:
        raise BrokenError(f"no mutant matches -k {keyword!r}; --list shows all mutants")
    if listing:
        for mutant in (*local, *guest):
            click.echo(f"{mutant.caught_by:32} catches a server that {mutant.name}")
        return
    if as_matrix:
        sys.exit(_matrix(local))
    missed: list[MutantProof] = []
    total = len(_matching((*table.LOCAL, *table.GUEST), keyword)) if step > 1 else 0
    try:
        _judge(local, guest, missed, total)
    finally:
        # Last, also when the harness fails: of a log that keeps only its end, this is left.
        for line in _not_caught(missed):
            click.echo(line)
    sys.exit(1 if missed else 0)


def _judge(
    local: Sequence[Mutation], guest: Sequence[Mutation], missed: list[MutantProof], total: int
) -> None:
    """Judge mutants, print each, and add those that are not caught to `missed`.

    Args:
        local: mutants of this host.
        guest: mutants of a guest.
        missed: receives the proofs.
        total: the number of mutants in all shares; 0 without shares.
    """
    numbers = {mutant.name: number for number, mutant in enumerate((*local, *guest), 1)}
    count = len(numbers)

    def report(mutant: Mutation, event: str, duration: str = "") -> None:
        number = f"[{numbers[mutant.name]}/{count}]"
        what = f"{mutant.caught_by:32} a server that {mutant.name}{duration}"
        click.echo(f"{number:>9}  {event:8}  {what}")

    for proof in _prove(local, guest, lambda mutant: report(mutant, "started")):
        report(proof.mutant, "caught" if proof.caught else "MISSED", f" ({proof.seconds:.0f} s)")
        if not proof.caught:
            missed.append(proof)
            for reason in _reasons(proof):
                click.echo(f"           {reason}")
    click.echo(
        f"{count - len(missed)} of {count} mutants caught: their check failed, the control checks "
        "passed"
    )
    if total:
        click.echo(f"{total - count} of {total} mutants are in other shares")


def _not_caught(missed: Sequence[MutantProof]) -> Iterator[str]:
    """Yield a list of the mutants that were not caught: why, and the command that repeats each."""
    if missed:
        yield f"\nnot caught: {len(missed)}"
    for proof in missed:
        yield f"  {proof.mutant.caught_by}: a server that {proof.mutant.name}"
        for reason in _reasons(proof):
            yield f"      {reason}"
        yield f"      repeat: {shlex.join([*program(), 'selftest', '-k', _pattern(proof.mutant)])}"


def _pattern(mutant: Mutation) -> str:
    """Return the regular expression that only this mutant matches."""
    return re.sub(r"[\\^$.|?*+()\[\]{}]", r"\\\g<0>", f"{mutant.caught_by} {mutant.name}") + "$"


def _matrix(mutants: tuple[Mutation, ...]) -> int:
    """Print the table of mutants and checks, and return the exit code."""
    click.echo(HEADER)
    rows = []
    with tempfile.TemporaryDirectory(prefix="jobworker-matrix-") as directory:
        for row in matrix_on_this_host(mutants, ROOT, make_identities(Path(directory))):
            click.echo(row.line())
            rows.append(row)
    del rows[0]  # of the unbroken server
    missed = [row.mutant.name for row in rows if not row.fails]
    median = statistics.median(row.fails for row in rows)
    click.echo(
        f"\n{len(rows)} mutants, {len(missed)} missed; {median:g} FAIL for the median mutant"
    )
    return 1 if missed or median > MEDIAN_FAILS_MAX else 0


def _matching(mutants: tuple[Mutation, ...], keyword: str) -> tuple[Mutation, ...]:
    return tuple(
        mutant for mutant in mutants if re.search(keyword, f"{mutant.caught_by} {mutant.name}")
    )


def _prove(
    local: Sequence[Mutation], guest: Sequence[Mutation], on_start: Callable[[Mutation], None]
) -> Iterator[MutantProof]:
    with tempfile.TemporaryDirectory(prefix="jobworker-selftest-") as directory:
        store = make_identities(Path(directory))
        if local:
            yield from prove_on_this_host(local, ROOT, store, on_start)
        if guest:
            with closing(prove_in_guest(guest, ROOT, store, on_start)) as proofs:
                yield from proofs


def _reasons(proof: MutantProof) -> Iterator[str]:
    """Yield why a mutant is not caught."""
    if proof.verdict is not Verdict.FAIL:
        yield f"{proof.mutant.caught_by} is {proof.verdict}: {proof.finding}"
    for other in proof.disturbed:
        yield f"control check {other}"
