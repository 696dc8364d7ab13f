"""One run from start to end: open each target, drive and record each check, judge it, report.

`run_session` is the command `check`; `begin_run` and `judge_targets` are its two halves, and
`make verify` runs steps of its own between them.
"""

import datetime as dt
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from harness.checks import require_promises
from harness.dialects.command_line import is_local
from harness.dialects.dialect import CANONICAL, Dialect
from harness.dialects.identity_scheme import Scheme
from harness.dialects.load import load_dialect
from harness.drive.identities import IdentityStore, make_identities
from harness.drive.reachability import require_job_worker
from harness.host.repository import ROOT, require_checkout
from harness.record.results import CheckResult, RunReport, StepTime, save_known_failing
from harness.record.verdict import BrokenError, UnsupportedError
from harness.report import write_all
from harness.report.summary import counted
from harness.report.terminal import Terminal
from harness.run.capabilities import Capabilities
from harness.run.check_runner import Options, run_checks
from harness.run.choice import LOCAL, VM, Choice
from harness.run.run_directory import environment, new_run_directory
from harness.targets.address import AddressTarget
from harness.targets.local import (
    MARKER,
    OUR_COMMAND,
    LocalTarget,
    ThisHostTarget,
    processor_is_emulated,
)
from harness.targets.target import OUR_FLAGS, Target

# The option that our server suggests when the host cannot enforce limits.
WITHOUT_LIMITS_HINT: Final = "--no-limits"


def run_session(choice: Choice) -> int:
    """Judge each chosen target by each chosen check; return the exit code.

    Raises:
        BrokenError: the run could not begin.
    """
    with begin_run(choice, choice.expected) as run:
        judge_targets(run)
    return run.report().exit_code


def judge_targets(run: "Run") -> None:
    """Judge one target after the other.

    Raises:
        BrokenError: a target cannot be judged. The servers that run already are tested first, so
            that no check is run in vain.
    """
    dialect = run.dialect
    if dialect is not CANONICAL:
        run.about["dialect"] = f"{dialect.name}: {dialect.description}"
    with open_identities(run.choice, dialect.identities) as identities:
        for address in set(run.choice.targets) - {LOCAL, VM}:
            require_job_worker(address, identities.files("admin"), dialect)
        for name in run.choice.targets:
            checks = run.choice.checks_for(name)
            if not checks:
                continue
            with (
                run.timed(checks_step(name)),
                open_target(name, run, identities, dialect) as target,
            ):
                run.describe_target(target)
                done = len(run.results)
                # Drives, records and judges each check. `run` receives each result as it comes;
                # at the end, they get the order of the checks.
                run.results[done:] = run_checks(
                    target,
                    checks,
                    run.options(name),
                    run,
                    on_capabilities=run.describe_capabilities,
                )


def checks_step(target: str) -> str:
    """Return the name of the step that is all checks of a target."""
    return f"checks of {target}"


@dataclass(slots=True)
class Run:
    """A run in progress: its directory, and the results so far.

    It is the `Progress` of its checks: an interrupted run has the results that it came to.
    """

    choice: Choice
    dialect: Dialect
    directory: Path
    terminal: Terminal
    about: dict[str, str]
    started_at: str
    started_s: float
    expected: int
    results: list[CheckResult] = field(default_factory=list)
    setup_error: str = ""
    steps: list[StepTime] = field(default_factory=list)
    budgets_s: Mapping[str, float] = field(default_factory=dict)

    def options(self, target: str) -> Options:
        """Return how the checks of a target are run."""
        return Options(
            self.choice.seed,
            self.directory,
            rerun=self.choice.rerun(target),
            parallel=self.choice.parallel,
            extent=self.choice.extent,
        )

    def report(self) -> RunReport:
        """Return the report of the results so far."""
        return RunReport(
            self.about,
            self.started_at,
            time.monotonic() - self.started_s,
            tuple(self.results),
            self.choice.skips_allowed,
            self.expected,
            self.setup_error,
            self.choice.known_failing,
            tuple(self.steps),
        )

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step, and say when it begins."""
        started_s = time.monotonic()
        self.note(f"{step}: begins{self.terminal.left()}")
        try:
            yield
        finally:
            seconds = time.monotonic() - started_s
            self.steps.append(StepTime(step, seconds, self.budgets_s.get(step, 0.0)))

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.terminal.note(text)

    def started(self, target: str, name: str) -> None:
        """See `Progress`."""
        self.terminal.started(target, name)

    def finished(self, result: CheckResult) -> None:
        """See `Progress`."""
        self.results.append(result)
        self.terminal.finished(result)

    def describe_target(self, target: Target) -> None:
        """Add a target's description to the report and the terminal."""
        self.about[f"target {target.name}"] = target.describe()
        self.terminal.note(f"{target.name}: {target.describe()}")

    def describe_capabilities(self, target: str, capabilities: Capabilities) -> None:
        """Add to the report which features a target has, and which it lacks."""
        has = [str(need) for need, lack in capabilities.items() if not lack]
        lacks = [str(need) for need, lack in capabilities.items() if lack]
        self.about[f"target {target} has"] = "; ".join(has) or "nothing"
        self.about[f"target {target} lacks"] = "; ".join(lacks) or "nothing"


@contextmanager
def begin_run(
    choice: Choice, expected: int, details: Mapping[str, str] | None = None, takes_s: float = 0.0
) -> Iterator[Run]:
    """Begin a run of `expected` results; its report is written however the context ends.

    `details` are added to what is needed to repeat it. It takes about `takes_s`; 0: unknown.

    A BrokenError or UnsupportedError ends the run, and is in the report.
    """
    choice.require_targets()
    dialect = load_dialect(choice.dialect)
    require_promises(dialect.terms)
    directory = new_run_directory(choice.out)
    about = {"seed": choice.seed, **environment("harness"), **(details or {})}
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    with Terminal(known=choice.known_failing) as terminal:
        run = Run(
            choice, dialect, directory, terminal, about, started_at, time.monotonic(), expected
        )
        terminal.begin(about, expected, takes_s)
        try:
            yield run
        except BrokenError as error:
            run.setup_error = str(error)
        except UnsupportedError as error:
            run.setup_error = f"missing: {error}"
        finally:
            report = run.report()
            try:
                write_all(report, directory)
            finally:
                terminal.end(report, directory)
            if choice.write_known_failing is not None:
                count = save_known_failing(report, choice.write_known_failing)
                terminal.note(f"{counted(count, 'known failure')} in {choice.write_known_failing}")


@contextmanager
def open_identities(choice: Choice, scheme: Scheme) -> Iterator[IdentityStore]:
    """Open the given certificates, or generate new ones and remove them with the context.

    Raises:
        BrokenError: the given ones are of another scheme.
    """
    if choice.identities is not None:
        store = IdentityStore(choice.identities)
        store.require_scheme(scheme, choice.dialect)
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="jobworker-identities-") as directory:
        yield make_identities(Path(directory), scheme=scheme)


@contextmanager
def open_target(
    name: str, run: Run, identities: IdentityStore, dialect: Dialect = CANONICAL
) -> Iterator[Target]:
    """Open a target by its name; a guest is booted, and ends with the context."""
    if name == LOCAL:
        yield _local_target(run, identities, dialect)
    elif name == VM:
        require_checkout("the target vm")
        # Imported here, so that other targets do not need the guest's programs.
        from harness.targets.guest import guest_target  # noqa: PLC0415

        with guest_target(identities, ROOT) as target:
            yield target
    else:
        yield AddressTarget(name, identities, dialect=dialect)


def _local_target(run: Run, identities: IdentityStore, dialect: Dialect) -> Target:
    """Return the given server, or ours: with limits if this host can enforce them, else without."""
    choice = run.choice
    if choice.launch or dialect is not CANONICAL:
        return _on_this_host(_given_target(choice, identities, dialect))
    if find_spec("worker_service") is None:
        raise BrokenError(
            "--target local: no server is installed beside the judge; give --launch COMMAND, or "
            "--target HOST:PORT"
        )
    flags = {**OUR_FLAGS, **dict(choice.launch_flags)}
    target = _on_this_host(LocalTarget(identities, OUR_COMMAND, flags))
    try:
        with target.launch():
            return target
    except BrokenError as error:
        if WITHOUT_LIMITS_HINT not in str(error):
            raise
        # Everything but limits can still be judged.
        reason = str(error).strip().rpartition("\n")[2]
        run.terminal.note(f"{LOCAL}: without limits: {reason}")
        return _on_this_host(LocalTarget(identities, f"{OUR_COMMAND} --no-limits", flags))


def _given_target(
    choice: Choice, identities: IdentityStore, dialect: Dialect
) -> LocalTarget | ThisHostTarget:
    """Return a server that is not ours: by --launch, by its dialect's recipe, or this host."""
    flags = dict(choice.launch_flags)
    if choice.launch:
        target = LocalTarget(identities, choice.launch, flags)
    elif dialect.launch is not None:
        target = LocalTarget(identities, dialect.launch, {**dialect.launch.flags, **flags})
    elif is_local(dialect.transport):
        return ThisHostTarget(identities, dialect)
    else:
        raise BrokenError(
            f"--dialect {choice.dialect}: which server? Give --launch COMMAND or --target "
            "HOST:PORT, or a table [launch] in the dialect's file"
        )
    target.dialect = dialect
    return target


def _on_this_host[Kind: LocalTarget | ThisHostTarget](target: Kind) -> Kind:
    target.emulated = processor_is_emulated()
    target.disposable_host = MARKER.exists()
    return target
