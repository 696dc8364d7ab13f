"""A whole run: choose targets and checks, run them, write the report, say how it ended."""

import datetime as dt
import os
import platform
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from harness.capabilities import Capabilities
from harness.checks import ALL
from harness.checks.check import Check
from harness.identities import IdentityStore, make_identities
from harness.processes import run
from harness.report import write_all
from harness.report.terminal import Terminal
from harness.results import Result, RunReport
from harness.session import Options, run_checks
from harness.targets.address import AddressTarget
from harness.targets.local import (
    MARKER,
    OUR_COMMAND,
    LocalTarget,
    checkout,
    processor_is_emulated,
)
from harness.targets.target import OUR_FLAGS, Target
from harness.verdict import BrokenError

LOCAL: Final = "local"
VM: Final = "vm"
RESULTS_FOLDER: Final = "results"
LATEST: Final = "latest"
# What our server says when the host lacks what limits take, and nothing else is wrong.
WITHOUT_LIMITS_HINT: Final = "--no-limits"
_ADDRESS: Final = re.compile(r".+:\d{1,5}")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run is to judge, and how; as the command line says it.

    Attributes:
        targets: `local`, `vm` or HOST:PORT, each once.
        launch: a command that starts another server than ours on this host.
        launch_flags: how that server is told a setting: its name and its flag.
        identities: a directory of certificates; None makes new ones.
        keyword: a regular expression that a check's name must have in it.
        areas: only checks of these; none is all.
        seed: of everything that is chosen by chance.
        out: the directory for the records and the report; None is a new one.
        skips_allowed: see `RunReport`.
        parallel: how many checks at a time.
    """

    targets: tuple[str, ...] = (LOCAL,)
    launch: str = ""
    launch_flags: tuple[tuple[str, str], ...] = ()
    identities: Path | None = None
    keyword: str = ""
    areas: tuple[str, ...] = ()
    seed: str = ""
    out: Path | None = None
    skips_allowed: tuple[str, ...] | None = None
    parallel: int = 4

    def checks(self) -> list[Check]:
        """Return the checks that are chosen.

        Raises:
            BrokenError: none is, or the expression is none.
        """
        try:
            pattern = re.compile(self.keyword)
        except re.error as error:
            raise BrokenError(f"-k {self.keyword!r} is no regular expression: {error}") from error
        areas = {check.area for check in ALL}
        unknown = sorted(set(self.areas) - areas)
        if unknown:
            raise BrokenError(
                f"no area is called {', '.join(unknown)}; there are {', '.join(sorted(areas))}"
            )
        chosen = [
            check
            for check in ALL
            if pattern.search(check.name) and (not self.areas or check.area in self.areas)
        ]
        if not chosen:
            raise BrokenError(f"no check fits -k {self.keyword!r}; --list shows them all")
        return chosen

    def require_targets(self) -> None:
        """Refuse targets that cannot be.

        Raises:
            BrokenError: says what is wrong with one, and what to do.
        """
        if self.launch and set(self.targets) != {LOCAL}:
            raise BrokenError("--launch starts a server on this host: it goes with --target local")
        for name in set(self.targets) - {LOCAL, VM}:
            if not _ADDRESS.fullmatch(name):
                raise BrokenError(f"--target is {name!r}; it must be local, vm or HOST:PORT")
            if self.identities is None:
                raise BrokenError(
                    f"the server at {name} needs certificates that it trusts: make them with "
                    "`python -m harness identities DIR`, start it with DIR/ca.crt, DIR/server.crt "
                    "and DIR/server.key, and say --identities DIR here"
                )

    def rerun(self, target: str) -> str:
        """Return the command that repeats one check, with `{name}` to fill in."""
        words = ["python", "-m", "harness", "check", "--target", target, "--seed", self.seed]
        if self.launch:
            words += ["--launch", self.launch]
        for name, flag in self.launch_flags:
            words += ["--launch-flag", f"{name}={flag}"]
        if self.identities is not None:
            words += ["--identities", str(self.identities)]
        return f"{shlex.join(words)} -k '^{{name}}$'"


@dataclass(slots=True)
class Run:
    """A run that goes on: where it is kept and what it came to so far."""

    choice: Choice
    directory: Path
    terminal: Terminal
    about: dict[str, str]
    started_at: str
    started_s: float
    results: list[Result] = field(default_factory=list)
    expected: int = 0

    def report(self) -> RunReport:
        """Return what it came to so far."""
        return RunReport(
            self.about,
            self.started_at,
            time.monotonic() - self.started_s,
            tuple(self.results),
            self.choice.skips_allowed,
            self.expected,
        )


def new_directory(out: Path | None) -> Path:
    """Return a run's directory: the given one, or a new one in `results`, which `latest` names.

    Raises:
        BrokenError: it cannot be made.
    """
    directory = out
    if directory is None:
        now = dt.datetime.now(dt.UTC)
        directory = Path(RESULTS_FOLDER) / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if out is None:
            link = directory.parent / f".{LATEST}-{secrets.token_hex(4)}"
            link.symlink_to(directory.name)
            link.replace(directory.parent / LATEST)
    except OSError as error:
        raise BrokenError(f"{directory}: {error.strerror}; name another with --out") from error
    return directory


def about(choice: Choice) -> dict[str, str]:
    """Return what repeats a run, in the order to print."""
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    return {
        "seed": choice.seed,
        "command": shlex.join(["python", "-m", "harness", *sys.argv[1:]]),
        "commit": _commit(),
        "kernel": f"{platform.system()} {platform.release()}",
        "controllers": controllers.read_text().strip() if controllers.exists() else "no cgroup v2",
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "processors": f"{os.cpu_count()}, load {os.getloadavg()[0]:.1f}",
    }


def _commit() -> str:
    try:
        words = ["git", "-C", str(checkout())]
        commit = run([*words, "rev-parse", "--short", "HEAD"], 30)
        changed = run([*words, "status", "--porcelain"], 30)
    except BrokenError:
        return "unknown"
    if commit.exit_code != 0:
        return "unknown"
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


@contextmanager
def begun(choice: Choice, total: int) -> Iterator[Run]:
    """Begin a run: its directory, its terminal; at the end the report is written, come what may."""
    choice.require_targets()
    directory = new_directory(choice.out)
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    with Terminal() as terminal:
        going = Run(
            choice, directory, terminal, about(choice), started_at, time.monotonic(), expected=total
        )
        terminal.begin(going.about, total=total)
        try:
            yield going
        finally:
            write_all(going.report(), directory)
            terminal.end(going.report(), directory)


def judge_targets(going: Run, stack: ExitStack) -> None:
    """Run the chosen checks against each target, one target after the other."""
    identities = _identities(going.choice, stack)
    checks = going.choice.checks()
    for name in going.choice.targets:
        with ExitStack() as of_target:
            target = _target(name, going, identities, of_target)
            going.about[f"target {name}"] = target.describe()
            going.terminal.note(f"{name}: {going.about[f'target {name}']}")
            options = Options(
                going.choice.seed,
                going.directory,
                rerun=going.choice.rerun(name),
                parallel=going.choice.parallel,
            )
            going.results += run_checks(
                target, checks, options, going.terminal, asked=partial(_record, going.about, name)
            )


def _record(about_run: dict[str, str], name: str, found: Capabilities) -> None:
    """Put into the report what a target can do, and what it lacks."""
    can = [str(need) for need, lack in found.items() if not lack]
    lacks = [str(need) for need, lack in found.items() if lack]
    about_run[f"target {name} has"] = "; ".join(can) or "nothing"
    about_run[f"target {name} lacks"] = "; ".join(lacks) or "nothing"


def run_choice(choice: Choice) -> int:
    """Run what was chosen, and return the exit code.

    Raises:
        BrokenError: nothing could be begun.
    """
    total = len(choice.checks()) * len(choice.targets)
    with begun(choice, total) as going, ExitStack() as stack:
        judge_targets(going, stack)
    return going.report().exit_code


def _identities(choice: Choice, stack: ExitStack) -> IdentityStore:
    if choice.identities is not None:
        return IdentityStore(choice.identities)
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobworker-identities-"))
    return make_identities(Path(directory))


def _target(name: str, going: Run, identities: IdentityStore, stack: ExitStack) -> Target:
    if name == LOCAL:
        return _local(going, identities)
    if name == VM:
        # Here, so that nobody needs a guest's programs to judge another target.
        from harness.targets.guest import guest_target  # noqa: PLC0415

        return stack.enter_context(guest_target(identities, checkout()))
    return AddressTarget(name, identities)


def _local(going: Run, identities: IdentityStore) -> Target:
    """Return the given server, or ours: with limits where this host can, else without."""
    choice = going.choice
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
        # It says that this host cannot give limits; the rest can still be judged.
        reason = str(error).strip().rpartition("\n")[2]
        going.terminal.note(f"{LOCAL}: without limits: {reason}")
        return _on_this_host(LocalTarget(identities, f"{OUR_COMMAND} --no-limits", flags))


def _on_this_host(target: LocalTarget) -> LocalTarget:
    target.emulated = processor_is_emulated()
    target.made_for_it = MARKER.exists()
    return target


def fill_seed(seed: str) -> str:
    """Return the seed, or a new one."""
    return seed or secrets.token_hex(4)
