"""A whole run, readable from the top: choose, drive, record, judge, report.

`run_session` is the command `check`. `begin_run` and `judge_targets` are its two halves, which
`make verify` puts around steps of its own.
"""

import datetime as dt
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.drive.identities import IdentityStore, make_identities
from harness.host.repository import ROOT
from harness.record.results import CheckResult, RunReport
from harness.record.verdict import BrokenError
from harness.report import write_all
from harness.report.terminal import Terminal
from harness.run.capabilities import Capabilities
from harness.run.check_runner import Options, run_checks
from harness.run.choice import LOCAL, VM, Choice
from harness.run.run_directory import environment, new_run_directory
from harness.targets.address import AddressTarget
from harness.targets.local import MARKER, OUR_COMMAND, LocalTarget, processor_is_emulated
from harness.targets.target import OUR_FLAGS, Target

# What our server says when the host lacks what limits take, and nothing else is wrong.
WITHOUT_LIMITS_HINT: Final = "--no-limits"


def run_session(choice: Choice) -> int:
    """Judge each chosen target by each chosen check; return the exit code.

    Raises:
        BrokenError: nothing could be begun.
    """
    expected = len(choice.checks()) * len(choice.targets)
    with begin_run(choice, expected) as run:
        judge_targets(run)
    return run.report().exit_code


def judge_targets(run: "Run") -> None:
    """Judge one target after the other: open it, ask what it can do, run its checks."""
    checks = run.choice.checks()
    with ExitStack() as of_run:
        identities = _open_identities(run.choice, of_run)
        for name in run.choice.targets:
            with ExitStack() as of_target:
                target = _open_target(name, run, identities, of_target)
                run.describe_target(target)
                options = Options(
                    run.choice.seed,
                    run.directory,
                    rerun=run.choice.rerun(name),
                    parallel=run.choice.parallel,
                )
                # Drives, records and judges; each result is reported as it comes.
                run.results += run_checks(
                    target, checks, options, run.terminal, learned=run.describe_capabilities
                )


@dataclass(slots=True)
class Run:
    """A run in progress: where it is kept, and its results so far."""

    choice: Choice
    directory: Path
    terminal: Terminal
    about: dict[str, str]
    started_at: str
    started_s: float
    expected: int
    results: list[CheckResult] = field(default_factory=list)

    def report(self) -> RunReport:
        """Return the report of what is done so far."""
        return RunReport(
            self.about,
            self.started_at,
            time.monotonic() - self.started_s,
            tuple(self.results),
            self.choice.skips_allowed,
            self.expected,
        )

    def describe_target(self, target: Target) -> None:
        """Put into the report, and on the terminal, what is judged."""
        self.about[f"target {target.name}"] = target.describe()
        self.terminal.note(f"{target.name}: {target.describe()}")

    def describe_capabilities(self, target: str, capabilities: Capabilities) -> None:
        """Put into the report what a target can do, and what it lacks."""
        can = [str(need) for need, lack in capabilities.items() if not lack]
        lacks = [str(need) for need, lack in capabilities.items() if lack]
        self.about[f"target {target} has"] = "; ".join(can) or "nothing"
        self.about[f"target {target} lacks"] = "; ".join(lacks) or "nothing"


@contextmanager
def begin_run(choice: Choice, expected: int) -> Iterator[Run]:
    """Begin a run of so many results; however it ends, its report is written."""
    choice.require_targets()
    directory = new_run_directory(choice.out)
    about = {"seed": choice.seed, **environment("harness")}
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    with Terminal() as terminal:
        run = Run(choice, directory, terminal, about, started_at, time.monotonic(), expected)
        terminal.begin(about, total=expected)
        try:
            yield run
        finally:
            write_all(run.report(), directory)
            terminal.end(run.report(), directory)


def _open_identities(choice: Choice, stack: ExitStack) -> IdentityStore:
    if choice.identities is not None:
        return IdentityStore(choice.identities)
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobworker-identities-"))
    return make_identities(Path(directory))


def _open_target(name: str, run: Run, identities: IdentityStore, stack: ExitStack) -> Target:
    if name == LOCAL:
        return _open_local(run, identities)
    if name == VM:
        # Imported here, so that the guest's programs are not needed for another target.
        from harness.targets.guest import guest_target  # noqa: PLC0415

        return stack.enter_context(guest_target(identities, ROOT))
    return AddressTarget(name, identities)


def _open_local(run: Run, identities: IdentityStore) -> Target:
    """Return the given server, or ours: with limits where this host can, else without."""
    choice = run.choice
    if choice.launch:
        return _on_this_host(LocalTarget(identities, choice.launch, dict(choice.launch_flags)))
    flags = {**OUR_FLAGS, **dict(choice.launch_flags)}
    target = _on_this_host(LocalTarget(identities, OUR_COMMAND, flags))
    try:
        with target.launched():
            return target
    except BrokenError as error:
        if WITHOUT_LIMITS_HINT not in str(error):
            raise
        # This host cannot give limits; the rest can still be judged.
        reason = str(error).strip().rpartition("\n")[2]
        run.terminal.note(f"{LOCAL}: without limits: {reason}")
        return _on_this_host(LocalTarget(identities, f"{OUR_COMMAND} --no-limits", flags))


def _on_this_host(target: LocalTarget) -> LocalTarget:
    target.emulated = processor_is_emulated()
    target.disposable_host = MARKER.exists()
    return target
