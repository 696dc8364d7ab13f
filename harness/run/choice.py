"""What a run is to judge, and how: the command line's options as one frozen value."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.check import Check
from harness.record.verdict import BrokenError

LOCAL: Final = "local"
VM: Final = "vm"
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
