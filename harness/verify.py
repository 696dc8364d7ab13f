"""`make verify`: the project's own checks and the server's, in one report.

A step is a command of the project's that must succeed: lint, tests. Its result stands
beside those of the checks, in the area `project`. A new step is one entry in `STEPS`.
"""

import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.processes import run
from harness.results import Result
from harness.runs import Choice, Run, begun, judge_targets
from harness.targets.local import checkout
from harness.verdict import BrokenError, Finding, Verdict, merge

PROJECT: Final = "project"
_TAIL_CHARACTERS: Final = 3000


@dataclass(frozen=True, slots=True)
class Step:
    """A program that must succeed.

    Attributes:
        name: as a check's.
        guarantee: what its success means.
        command: run in the checkout.
        shows: what its output must have in it, so that doing nothing is no success.
        time_limit_s: bound.
        broken_codes: exit codes that say that nothing could be said.
    """

    name: str
    guarantee: str
    command: tuple[str, ...]
    shows: str
    time_limit_s: float = 900.0
    broken_codes: frozenset[int] = frozenset()


STEPS: Final = (
    Step(
        "project.lint", "Style, types, protocol and layout are as agreed.", ("make", "lint"),
        r"no issues found in \d+ source files",
    ),
    Step("project.tests", "The unit and integration tests pass.", ("make", "test"), r"\d+ passed"),
    Step(
        "project.vulncheck", "No locked package is known to be vulnerable.",
        (sys.executable, "-m", "harness", "vulncheck"), r"canary .* flagged",
        broken_codes=frozenset({2}),
    ),
)  # fmt: skip


def run_step(step: Step) -> Result:
    """Run a step to its end."""
    started_s = time.monotonic()
    findings: tuple[Finding, ...]
    try:
        done = run(["env", "-C", checkout(), *step.command], step.time_limit_s)
        said = (done.stdout + done.stderr).strip()
        findings = (
            Finding(
                _verdict(step, done.exit_code),
                f"`{' '.join(step.command)}` succeeds",
                said[-_TAIL_CHARACTERS:] if done.exit_code else said.rpartition("\n")[2],
                "exit code 0",
            ),
            Finding(
                Verdict.PASS if re.search(step.shows, said) else Verdict.BROKEN,
                "it did something",
                said.rpartition("\n")[2],
                step.shows,
            ),
        )
    except BrokenError as error:
        findings = (Finding(Verdict.BROKEN, "it runs to its end", str(error)),)
    return Result(
        PROJECT,
        step.name,
        step.guarantee,
        merge(findings),
        findings,
        time.monotonic() - started_s,
        rerun=" ".join(step.command),
    )


def _verdict(step: Step, exit_code: int) -> Verdict:
    if exit_code == 0:
        return Verdict.PASS
    return Verdict.BROKEN if exit_code in step.broken_codes else Verdict.FAIL


def run_steps(going: Run) -> None:
    """Run all steps, one after the other."""
    for step in STEPS:
        going.terminal.started(PROJECT, step.name)
        result = run_step(step)
        going.results.append(result)
        going.terminal.finished(result)


def verify(choice: Choice) -> int:
    """Run the steps and the chosen checks, and return the exit code.

    Raises:
        BrokenError: nothing could be begun.
    """
    total = len(STEPS) + len(choice.checks()) * len(choice.targets)
    with begun(choice, total) as going, ExitStack() as stack:
        run_steps(going)
        judge_targets(going, stack)
    return going.report().exit_code
