"""`make verify`: lint, tests, audits and every check of our server, in one report.

Its steps are commands (`steps`) and the checks of each target. Without --full it leaves out what
another step of the same run shows, and long searches; the report says what, and how to run it.

`verify_location` decides where it runs. In a Vagrant machine, this command runs once more, and its
report is copied here; only that report decides the exit code.
"""

import dataclasses
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import click

from harness.checks import ALL
from harness.checks.check import Need
from harness.project.steps import PROJECT, STEPS, ProjectStep, run_step
from harness.project.times import CHECK_BUDGETS_S, Estimate, estimate, remember
from harness.project.verify_location import Decision, Location, choose
from harness.record.results import load_report
from harness.record.verdict import BrokenError
from harness.report.summary import counted
from harness.run.choice import LOCAL, VM, Choice
from harness.run.run_directory import RESULTS_FOLDER, new_run_directory
from harness.run.session import Run, begin_run, checks_step, judge_targets
from harness.vm.vagrant import VagrantMachine, connect_vagrant
from harness.vulncheck.database import ADVISORIES, ALLOW_STALE

EVERYTHING: Final = "make verify ARGS=--full"
MACHINE_TIMEOUT_S: Final = 3 * 3600.0  # for everything, on an emulated processor


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
    # The host may lack cgroup v2 and the right to protect a process from the OOM killer, and its
    # clock is not to be set; the guest has all that. The guest's processor may be emulated, which
    # the host's is not.
    Location.GUEST: LocationPlan(
        (LOCAL, VM),
        (
            "local:limits.*",
            "local:lifecycle.oom-score",
            *_needing(LOCAL, Need.GUEST),
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


# A server with cgroups starts a job, and ends its tree, by other means than one without: the guest
# judges these again.
IN_GUEST_TOO: Final = frozenset({
    "lifecycle.background",
    "lifecycle.bad-commands",
    "lifecycle.escalates",
    "lifecycle.exit-codes",
    "lifecycle.inheritance",
    "lifecycle.oom-score",
    "lifecycle.shutdown",
    "lifecycle.signals",
    "lifecycle.stop-race",
    "lifecycle.stop-tree",
    "lifecycle.stopped-job",
    "lifecycle.surroundings",
    "lifecycle.tree-escalates",
    "lifecycle.tree-grace",
    "streams.survivor",
})  # fmt: skip


def left_out(targets: tuple[str, ...], skips_allowed: tuple[str, ...]) -> frozenset[str]:
    """Return the checks of the guest, as TARGET:CHECK, that this host shows in the same run.

    A check that this host may skip is not among them.
    """
    if not {LOCAL, VM} <= set(targets):
        return frozenset()
    may_skip = [pattern for pattern in skips_allowed if pattern != SCANNER]
    return frozenset(
        f"{VM}:{check.name}"
        for check in ALL
        if check.name not in IN_GUEST_TOO
        and not any(fnmatchcase(f"{LOCAL}:{check.name}", pattern) for pattern in may_skip)
    )


def chosen_steps(choice: Choice, *, full: bool = True) -> list[ProjectStep]:
    """Return the steps that -k and --area choose, like checks."""
    return [
        step if full else step.shortened()
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


def verify(choice: Choice, location: str | None = None, *, full: bool = False) -> int:
    """Run the chosen steps and checks, and return the exit code.

    Args:
        choice: without targets, the location's are used.
        location: a value of `Location`; None decides.
        full: leave nothing out.

    Raises:
        BrokenError: the run could not begin.
    """
    checks_of(choice)
    decision = choose(location)
    click.echo(f"verifying {decision}")
    if decision.location is Location.VAGRANT:
        return _verify_in_vagrant(choice, full=full)
    plan = PLANS[decision.location]
    targets = choice.targets or plan.targets
    choice = dataclasses.replace(
        choice,
        targets=targets,
        skips_allowed=(*plan.skips_allowed, *(choice.skips_allowed or ())),
        left_out=frozenset() if full else left_out(targets, plan.skips_allowed),
    )
    return _verify_on_this_host(choice, decision, full=full)


def _verify_on_this_host(choice: Choice, decision: Decision, *, full: bool) -> int:
    steps, checks = chosen_steps(choice, full=full), checks_of(choice)
    count = checks.expected if checks else 0
    takes = _estimate(choice, decision, steps, full=full)
    about = {"where": str(decision)}
    if takes.kind:
        about["takes"] = str(takes)
    if texts := [] if full else _what_is_left_out(steps, checks):
        about["left out"] = f"{'; '.join(texts)}. `{EVERYTHING}` runs all of it"
    with begin_run(checks or choice, len(steps) + count, about, takes.seconds) as run:
        run.budgets_s = {**{step.name: step.budget_s for step in steps}, **CHECK_BUDGETS_S}
        run_steps(run, steps)
        if checks:
            judge_targets(run)
    report = run.report()
    if takes.kind and not report.is_cut_short:
        remember(takes.kind, report.steps, report.seconds)
    return report.exit_code


def run_steps(run: Run, steps: list[ProjectStep]) -> None:
    """Run steps, one after the other."""
    for step in steps:
        run.started(PROJECT, step.name)
        with run.timed(step.name):
            result = run_step(step)
        run.finished(result)


def _estimate(
    choice: Choice, decision: Decision, steps: list[ProjectStep], *, full: bool
) -> Estimate:
    """Return how long the run takes; unknown if only some checks or steps are chosen."""
    if choice.keyword or choice.areas or choice.targets != PLANS[decision.location].targets:
        return Estimate()
    budgets_s = [step.budget_s for step in steps]
    budgets_s += [CHECK_BUDGETS_S[checks_step(target)] for target in choice.targets]
    return estimate(f"{decision.location} {'full' if full else 'default'}", sum(budgets_s))


def _what_is_left_out(steps: list[ProjectStep], checks: Choice | None) -> list[str]:
    """Return what the run leaves out, each with the reason."""
    texts = [f"of {step.name}: {step.leaves_out}" for step in steps if step.leaves_out]
    judged = checks.checks() if checks else []
    absent = Counter(
        check.area for check in judged if checks and f"{VM}:{check.name}" in checks.left_out
    )
    if absent:
        areas = ", ".join(f"{counted(count, 'check')} of {area}" for area, count in absent.items())
        texts.append(f"in the guest: {areas}, since this host is judged by them in this run")
    return texts


def _verify_in_vagrant(choice: Choice, *, full: bool) -> int:
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
        words = [
            "env",
            *_send_advisories(machine),
            *remote_command(choice, remote_directory, full=full),
        ]
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


def remote_command(choice: Choice, out: str, *, full: bool = False) -> list[str]:
    """Return the command that runs the same choice in the machine."""
    words = [".venv/bin/python", "-m", "harness", "verify", "--in", "here", "--out", out]
    words += ["--seed", choice.seed, "--parallel", str(choice.parallel)]
    words += ["--full"] if full else []
    words += ["-k", choice.keyword] if choice.keyword else []
    for area in choice.areas:
        words += ["--area", area]
    for name in choice.skips_allowed or ():
        words += ["--allow-skip", name]
    return words
