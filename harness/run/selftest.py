"""Proves the judge: each mutant must make its check FAIL, and leave other areas' canaries alone.

A canary is one quick check of an area: that a fault stays where it is, is seen by these, not by
every check. Limits and abuse have none, see `WITHOUT_CANARY`. A canary may fail where the mutant
names it (`also`): the same promise is part of it.

Each check has a server of its own here, so that what one breaks is not blamed on the next. What the
target can do is asked of the unbroken server: a mutant must not get away with a lack.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.check import Check, Scale
from harness.drive.identities import IdentityStore
from harness.mutation.mutation import Mutation, broken_copy
from harness.record.results import CheckResult
from harness.record.verdict import BrokenError, Verdict
from harness.run.capabilities import Capabilities, ask
from harness.run.check_runner import Options, run_checks
from harness.targets.local import OUR_COMMAND, LocalTarget
from harness.targets.target import Target

# One quick check of each area, to see that a fault stays where it is.
CANARIES: Final = {
    "identity": "identity.roles",
    "lifecycle": "lifecycle.literal",
    "streams": "streams.after-end",
}
# abuse: floods of some seconds, which ask for nothing that the others do not ask for more gently.
# limits: the mutants of other areas are judged on this host, where there need be no cgroups.
WITHOUT_CANARY: Final = frozenset({"abuse", "limits"})
SEED: Final = "selftest"
PARALLEL: Final = 2


@dataclass(frozen=True, slots=True)
class MutantProof:
    """What became of a mutant.

    Attributes:
        mutant: which.
        verdict: of the check that must catch it.
        saw: the finding that did, or what was found instead.
        disturbed: canaries of other areas that did not pass, and must.
        seconds: how long it took.
    """

    mutant: Mutation
    verdict: Verdict
    saw: str
    disturbed: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """Whether it was caught by its check and by no other area's canary, but for `also`."""
        return self.verdict is Verdict.FAIL and not self.disturbed


@dataclass(slots=True)
class _Silent:
    """Listens to a run without a word."""

    results: list[CheckResult] = field(default_factory=list)

    def note(self, text: str) -> None:
        """See `Progress`."""

    def started(self, target: str, name: str) -> None:
        """See `Progress`."""

    def finished(self, result: CheckResult) -> None:
        """See `Progress`."""
        self.results.append(result)


TargetFor = Callable[[Path], Target]
# Told of each mutant when its turn has come, by any thread.
Begun = Callable[[Mutation], None]


def checks_named(names: Sequence[str]) -> list[Check]:
    """Return checks by name.

    Raises:
        BrokenError: there is none of a name.
    """
    by_name = {check.name: check for check in ALL}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise BrokenError(f"no check is called {', '.join(missing)}")
    return [by_name[name] for name in names]


def prove(
    mutant: Mutation,
    checkout: Path,
    target_for: TargetFor,
    capabilities: Capabilities,
    begun: Begun,
) -> MutantProof:
    """Break a copy of the server, judge it, and return what came of it.

    Raises:
        BrokenError: the mutant does not fit the source, or its check is not there.
    """
    begun(mutant)
    started_s = time.monotonic()
    area = mutant.caught_by.partition(".")[0]
    canaries = [name for canary_area, name in CANARIES.items() if canary_area != area]
    checks = checks_named([mutant.caught_by, *canaries])
    with tempfile.TemporaryDirectory(prefix="jobworker-mutant-") as directory:
        tree = broken_copy(mutant, checkout, Path(directory) / "tree")
        options = Options(SEED, Path(directory), parallel=1, own_server=True)
        results = run_checks(target_for(tree), checks, options, _Silent(), capabilities)
    by_name = {result.name: result for result in results}
    named = by_name.pop(mutant.caught_by)
    saw = named.telling[0].sentence() if named.telling else "every promise kept"
    disturbed = tuple(
        f"{name} {result.verdict}: {result.telling[0].sentence()[:300]}"
        for name, result in by_name.items()
        if result.verdict not in _allowed(mutant, name)
    )
    return MutantProof(mutant, named.verdict, saw, disturbed, time.monotonic() - started_s)


def _allowed(mutant: Mutation, name: str) -> set[Verdict]:
    """Return what a canary may come to: it passes, or fails where the mutant says so."""
    return {Verdict.PASS, Verdict.FAIL} if name in mutant.also else {Verdict.PASS}


def local_target(identities: IdentityStore, tree: Path) -> Target:
    """Return our server from a tree, on this host and without limits."""
    environment = {"PYTHONPATH": f"{tree / 'impl'}:{tree / 'proto'}"}
    return LocalTarget(identities, f"{OUR_COMMAND} --no-limits", environment=environment)


def unbroken_capabilities(target: Target) -> Capabilities:
    """Ask the unbroken server what it can do.

    Raises:
        BrokenError: it cannot be reached.
    """
    with target.shared() as server:
        return ask(target, server, Scale.SMALL if target.emulated else Scale.FULL)


def prove_local(
    mutants: Sequence[Mutation], checkout: Path, identities: IdentityStore, begun: Begun
) -> Iterator[MutantProof]:
    """Prove mutants on this host, two at a time; each as it comes."""

    def target_for(tree: Path) -> Target:
        return local_target(identities, tree)

    capabilities = unbroken_capabilities(target_for(checkout))
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(
            lambda mutant: prove(mutant, checkout, target_for, capabilities, begun), mutants
        )


@contextmanager
def guest_proofs(
    mutants: Sequence[Mutation], checkout: Path, identities: IdentityStore, begun: Begun
) -> Iterator[Iterator[MutantProof]]:
    """Prove mutants in one guest, one after the other."""
    # Here, so that nobody needs a guest's programs to prove the others.
    from harness.targets.guest import GuestTarget  # noqa: PLC0415
    from harness.vm.guest import booted  # noqa: PLC0415

    with booted("selftest") as guest:

        def target_for(tree: Path) -> Target:
            return GuestTarget(guest, identities, tree)

        capabilities = unbroken_capabilities(target_for(checkout))
        yield (prove(mutant, checkout, target_for, capabilities, begun) for mutant in mutants)
