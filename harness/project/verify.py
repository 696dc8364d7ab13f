"""`make verify`: lint, tests, audits and every check of our server, in one report.

A step is a command that must succeed, such as `make lint`. Its result is reported like a check's,
in the area `project`. A new step is one entry in `STEPS`.

`verify_location` decides where it runs. In a Vagrant machine, this command runs once more, and its
report is copied here; only that report decides the exit code.
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
from harness.host import processes
from harness.host.repository import ROOT
from harness.project.verify_location import Location, choose
from harness.record.results import CheckResult, load_report
from harness.record.verdict import BrokenError, Finding, Verdict, merge
from harness.run.choice import LOCAL, VM, Choice
from harness.run.run_directory import RESULTS_FOLDER, new_run_directory
from harness.run.session import Run, begin_run, judge_targets
from harness.vm.vagrant import VagrantMachine, connect_vagrant
from harness.vulncheck.database import ADVISORIES, ALLOW_STALE

PROJECT: Final = "project"
MACHINE_TIMEOUT_S: Final = 3 * 3600.0  # for everything, on an emulated processor
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
    """

    name: str
    guarantee: str
    command: tuple[str, ...]
    shows: str
    time_limit_s: float = 900.0
    broken_codes: frozenset[int] = frozenset()


STEPS: Final = (
    ProjectStep(
        "project.lint", "Style, types, protocol and layout follow the rules.", ("make", "lint"),
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


@dataclass(frozen=True, slots=True)
class LocationPlan:
    """What runs at a location.

    Attributes:
        targets: see `Choice`.
        skips_allowed: see `RunReport`; any other skip makes the run BROKEN.
    """

    targets: tuple[str, ...]
    skips_allowed: tuple[str, ...]


def _needing(target: str, *needs: Need) -> tuple[str, ...]:
    return tuple(f"{target}:{check.name}" for check in ALL if check.needs & set(needs))


# Its program is installed from the network, which may be unreachable.
SCANNER: Final = "local:identity.scanner"

PLANS: Final = {
    # The host may lack cgroup v2 and the right to protect a process from the OOM killer, which the
    # guest has; the guest's processor may be emulated, which the host's is not.
    Location.GUEST: LocationPlan(
        (LOCAL, VM),
        (
            "local:limits.*",
            "local:lifecycle.oom-score",
            SCANNER,
            "vm:streams.thousand",
            *_needing(VM, Need.NATIVE),
        ),
    ),
    # Everything that does not need a native processor or an empty disk.
    Location.HERE: LocationPlan(
        (LOCAL,),
        ("local:streams.thousand", SCANNER, *_needing(LOCAL, Need.DISK, Need.NATIVE)),
    ),
}


def chosen_steps(choice: Choice) -> list[ProjectStep]:
    """Return the steps that -k and --area choose, like checks."""
    return [
        step
        for step in STEPS
        if choice.matches(step.name) and (not choice.areas or PROJECT in choice.areas)
    ]


def checks_of(choice: Choice) -> Choice | None:
    """Return the choice of checks without the steps, or None if it chooses steps only.

    Raises:
        BrokenError: it chooses neither, or an unknown area.
    """
    areas = tuple(area for area in choice.areas if area != PROJECT)
    if chosen_steps(choice):
        steps_alone = bool(choice.areas) and not areas
        if steps_alone or not any(choice.matches(check.name) for check in ALL):
            return None
    rest = dataclasses.replace(choice, areas=areas)
    rest.checks()
    return rest


def run_steps(run: Run, steps: list[ProjectStep]) -> None:
    """Run steps, one after the other."""
    for step in steps:
        run.terminal.started(PROJECT, step.name)
        result = run_step(step)
        run.results.append(result)
        run.terminal.finished(result)


def verify(choice: Choice, location: str | None = None) -> int:
    """Run the chosen steps and checks, and return the exit code.

    Args:
        choice: without targets, the location's are used.
        location: a value of `Location`; None decides.

    Raises:
        BrokenError: the run could not begin.
    """
    checks_of(choice)
    decision = choose(location)
    click.echo(f"verifying {decision}")
    if decision.location is Location.VAGRANT:
        return _verify_in_vagrant(choice)
    plan = PLANS[decision.location]
    return _verify_on_this_host(
        dataclasses.replace(
            choice,
            targets=choice.targets or plan.targets,
            skips_allowed=(*plan.skips_allowed, *(choice.skips_allowed or ())),
        ),
        str(decision),
    )


def _verify_on_this_host(choice: Choice, where: str) -> int:
    steps, checks = chosen_steps(choice), checks_of(choice)
    count = len(checks.checks()) * len(checks.targets) if checks else 0
    with begin_run(checks or choice, len(steps) + count) as run:
        run.about["where"] = where
        run_steps(run, steps)
        if checks:
            judge_targets(run)
    return run.report().exit_code


def _verify_in_vagrant(choice: Choice) -> int:
    """Run this command in the Vagrant machine, and copy its report here.

    Raises:
        BrokenError: the machine does not answer, or its report is missing or contradicts its exit
            code.
    """
    if choice.targets:
        raise BrokenError("--target requires --in guest or --in here; leave it out")
    directory = new_run_directory(choice.out)
    remote_directory = f"{RESULTS_FOLDER}/{directory.name}"
    with connect_vagrant() as machine:
        click.echo("synchronising the checkout with the machine")
        machine.sync()
        words = ["env", *_send_advisories(machine), *remote_command(choice, remote_directory)]
        command = f".ci/setup && sudo {shlex.join(words)}"
        done = machine.run(command, MACHINE_TIMEOUT_S, shown=True)
        try:
            machine.fetch(remote_directory, directory)
            report = load_report(directory)
        except BrokenError as error:
            raise BrokenError(
                f"the run in the Vagrant machine exited with {done.exit_code} and left no report: "
                f"{error}"
            ) from error
    if report.exit_code != done.exit_code:
        raise BrokenError(
            f"the run in the Vagrant machine exited with {done.exit_code}, but its report has the "
            f"exit code {report.exit_code}"
        )
    click.echo(f"report: {directory / 'report.html'}")
    return report.exit_code


def _send_advisories(machine: VagrantMachine) -> list[str]:
    """Send the caller's advisory database, since the machine may have no network.

    Returns:
        The variables for the machine, as NAME=VALUE.
    """
    given = {name: os.environ[name] for name in (ADVISORIES, ALLOW_STALE) if os.environ.get(name)}
    if ADVISORIES in given:
        path = f"{RESULTS_FOLDER}/advisories.zip"
        machine.send(Path(given[ADVISORIES]), path)
        given[ADVISORIES] = path
    return [f"{name}={value}" for name, value in given.items()]


def remote_command(choice: Choice, out: str) -> list[str]:
    """Return the command that runs the same choice in the machine."""
    words = [".venv/bin/python", "-m", "harness", "verify", "--in", "here", "--out", out]
    words += ["--seed", choice.seed, "--parallel", str(choice.parallel)]
    words += ["-k", choice.keyword] if choice.keyword else []
    for area in choice.areas:
        words += ["--area", area]
    for name in choice.skips_allowed or ():
        words += ["--allow-skip", name]
    return words
