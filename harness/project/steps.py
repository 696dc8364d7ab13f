"""The steps of `make verify` that are commands, such as `make lint`: each must succeed.

Its result is reported like a check's, in the area `project`. A new step is one entry in `STEPS`.
"""

import dataclasses
import re
import sys
import time
from dataclasses import dataclass
from typing import Final

from harness.host import processes
from harness.host.repository import ROOT
from harness.record.results import CheckResult
from harness.record.verdict import BrokenError, Finding, Verdict, merge

PROJECT: Final = "project"
_TAIL_CHARACTERS: Final = 3000
# `make verify ARGS=...` exports its variables; a make that a step runs must not inherit them.
_MAKE_VARIABLES: Final = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS")


@dataclass(frozen=True, slots=True)
class ProjectStep:
    """A command that must succeed.

    Attributes:
        name: `project.subject`, as a check's.
        guarantee: what its success means.
        command: run in the checkout.
        shows: a regular expression that the output must match, so that doing nothing is BROKEN.
        time_limit_s: after which it is BROKEN.
        broken_codes: exit codes that mean that it was inconclusive.
        budget_s: how long it is to take on two quiet cores; more is a warning.
        quick: options of the command that leave out what takes long.
        leaves_out: what they leave out, and the command that runs it.
    """

    name: str
    guarantee: str
    command: tuple[str, ...]
    shows: str
    time_limit_s: float = 900.0
    broken_codes: frozenset[int] = frozenset()
    budget_s: float = 0.0
    quick: tuple[str, ...] = ()
    leaves_out: str = ""

    def shortened(self) -> "ProjectStep":
        """Return the step without what takes long."""
        return dataclasses.replace(self, command=(*self.command, *self.quick))


STEPS: Final = (
    ProjectStep(
        "project.lint", "Style, types, protocol and layout follow the rules.", ("make", "lint"),
        r"no issues found in \d+ source files", budget_s=45.0,
    ),
    ProjectStep(
        "project.tests", "The unit and integration tests pass.", ("make", "test"), r"\d+ passed",
        time_limit_s=1800.0, budget_s=240.0,
        quick=("ARGS=--deselect tests/integration/test_checks.py",),
        leaves_out="the quick checks, which are among the checks of this host (make test)",
    ),
    ProjectStep(
        "project.vulncheck", "No locked package is known to be vulnerable.",
        (sys.executable, "-m", "harness", "vulncheck"), r"canary .* flagged",
        broken_codes=frozenset({2}), budget_s=15.0,
    ),
    ProjectStep(
        "project.races", "Threads do not race, and a planted race would be found.",
        (sys.executable, "-m", "harness", "races", "all"), r"\b0 races in \d+ accesses",
        broken_codes=frozenset({2}), budget_s=90.0, quick=("--quick",),
        leaves_out="the exhaustive search, most random schedules and the planted races (make race)",
    ),
)  # fmt: skip


def run_step(step: ProjectStep) -> CheckResult:
    """Run a step, and judge its exit code and output."""
    started_s = time.monotonic()
    findings: tuple[Finding, ...]
    try:
        unset = [f"--unset={name}" for name in _MAKE_VARIABLES]
        done = processes.run(["env", *unset, "-C", ROOT, *step.command], step.time_limit_s)
        output = (done.stdout + done.stderr).strip()
        findings = (
            Finding(
                _verdict(step, done.exit_code),
                f"`{' '.join(step.command)}` succeeds",
                output[-_TAIL_CHARACTERS:] if done.exit_code else output.rpartition("\n")[2],
                "exit code 0",
            ),
            Finding(
                Verdict.PASS if re.search(step.shows, output) else Verdict.BROKEN,
                "its output shows that it ran",
                output.rpartition("\n")[2],
                step.shows,
            ),
        )
    except BrokenError as error:
        findings = (Finding(Verdict.BROKEN, "it completes", str(error)),)
    return CheckResult(
        PROJECT,
        step.name,
        step.guarantee,
        merge(findings),
        findings,
        time.monotonic() - started_s,
        rerun=" ".join(step.command),
    )


def _verdict(step: ProjectStep, exit_code: int) -> Verdict:
    if exit_code == 0:
        return Verdict.PASS
    return Verdict.BROKEN if exit_code in step.broken_codes else Verdict.FAIL
