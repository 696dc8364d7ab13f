"""Certificate files that a server must not start with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.host_files import HostFiles, make_host_files
from harness.host.cert_files import CertFiles
from harness.judge.promises import assumed, holds
from harness.record.history import History, Observation
from harness.record.verdict import Finding, UnsupportedError

# A server that runs for so long has started, and is ended; one that refuses takes a second.
STARTED_S: Final = 30
# timeout(1): the command was still running; 137: it ignored SIGTERM, too.
_TIMED_OUT: Final = frozenset({124, 137})
_OUTPUT_CHARACTERS: Final = 600


@runtime_checkable
class CommandTarget(Protocol):
    """A target whose launch command is known."""

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """Return the command, for a shell on the server's machine."""

    def new_root(self) -> str:
        """Return a cgroup root that no server has used."""


@dataclass(frozen=True, slots=True)
class BadFiles:
    """A fault of a server's files.

    Attributes:
        name: what the server is started with.
        make: makes the fault.
        named: words, in any case, of which the server's last output must contain one: they name the
            fault, or the file.
    """

    name: str
    make: Callable[[Stage, HostFiles], None]
    named: tuple[str, ...]


def _expose(mode: str) -> Callable[[Stage, HostFiles], None]:
    return lambda _, files: files.run(f"chmod {mode} {files.path('server.key')}")


def _mismatch(stage: Stage, files: HostFiles) -> None:
    files.put("server.key", stage.target.identities.files("admin").key.read_text())


def _invalid_key(_: Stage, files: HostFiles) -> None:
    files.put("server.key", "not a key\n")


def _no_certificate(_: Stage, files: HostFiles) -> None:
    files.run(f"rm {files.path('server.crt')}")


def _writable_authority(_: Stage, files: HostFiles) -> None:
    files.run(f"chmod 666 {files.path('ca.crt')}")


FAULTS: Final = (
    BadFiles("a key that its group can read", _expose("640"), ("server.key",)),
    BadFiles("a key that everyone can read", _expose("604"), ("server.key",)),
    BadFiles("the key of another certificate", _mismatch, ("server.key", "mismatch", "match")),
    BadFiles("an invalid key", _invalid_key, ("server.key",)),
    BadFiles("a missing certificate", _no_certificate, ("server.crt",)),
    BadFiles("an authority that everyone can write", _writable_authority, ("ca.crt",)),
)


@dataclass(frozen=True, slots=True)
class StartWithBadFiles:
    """The end of a server's start.

    Attributes:
        exit_code: of timeout(1), which runs it.
        output: the end of what it wrote, with its directory replaced by dots.
    """

    exit_code: int
    output: str

    @property
    def started(self) -> bool:
        """Whether the server was still running, or ended as if all was well."""
        return self.exit_code in {0, *_TIMED_OUT}


@dataclass(frozen=True, slots=True)
class ServerStarts(Observation):
    """Starts of a server with valid and with bad files.

    Attributes:
        valid_files: the status of a StartJob of the server with valid files: the control.
        by_fault: the start with each fault.
    """

    valid_files: str
    by_fault: Mapping[str, StartWithBadFiles]


def run_start(stage: Stage) -> None:
    """Start a server with valid files, as a control; then once with each fault."""
    target = stage.target
    if not isinstance(target, CommandTarget):
        raise UnsupportedError(Need.LAUNCH)

    with (
        make_host_files(stage) as files,
        stage.fresh_server(files=files.certificates) as server,
        stage.client(server=server) as client,
    ):
        valid_files = client.start("true").call.code

    def start(fault: BadFiles) -> StartWithBadFiles:
        with make_host_files(stage) as files:
            fault.make(stage, files)
            command = target.command_line(target.new_root(), (), files.certificates)
            done = stage.host.run(f"timeout -k 5 {STARTED_S} {command} 2>&1")
            output = done.stdout.replace(files.directory, "...")[-_OUTPUT_CHARACTERS:]
            return StartWithBadFiles(done.exit_code, output)

    with ThreadPoolExecutor(2) as pool:
        starts = list(pool.map(start, FAULTS))
    names = [fault.name for fault in FAULTS]
    stage.record(ServerStarts(valid_files, dict(zip(names, starts, strict=True))))


def judge_start(history: History) -> Iterator[Finding]:
    """The server exits, and names the fault."""
    seen = history.the(ServerStarts)
    yield assumed(
        "the server starts with valid files", true=seen.valid_files == "OK", got=seen.valid_files,
        want="OK",
    )  # fmt: skip
    for fault in FAULTS:
        start = seen.by_fault[fault.name]
        output = start.output.strip()
        yield holds(
            f"the server does not start with {fault.name}", kept=not start.started,
            got="it started" if start.started else f"exit code {start.exit_code}: {output}",
            want="an exit code other than 0",
        )  # fmt: skip
        yield holds(
            f"its last output names {fault.name}",
            kept=any(word in output.lower() for word in fault.named), got=output[-300:],
            want=" or ".join(fault.named),
        )  # fmt: skip


START: Final = Check(
    "identity.start",
    "A server does not start with keys that others can read, or with invalid certificate files.",
    run_start, judge_start, frozenset({Need.LAUNCH, Need.HOST, Need.NATIVE}), ("29",),
    ours=True,
)  # fmt: skip
