"""`make verify`: the project's own checks and the server's, in one report, where limits can be had.

A step is a command of the project's that must succeed: lint, tests. Its result stands
beside those of the checks, in the area `project`. A new step is one entry in `STEPS`.

`places` chooses where. In a Vagrant machine this same command runs once more, and what it said and
its report come back; nothing but that report decides how the run ended.
"""

import dataclasses
import os
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from harness.checks import ALL
from harness.checks.check import Need
from harness.host.processes import run
from harness.host.repository import ROOT
from harness.project.verify_location import Place, choose
from harness.record.results import CheckResult, load_report
from harness.record.verdict import BrokenError, Finding, Verdict, merge
from harness.run.choice import LOCAL, VM, Choice
from harness.run.run_directory import RESULTS_FOLDER, new_run_directory
from harness.run.session import Run, begin_run, judge_targets
from harness.vm.vagrant import VagrantMachine, reached
from harness.vulncheck.database import ADVISORIES, ALLOW_STALE

PROJECT: Final = "project"
THERE_TIMEOUT_S: Final = 3 * 3600.0  # all of it, on an emulated processor
_TAIL_CHARACTERS: Final = 3000
# What `make verify ARGS=...` was told is for verify: a make that a step calls would take it, too.
_NOT_FOR_STEPS: Final = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS")


@dataclass(frozen=True, slots=True)
class ProjectStep:
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
    ProjectStep(
        "project.lint", "Style, types, protocol and layout are as agreed.", ("make", "lint"),
        r"no issues found in \d+ source files",
    ),
    ProjectStep(
        "project.tests", "The unit and integration tests pass.", ("make", "test"), r"\d+ passed",
        time_limit_s=1800.0,
    ),
    ProjectStep(
        "project.vulncheck", "No locked package is known to be vulnerable.",
        (sys.executable, "-m", "harness", "vulncheck"), r"canary .* flagged",
        broken_codes=frozenset({2}),
    ),
    ProjectStep(
        "project.races", "Threads do not race, and a planted race would be found.",
        (sys.executable, "-m", "harness", "races", "all"), r"\b0 races in \d+ accesses",
        broken_codes=frozenset({2}),
    ),
)  # fmt: skip


def run_step(step: ProjectStep) -> CheckResult:
    """Run a step to its end."""
    started_s = time.monotonic()
    findings: tuple[Finding, ...]
    try:
        without = [f"--unset={name}" for name in _NOT_FOR_STEPS]
        done = run(["env", *without, "-C", ROOT, *step.command], step.time_limit_s)
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


@dataclass(frozen=True, slots=True)
class Ways:
    """What is judged in a place.

    Attributes:
        targets: as `Choice` has them.
        skips_allowed: by name; any other skip makes the run BROKEN.
    """

    targets: tuple[str, ...]
    skips_allowed: tuple[str, ...]


def _needing(target: str, *needs: Need) -> tuple[str, ...]:
    return tuple(f"{target}:{check.name}" for check in ALL if check.needs & set(needs))


# It has to be installed once, from a network that need not be there.
SCANNER: Final = "local:identity.scanner"

WAYS: Final = {
    # The host may lack cgroup v2, which the guest has; the guest's processor may be emulated, which
    # the host's is not.
    Place.GUEST: Ways(
        (LOCAL, VM),
        ("local:limits.*", SCANNER, "vm:streams.thousand", *_needing(VM, Need.NATIVE)),
    ),
    # Everything, but for what an emulated processor or a machine with one disk cannot show.
    Place.HERE: Ways(
        (LOCAL,),
        ("local:streams.thousand", SCANNER, *_needing(LOCAL, Need.DISK, Need.NATIVE)),
    ),
}


def chosen_steps(choice: Choice) -> list[ProjectStep]:
    """Return the steps that a choice takes in, as it takes in checks."""
    return [
        step
        for step in STEPS
        if _fits(choice, step.name) and (not choice.areas or PROJECT in choice.areas)
    ]


def checks_of(choice: Choice) -> Choice | None:
    """Return the choice of checks beside the steps, or None when there is nothing but steps.

    Raises:
        BrokenError: there is neither, or an area that there is not.
    """
    areas = tuple(area for area in choice.areas if area != PROJECT)
    if chosen_steps(choice):
        steps_alone = bool(choice.areas) and not areas
        if steps_alone or not any(_fits(choice, check.name) for check in ALL):
            return None
    rest = dataclasses.replace(choice, areas=areas)
    rest.checks()
    return rest


def _fits(choice: Choice, name: str) -> bool:
    try:
        return re.search(choice.keyword, name) is not None
    except re.error as error:
        raise BrokenError(f"-k {choice.keyword!r} is no regular expression: {error}") from error


def run_steps(going: Run, steps: list[ProjectStep]) -> None:
    """Run steps, one after the other."""
    for step in steps:
        going.terminal.started(PROJECT, step.name)
        result = run_step(step)
        going.results.append(result)
        going.terminal.finished(result)


def verify(choice: Choice, asked: str | None = None) -> int:
    """Run the chosen steps and checks where limits can be had, and return the exit code.

    Args:
        choice: no targets: those of the place.
        asked: the place, as its name; None: the best that there is.

    Raises:
        BrokenError: nothing could be begun.
    """
    checks_of(choice)
    where = choose(asked)
    click.echo(f"verifying {where}")
    if where.place is Place.VAGRANT:
        return _verify_there(choice)
    ways = WAYS[where.place]
    return _verify_here(
        dataclasses.replace(
            choice,
            targets=choice.targets or ways.targets,
            skips_allowed=(*ways.skips_allowed, *(choice.skips_allowed or ())),
        ),
        str(where),
    )


def _verify_here(choice: Choice, where: str) -> int:
    steps, judged = chosen_steps(choice), checks_of(choice)
    count = len(judged.checks()) * len(judged.targets) if judged else 0
    with begin_run(judged or choice, len(steps) + count) as going:
        going.about["where"] = where
        run_steps(going, steps)
        if judged:
            judge_targets(going)
    return going.report().exit_code


def _verify_there(choice: Choice) -> int:
    """Run all of it in the Vagrant machine, and bring its report here.

    Raises:
        BrokenError: the machine does not answer, or left no report that says how it ended.
    """
    if choice.targets:
        raise BrokenError("--target chooses for --in guest and --in here; leave it out here")
    directory = new_run_directory(choice.out)
    there = f"{RESULTS_FOLDER}/{directory.name}"
    with reached() as machine:
        click.echo("bringing the checkout in the machine up to date")
        machine.sync()
        words = ["env", *_advisories_there(machine), *command_there(choice, there)]
        command = f".ci/setup && sudo {shlex.join(words)}"
        done = machine.run(command, THERE_TIMEOUT_S, shown=True)
        try:
            machine.fetch(there, directory)
            report = load_report(directory)
        except BrokenError as error:
            raise BrokenError(
                f"the run in the Vagrant machine ended with {done.exit_code} and left no report: "
                f"{error}"
            ) from error
    if report.exit_code != done.exit_code:
        raise BrokenError(
            f"the run in the Vagrant machine ended with {done.exit_code}, and its report says "
            f"{report.exit_code}"
        )
    click.echo(f"the report is here now: {directory / 'report.html'}")
    return report.exit_code


def _advisories_there(machine: VagrantMachine) -> list[str]:
    """Bring along the dump of advisories that the caller names: the machine may have no network."""
    given = {name: os.environ[name] for name in (ADVISORIES, ALLOW_STALE) if os.environ.get(name)}
    if ADVISORIES in given:
        there = f"{RESULTS_FOLDER}/advisories.zip"
        machine.send(Path(given[ADVISORIES]), there)
        given[ADVISORIES] = there
    return [f"{name}={value}" for name, value in given.items()]


def command_there(choice: Choice, out: str) -> list[str]:
    """Return the command that makes the same choice in the machine."""
    words = [".venv/bin/python", "-m", "harness", "verify", "--in", "here", "--out", out]
    words += ["--seed", choice.seed, "--parallel", str(choice.parallel)]
    words += ["-k", choice.keyword] if choice.keyword else []
    for area in choice.areas:
        words += ["--area", area]
    for name in choice.skips_allowed or ():
        words += ["--allow-skip", name]
    return words
