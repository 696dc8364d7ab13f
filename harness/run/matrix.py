"""Mutants x checks: how many checks FAIL for one fault.

Each mutant is judged as a server is: by all quick checks and the check that must catch it, on
servers that the checks share. Best is one FAIL: the check that owns the broken promise.
"""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.quick import QUICK
from harness.drive.identities import IdentityStore
from harness.mutation.mutation import Mutation, broken_copy
from harness.record.results import CheckResult
from harness.record.verdict import Verdict
from harness.run.check_runner import PARALLEL, Options, Silent, run_checks
from harness.run.selftest import SEED, local_target, unbroken_capabilities

# Beyond this, checks repeat each other's findings.
MEDIAN_FAILS_MAX: Final = 1
HEADER: Final = (
    "| a server that | FAIL | checks | could not be judged | BROKEN |\n|---|---|---|---|---|"
)
# Its row shows which checks FAIL without a fault.
UNBROKEN: Final = Mutation("is unbroken", (), QUICK[0])


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A mutant, and its results by all checks."""

    mutant: Mutation
    results: tuple[CheckResult, ...]

    @property
    def fails(self) -> int:
        """How many checks FAIL."""
        return len(self.named(Verdict.FAIL))

    def named(self, verdict: Verdict) -> list[str]:
        """Return the names of the checks with a verdict."""
        return [each.name for each in self.results if each.verdict is verdict]

    def line(self) -> str:
        """Return the row of a Markdown table."""
        failed = self.named(Verdict.FAIL)
        hidden = Counter(each.because for each in self.results if each.because)
        because = ", ".join(f"{number} by {name}" for name, number in hidden.items())
        broken = ", ".join(self.named(Verdict.BROKEN))
        return (
            f"| {self.mutant.name} | {len(failed)} | {', '.join(failed)} | {because} | {broken} |"
        )


def matrix_on_this_host(
    mutants: Sequence[Mutation], checkout: Path, identities: IdentityStore
) -> Iterator[MatrixRow]:
    """Judge the unbroken server, whose row is the first, then mutants, one after the other.

    A check that FAILs or is BROKEN on the unbroken server is left out of the other rows.

    Raises:
        BrokenError: a mutant does not fit the source, or its server cannot be started.
    """
    capabilities = unbroken_capabilities(local_target(identities, checkout))

    def row(mutant: Mutation, left_out: Collection[str] = ()) -> MatrixRow:
        names = {*QUICK}.difference(left_out) | {mutant.caught_by}
        checks = [check for check in ALL if check.name in names]
        with tempfile.TemporaryDirectory(prefix="jobworker-mutant-") as directory:
            tree = broken_copy(mutant, checkout, Path(directory) / "tree")
            options = Options(SEED, Path(directory), parallel=PARALLEL)
            target = local_target(identities, tree)
            results = run_checks(target, checks, options, Silent(), capabilities)
        return MatrixRow(mutant, tuple(results))

    unbroken = row(UNBROKEN)
    yield unbroken
    left_out = unbroken.named(Verdict.FAIL) + unbroken.named(Verdict.BROKEN)
    for mutant in mutants:
        yield row(mutant, left_out)
