"""Mutation-tests the harness: each mutant's check must FAIL, the control checks must pass.

A control check is one quick check of an area. The control checks of the areas other than the
mutant's must pass, which shows that a fault fails its check alone; those that test the same promise
may fail if the mutant names them (`also`). `WITHOUT_CONTROL_CHECK` has the areas without one.

Each check gets its own server, so that a server broken by one check does not fail the next. The
capabilities are those of the unbroken server: a mutant must not be skipped for a missing feature.
"""

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.check import Check, Scale
from harness.drive.identities import IdentityStore
from harness.mutation.mutation import Mutation, broken_copy
from harness.record.verdict import BrokenError, Verdict
from harness.run.capabilities import Capabilities, probe_capabilities
from harness.run.check_runner import Options, Silent, run_checks
from harness.targets.local import OUR_COMMAND, LocalTarget
from harness.targets.target import Target

CONTROL_CHECKS: Final = {
    "identity": "identity.roles",
    "lifecycle": "lifecycle.literal",
    "streams": "streams.after-end",
}
# abuse: its checks take seconds, and test no promise that the other areas do not test faster.
# limits: the other areas' mutants run on this host, which may have no cgroup v2.
WITHOUT_CONTROL_CHECK: Final = frozenset({"abuse", "limits"})
SEED: Final = "selftest"
PARALLEL: Final = 2


@dataclass(frozen=True, slots=True)
class MutantProof:
    """The result of a mutant.

    Attributes:
        mutant: the mutant.
        verdict: of the check that must catch it.
        finding: the check's first finding with that verdict.
        disturbed: the control checks that must pass and did not, each with its finding.
        seconds: duration.
    """

    mutant: Mutation
    verdict: Verdict
    finding: str
    disturbed: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """Whether its check failed, and the control checks passed."""
        return self.verdict is Verdict.FAIL and not self.disturbed


TargetFor = Callable[[Path], Target]
# Called with each mutant before its checks run, from any thread.
OnStart = Callable[[Mutation], None]


def checks_named(names: Sequence[str]) -> list[Check]:
    """Return checks by name.

    Raises:
        BrokenError: no check has a name.
    """
    by_name = {check.name: check for check in ALL}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise BrokenError(f"unknown check {', '.join(missing)}")
    return [by_name[name] for name in names]


def prove(
    mutant: Mutation,
    checkout: Path,
    target_for: TargetFor,
    capabilities: Capabilities,
    on_start: OnStart,
) -> MutantProof:
    """Judge a copy of the server that has the mutant's fault.

    Raises:
        BrokenError: the mutant does not fit the source, or its check does not exist.
    """
    on_start(mutant)
    started_s = time.monotonic()
    area = mutant.caught_by.partition(".")[0]
    controls = [name for other, name in CONTROL_CHECKS.items() if other != area]
    checks = checks_named([mutant.caught_by, *controls])
    with tempfile.TemporaryDirectory(prefix="jobworker-mutant-") as directory:
        tree = broken_copy(mutant, checkout, Path(directory) / "tree")
        options = Options(SEED, Path(directory), parallel=1, own_server=True)
        results = run_checks(target_for(tree), checks, options, Silent(), capabilities)
    by_name = {result.name: result for result in results}
    named = by_name.pop(mutant.caught_by)
    finding = named.decisive[0].sentence() if named.decisive else "every promise kept"
    disturbed = tuple(
        f"{name} {result.verdict}: {result.decisive[0].sentence()[:300]}"
        for name, result in by_name.items()
        if result.verdict not in _allowed_verdicts(mutant, name)
    )
    return MutantProof(mutant, named.verdict, finding, disturbed, time.monotonic() - started_s)


def _allowed_verdicts(mutant: Mutation, name: str) -> set[Verdict]:
    """Return the verdicts that a control check may have."""
    also = {Verdict.FAIL, Verdict.SKIPPED} if name in mutant.also else set()
    return {Verdict.PASS, *also}


def local_target(identities: IdentityStore, tree: Path) -> Target:
    """Return a tree's server as a target on this host, without limits."""
    environment = {"PYTHONPATH": f"{tree / 'impl'}:{tree / 'proto'}"}
    return LocalTarget(identities, f"{OUR_COMMAND} --no-limits", environment=environment)


def unbroken_capabilities(target: Target) -> Capabilities:
    """Return the capabilities of the unbroken server.

    Raises:
        BrokenError: it cannot be reached.
    """
    with target.shared() as server:
        return probe_capabilities(target, server, Scale.SMALL if target.emulated else Scale.FULL)


def prove_on_this_host(
    mutants: Sequence[Mutation], checkout: Path, identities: IdentityStore, on_start: OnStart
) -> Iterator[MutantProof]:
    """Judge mutants on this host, two at a time; yield their results in order."""

    def target_for(tree: Path) -> Target:
        return local_target(identities, tree)

    capabilities = unbroken_capabilities(target_for(checkout))
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(
            lambda mutant: prove(mutant, checkout, target_for, capabilities, on_start), mutants
        )


def prove_in_guest(
    mutants: Sequence[Mutation], checkout: Path, identities: IdentityStore, on_start: OnStart
) -> Generator[MutantProof, None, None]:
    """Judge mutants in one guest, one after the other; it ends with the generator."""
    # Imported here, so that the mutants of this host do not need the guest's programs.
    from harness.targets.guest import GuestTarget  # noqa: PLC0415
    from harness.vm.guest import boot_guest  # noqa: PLC0415

    with boot_guest("selftest") as guest:

        def target_for(tree: Path) -> Target:
            return GuestTarget(guest, identities, tree)

        capabilities = unbroken_capabilities(target_for(checkout))
        for mutant in mutants:
            yield prove(mutant, checkout, target_for, capabilities, on_start)
