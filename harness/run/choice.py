"""What a run judges and how: the command line's options as one frozen value."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.check import ITS_OWN, Check, Extent
from harness.dialects.dialect import CANONICAL
from harness.host.repository import program
from harness.record.known_failing import KnownFailure
from harness.record.verdict import BrokenError

LOCAL: Final = "local"
VM: Final = "vm"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run judges and how, from the command line's options.

    Attributes:
        targets: `local`, `vm` or HOST:PORT, each once.
        dialect: how the targets are spoken to: the name of a built-in one, or a file.
        launch: a command that starts another server than ours on this host.
        launch_flags: pairs of a setting (see `OUR_FLAGS`) and that server's flag for it.
        identities: a directory of certificates; None generates new ones.
        keyword: a regular expression, searched in the checks' names.
        areas: run only their checks; empty runs all.
        seed: of every random choice.
        out: the directory for the records and the report; None creates one.
        skips_allowed, known_failing: see `RunReport`.
        write_known_failing: a new file for the run's failures; None writes none.
        parallel: the number of checks that run at the same time.
        left_out: chosen checks that a target is not judged by, as TARGET:CHECK.
        extent: of the checks that work in rounds.
    """

    targets: tuple[str, ...] = (LOCAL,)
    dialect: str = CANONICAL.name
    launch: str = ""
    launch_flags: tuple[tuple[str, str], ...] = ()
    identities: Path | None = None
    keyword: str = ""
    areas: tuple[str, ...] = ()
    seed: str = ""
    out: Path | None = None
    skips_allowed: tuple[str, ...] | None = None
    known_failing: tuple[KnownFailure, ...] = ()
    write_known_failing: Path | None = None
    parallel: int = 4
    left_out: frozenset[str] = frozenset()
    extent: Extent = ITS_OWN

    def checks(self) -> list[Check]:
        """Return the chosen checks.

        Raises:
            BrokenError: no check is chosen.
        """
        areas = {check.area for check in ALL}
        unknown = sorted(set(self.areas) - areas)
        if unknown:
            raise BrokenError(
                f"unknown area {', '.join(unknown)}; the areas are {', '.join(sorted(areas))}"
            )
        chosen = [
            check
            for check in ALL
            if self.matches(check.name) and (not self.areas or check.area in self.areas)
        ]
        if not chosen:
            raise BrokenError(f"no check matches -k {self.keyword!r}; --list shows all checks")
        if self.extent != ITS_OWN and not any(check.round_limit_s for check in chosen):
            names = ", ".join(check.name for check in ALL if check.round_limit_s)
            raise BrokenError(f"no chosen check works in rounds; those that do: {names}")
        return chosen

    def checks_for(self, target: str) -> list[Check]:
        """Return the chosen checks that a target is judged by."""
        return [check for check in self.checks() if f"{target}:{check.name}" not in self.left_out]

    @property
    def expected(self) -> int:
        """The number of results of a complete run."""
        return sum(len(self.checks_for(target)) for target in self.targets)

    def matches(self, name: str) -> bool:
        """Return whether -k matches a name."""
        return re.search(self.keyword, name) is not None

    def require_targets(self) -> None:
        """Reject targets that the other options do not fit.

        Raises:
            BrokenError: says what to change.
        """
        if self.launch and set(self.targets) != {LOCAL}:
            raise BrokenError("--launch starts a server on this host: it requires --target local")
        if self.dialect != CANONICAL.name and VM in self.targets:
            raise BrokenError(
                "--dialect is for another server than ours, which --target vm launches: give "
                "--target HOST:PORT, or --target local"
            )
        for name in set(self.targets) - {LOCAL, VM}:
            if self.identities is None:
                own = self.dialect == CANONICAL.name
                scheme = () if own else ("--scheme", self.dialect)
                command = shlex.join([*program(), "identities", "DIR", *scheme])
                raise BrokenError(
                    f"the server at {name} must trust the checks' certificates: generate them with "
                    f"`{command}`, start it with DIR/ca.crt, DIR/server.crt and DIR/server.key, "
                    "and add --identities DIR here"
                )

    def rerun(self, target: str) -> str:
        """Return the command that repeats one check, with `{name}` for its name."""
        words = [*program(), "check", "--target", target, "--seed", self.seed]
        if self.extent.rounds:
            words += ["--rounds", str(self.extent.rounds)]
        if self.extent.lasting_s:
            minutes = f"{self.extent.lasting_s / 60:g}"
            words = [*program(), "soak", "--minutes", minutes, *words[words.index("--target") :]]
            return shlex.join(words)
        if self.dialect != CANONICAL.name:
            words += ["--dialect", self.dialect]
        if self.launch:
            words += ["--launch", self.launch]
        for name, flag in self.launch_flags:
            words += ["--launch-flag", f"{name}={flag}"]
        if self.identities is not None:
            words += ["--identities", str(self.identities)]
        return f"{shlex.join(words)} -k '^{{name}}$'"
