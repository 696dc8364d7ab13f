"""Runs loads one after the other, each against a new server if one can be launched."""

import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from harness.dialects.dialect import CANONICAL, Dialect
from harness.dialects.launch_recipe import LaunchRecipe
from harness.drive.identities import IdentityStore, make_identities
from harness.host.repository import program
from harness.record.verdict import BrokenError, Finding, UnmetError, UnsupportedError, Verdict
from harness.targets.address import AddressTarget
from harness.targets.local import OUR_COMMAND, LocalTarget
from harness.targets.target import Target
from loadtests import limits, plain_server
from loadtests.figures import Figures
from loadtests.generator import Generator, Setting
from loadtests.histogram import encoded, hgrm
from loadtests.judge import Strictness, judge
from loadtests.metrics import fold, read_load
from loadtests.profiles import Profile
from loadtests.results import PLAIN, SERVER, LoadResult, beside_plain, is_plain

LOCAL: Final = "local"
HGRM_FILE: Final = "latency.hgrm"

type Options = tuple[tuple[str, int | str], ...]
type Show = Callable[[LoadResult], None]


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """The server to load.

    Attributes:
        target: LOCAL or HOST:PORT.
        launch: a command that starts another server than ours; `{listen} {ca} {cert} {key}` are
            replaced. "": the dialect's recipe, or ours.
        flags: words added to the launch command.
        identities: a directory of certificates; None creates new ones.
        dialect: how it is spoken to.
    """

    target: str = LOCAL
    launch: str = ""
    flags: str = ""
    identities: Path | None = None
    dialect: Dialect = CANONICAL

    def command(self, flags: str = "") -> str:
        """Return the launch command, with more flags."""
        recipe = self._recipe
        base = self.launch or (recipe.command if recipe else f"{OUR_COMMAND} --no-limits")
        return " ".join(filter(None, (base, self.flags, flags)))

    @property
    def _recipe(self) -> LaunchRecipe | None:
        """How the dialect's server is launched, unless a command says otherwise."""
        return None if self.launch else self.dialect.launch

    def describe(self) -> str:
        """Return a description for the report."""
        if self.target == LOCAL:
            return f"launched on this host: {self.command()}"
        return f"a running server at {self.target}"

    def require(self, flags: str = "") -> None:
        """Reject options that do not go together.

        Raises:
            BrokenError: a running server gets flags, or has no certificates that it trusts; the
                dialect says not how its server is launched, or is of programs.
        """
        if not self.dialect.is_grpc:
            raise BrokenError("loads need a server that is called by gRPC, not by programs")
        if self.target == LOCAL:
            if self.dialect is not CANONICAL and not self.launch and self._recipe is None:
                raise BrokenError(
                    "--dialect: which server? Give --launch COMMAND or --target, or write the "
                    "table [launch] in the dialect's file"
                )
            return
        if self.launch or self.flags or flags:
            raise BrokenError(
                "flags need a server that is launched here; --target is running already"
            )
        if self.identities is None:
            raise BrokenError(
                f"the server at {self.target} needs certificates that it trusts: make them with "
                f"`{shlex.join(program())} identities DIR`, start it with DIR/ca.crt, "
                "DIR/server.crt and DIR/server.key, and give --identities DIR here"
            )

    @contextmanager
    def store(self) -> Iterator[IdentityStore]:
        """Yield the certificates; new ones are removed at the end."""
        if self.identities is not None:
            store = IdentityStore(self.identities)
            store.require_scheme(self.dialect.identities, self.dialect.source)
            yield store
            return
        with tempfile.TemporaryDirectory(prefix="jobworker-load-") as directory:
            yield make_identities(Path(directory), scheme=self.dialect.identities)

    def make_target(self, store: IdentityStore, flags: str = "") -> Target:
        """Return the target.

        Raises:
            BrokenError: see `require`.
        """
        self.require(flags)
        if self.target == LOCAL:
            command, recipe = self.command(flags), self._recipe
            target = LocalTarget(
                store, replace(recipe, command=command) if recipe is not None else command
            )
            target.dialect = self.dialect
            return target
        return AddressTarget(self.target, store, dialect=self.dialect)


@dataclass(frozen=True, slots=True)
class Point:
    """One load to run: a profile, its labels, the server's flags, gRPC's options."""

    profile: Profile
    labels: Mapping[str, str] = field(default_factory=dict)
    flags: str = ""
    options: Options = ()


class Session:
    """Runs points against one choice of server and keeps the results.

    Args:
        server: the server to load.
        store: its certificates.
        directory: of the run's records.
        strictness: how each load is judged.
        show: called with each result.
    """

    def __init__(
        self,
        server: ServerChoice,
        store: IdentityStore,
        directory: Path,
        strictness: Strictness,
        show: Show,
    ) -> None:
        self.results: list[LoadResult] = []
        self._server = server
        self._store = store
        self._directory = directory
        self._strictness = strictness
        self._show = show

    def measure_limits(self) -> limits.MachineLimits:
        """Return what this machine can carry.

        Raises:
            BrokenError: one of them could not be measured.
        """
        return limits.measure(self._store.files("server"), self._store.files("admin"))

    def run_all(self, points: Sequence[Point]) -> None:
        """Run points; one that cannot be run is BROKEN, and the others run all the same.

        Profiles that say so are run on plain grpcio, too, right after the server that is launched.
        """
        for point in points:
            self.run(point)
            if point.profile.beside_plain and self._server.target == LOCAL:
                # As many streams as the load has: a server may allow fewer.
                plain = ServerChoice(launch=plain_server.COMMAND)
                flags = f"--streams {point.profile.streamers}"
                labels = {**point.labels, SERVER: PLAIN}
                self.run(Point(_unjudged(point.profile), labels, flags, point.options), plain)
                self.results[:] = beside_plain(self.results)

    def run(self, point: Point, server: ServerChoice | None = None) -> LoadResult:
        """Run one point, against another server if given."""
        begun_s = time.monotonic()
        name = f"{len(self.results):03d}-{point.profile.name}"
        directory = self._directory / name
        findings: list[Finding]
        figures, histogram = Figures(), ""
        try:
            target = (server or self._server).make_target(self._store, point.flags)
            launched = target.launch() if target.can_launch else target.shared()
            with launched as running:
                setting = Setting(
                    running, self._store.files("admin"), directory, point.options,
                    dict(point.labels), target.dialect,
                )  # fmt: skip
                Generator(point.profile, setting).run()
            figures, findings, histogram = fold_and_judge(directory, self._strictness)
        except UnmetError as error:
            findings = [error.finding]
        except (BrokenError, UnsupportedError) as error:
            findings = [Finding(Verdict.BROKEN, "the load can be run", str(error))]
        result = LoadResult(
            point.profile.name, point.labels, name, figures, tuple(findings),
            time.monotonic() - begun_s, histogram,
        )  # fmt: skip
        self.results.append(result)
        self._show(result)
        return result


def _unjudged(profile: Profile) -> Profile:
    """Return the same load without what a server must reach and keep."""
    return replace(profile, limits={}, floor=replace(profile.floor, rate_share=0.0))


def fold_and_judge(directory: Path, strictness: Strictness) -> tuple[Figures, list[Finding], str]:
    """Fold and judge a recorded load; writes its `.hgrm`.

    Returns:
        its figures, its findings, its latencies as an encoded HdrHistogram.

    Raises:
        BrokenError: the directory has no load.
    """
    recorded = read_load(directory)
    figures = fold(recorded)
    plain = is_plain(recorded.load.labels)
    latencies_ns = recorded.latencies_ns()
    histogram = ""
    if len(latencies_ns):
        histogram = encoded(latencies_ns)
        (directory / HGRM_FILE).write_text(hgrm(latencies_ns))
    if not plain:
        return figures, judge(recorded.load, figures, strictness), histogram
    # Disturbed, it raises no doubt about the loads of the server. What plain grpcio does
    # wrong is a fault of ours.
    findings = judge(recorded.load, figures, Strictness(noisy=True))
    broken = {Verdict.FAIL: Verdict.BROKEN}
    judged = [replace(each, verdict=broken.get(each.verdict, each.verdict)) for each in findings]
    return figures, judged, histogram
