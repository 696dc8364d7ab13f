"""`python -m harness wire`."""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from harness.drive.identities import IdentityStore, make_identities
from harness.host.repository import ROOT
from harness.program import arguments
from harness.record.verdict import BrokenError
from harness.run.choice import LOCAL, VM, Choice
from harness.run.selftest import local_target
from harness.targets.address import AddressTarget
from harness.targets.local import LocalTarget
from harness.targets.target import Target
from harness.wire.equivalents import reason_for
from harness.wire.mutants import generate
from harness.wire.proof import (
    BAD,
    PARALLEL,
    Controls,
    Outcome,
    WireProof,
    control,
    judging_checks,
    prove_all,
)
from harness.wire.target import SERVICE


@click.command()
@click.option(
    "--target", type=arguments.target((LOCAL, VM)), default=LOCAL, show_default=True,
    metavar="TARGET",
    help="Server behind the relay: local (launched on this host), vm (launched in a VM with "
    "cgroup v2) or HOST:PORT.",
)  # fmt: skip
@click.option(
    "--launch", type=arguments.LAUNCH, metavar="COMMAND", default="",
    help="Command that starts another server; {listen}, {ca}, {cert} and {key} are replaced.",
)  # fmt: skip
@click.option(
    "--identities", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of certificates that `identities` generated; default: generate new ones.",
)  # fmt: skip
@click.option(
    "-k", "--keyword", type=arguments.PATTERN, default="", metavar="REGEX",
    help="Run only mutants whose name matches.",
)  # fmt: skip
@click.option(
    "--checks", type=arguments.PATTERN, default="", metavar="REGEX",
    help="Use only checks whose name matches.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the mutants without running them.")
@click.option(
    "--parallel", type=arguments.whole(1, 64), default=PARALLEL, show_default=True,
    help="Number of mutants at the same time.",
)  # fmt: skip
def wire(  # noqa: PLR0917 - click passes them by name
    target: str,
    launch: str,
    identities: Path | None,
    keyword: str,
    checks: str,
    parallel: int,
    *,
    listing: bool,
) -> None:
    """Mutation-test the checks with a relay that changes the traffic.

    Each mutant changes one field, the messages of one stream or one status of the API between the
    checks and a server that works: a check must fail. The server should exist for tests alone: a
    mutant may start changed commands and leave jobs behind. Exit code 0: every mutant is caught, or
    equivalent with a reason. 1: a mutant is missed. 2: the harness or its environment failed.
    """
    mutants = [each for each in generate(SERVICE) if re.search(keyword, each.name)]
    if not mutants:
        raise BrokenError(f"no mutant matches -k {keyword!r}; --list shows all mutants")
    if listing:
        for each in mutants:
            reason = reason_for(each.name)
            click.echo(f"{each.name}{f'  equivalent: {reason}' if reason else ''}")
        return
    started_s = time.monotonic()
    judges = [check for check in judging_checks() if re.search(checks, check.name)]
    if not judges:
        raise BrokenError(f"no check that judges mutants matches --checks {checks!r}")
    with tempfile.TemporaryDirectory(prefix="jobworker-wire-") as directory:
        store = IdentityStore(identities) if identities else make_identities(Path(directory))
        # One server for all mutants: it has no fault.
        with _open_target(target, launch, store) as opened, opened.shared() as server:
            controls = control(opened, server, judges, mutants)
            _show_controls(controls)
            if not controls.usable:
                raise BrokenError("no check passes directly and through the relay")
            outcomes = _report(prove_all(opened, server, mutants, controls, parallel), len(mutants))
    total = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    click.echo(f"{len(mutants)} mutants: {total} ({time.monotonic() - started_s:.0f} s)")
    if controls.unreachable:
        raise BrokenError(f"the relay disturbs {', '.join(controls.unreachable)}")
    sys.exit(1 if BAD & set(outcomes) else 0)


@contextmanager
def _open_target(name: str, launch: str, identities: IdentityStore) -> Iterator[Target]:
    Choice(targets=(name,), launch=launch, identities=identities.directory).require_targets()
    if launch:
        yield LocalTarget(identities, launch, {})
    elif name == LOCAL:
        yield local_target(identities, ROOT)
    elif name == VM:
        # Imported here, so that other targets do not need the guest's programs.
        from harness.targets.guest import guest_target  # noqa: PLC0415

        with guest_target(identities, ROOT) as target:
            yield target
    else:
        yield AddressTarget(name, identities)


def _show_controls(controls: Controls) -> None:
    """Report which checks judge, and why the others do not."""
    click.echo(f"{len(controls.usable)} checks pass directly and through an unchanging relay")
    for name, finding in {**controls.unusable, **controls.unreachable}.items():
        how = "directly" if name in controls.unusable else "THROUGH THE RELAY ALONE"
        click.echo(f"  {name} {how}: {finding}")


def _report(proofs: Iterator[WireProof], count: int) -> Counter[Outcome]:
    """Report each result as it comes, and return how many had each outcome."""
    outcomes: Counter[Outcome] = Counter()
    for number, proof in enumerate(proofs, 1):
        outcomes[proof.outcome] += 1
        place = f"[{number}/{count}]"
        name = f"{proof.mutant.name} ({proof.seconds:.1f} s)"
        click.echo(f"{place:>9}  {proof.outcome:11}  {name}  {proof.detail}")
    return outcomes
