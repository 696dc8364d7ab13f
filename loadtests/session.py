"""Runs loads one after the other, each against a fresh server where one can be launched."""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.drive.identities import IdentityStore, make_identities
from harness.record.verdict import BrokenError, Finding, UnmetError, Verdict
from harness.targets.address import AddressTarget
from harness.targets.local import OUR_COMMAND, LocalTarget
from harness.targets.target import Target
from loadtests import limits
from loadtests.generator import Generator, Setting
from loadtests.histogram import encoded, hgrm
from loadtests.judge import Strictness, judge
from loadtests.metrics import Recorded, fold, read_load
from loadtests.profiles import Profile
from loadtests.results import LoadResult

LOCAL: Final = "local"
HGRM_FILE: Final = "latency.hgrm"
_ADDRESS: Final = re.compile(r".+:\d{1,5}")

type Options = tuple[tuple[str, int | str], ...]
type Tell = Callable[[LoadResult], None]


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """Which server is loaded.

    Attributes:
        target: LOCAL or HOST:PORT.
        launch: a command that starts another server than ours; `{listen} {ca} {cert} {key}` are
            filled in.
        flags: words added to the launch command.
        identities: a directory of certificates; None makes new ones.
    """

    target: str = LOCAL
    launch: str = ""
    flags: str = ""
    identities: Path | None = None

    def command(self, flags: str = "") -> str:
        """Return the launch command, some more flags added."""
        base = self.launch or f"{OUR_COMMAND} --no-limits"
        return " ".join(filter(None, (base, self.flags, flags)))

    def describe(self) -> str:
        """Say what it is, for the report."""
        if self.target == LOCAL:
            return f"launched on this host: {self.command()}"
        return f"a server at {self.target} that somebody else started"

    @contextmanager
    def store(self) -> Iterator[IdentityStore]:
        """Return the certificates; new ones are gone at the end.

        Raises:
            BrokenError: a server that somebody else started needs certificates that it trusts.
        """
        if self.identities is not None:
            yield IdentityStore(self.identities)
            return
        if self.target != LOCAL:
            raise BrokenError(
                f"the server at {self.target} needs certificates that it trusts: make them with "
                "`python -m harness identities DIR`, start it with DIR/ca.crt, DIR/server.crt and "
                "DIR/server.key, and say --identities DIR here"
            )
        with tempfile.TemporaryDirectory(prefix="jobworker-load-") as directory:
            yield make_identities(Path(directory))

    def made(self, store: IdentityStore, flags: str = "") -> Target:
        """Return the target.

        Raises:
            BrokenError: it can be none, or flags are for a server that is not launched.
        """
        if self.target == LOCAL:
            return LocalTarget(store, self.command(flags))
        if not _ADDRESS.fullmatch(self.target):
            raise BrokenError(f"--target is {self.target!r}; it must be local or HOST:PORT")
        if self.launch or self.flags or flags:
            raise BrokenError("flags are for a server that is launched here, not for --target")
        return AddressTarget(self.target, store)


@dataclass(frozen=True, slots=True)
class Point:
    """One load to run: a profile, and what is set for it."""

    profile: Profile
    labels: Mapping[str, str] = field(default_factory=dict)
    flags: str = ""
    options: Options = ()


class Session:
    """Runs points against one choice of server and keeps what they came to.

    Args:
        server: what is loaded.
        store: its certificates.
        directory: of the run's records.
        strictness: how each load is judged.
        tell: called with each result.
    """

    def __init__(
        self,
        server: ServerChoice,
        store: IdentityStore,
        directory: Path,
        strictness: Strictness,
        tell: Tell,
    ) -> None:
        self.results: list[LoadResult] = []
        self._server = server
        self._store = store
        self._directory = directory
        self._strictness = strictness
        self._tell = tell

    def measure_limits(self) -> dict[str, float]:
        """Return what this machine can carry, in MB/s; nothing when the server's key is not here.

        Raises:
            BrokenError: it could not be measured.
        """
        return limits.measure(self._store.files("server"), self._store.files("admin"))

    def run_all(self, points: Sequence[Point]) -> None:
        """Run points; one that cannot be run is BROKEN and stops no other."""
        for point in points:
            self.run(point)

    def run(self, point: Point, server: ServerChoice | None = None) -> LoadResult:
        """Run one point, against another server if one is given."""
        begun_s = time.monotonic()
        name = f"{len(self.results):03d}-{point.profile.name}"
        directory = self._directory / name
        findings: list[Finding]
        figures: dict[str, float] = {}
        histogram = ""
        try:
            target = (server or self._server).made(self._store, point.flags)
            launched = target.launched() if target.can_launch else target.shared()
            with launched as running:
                setting = Setting(
                    running, self._store.files("admin"), directory, point.options,
                    dict(point.labels),
                )  # fmt: skip
                Generator(point.profile, setting).run()
            figures, findings, histogram = folded(directory, self._strictness)
        except UnmetError as error:
            findings = [error.finding]
        except BrokenError as error:
            findings = [Finding(Verdict.BROKEN, "the load can be run", str(error))]
        result = LoadResult(
            point.profile.name, point.labels, name, figures, tuple(findings),
            time.monotonic() - begun_s, histogram,
        )  # fmt: skip
        self.results.append(result)
        self._tell(result)
        return result


def folded(directory: Path, strictness: Strictness) -> tuple[dict[str, float], list[Finding], str]:
    """Fold and judge a recorded load; writes its `.hgrm`.

    Returns:
        its figures, what is to be said of it, its latencies as an encoded HdrHistogram.

    Raises:
        BrokenError: there is no load.
    """
    recorded: Recorded = read_load(directory)
    figures = fold(recorded)
    latencies_ns = recorded.latencies_ns()
    histogram = ""
    if len(latencies_ns):
        histogram = encoded(latencies_ns)
        (directory / HGRM_FILE).write_text(hgrm(latencies_ns))
    return figures, judge(recorded.load, figures, strictness), histogram
