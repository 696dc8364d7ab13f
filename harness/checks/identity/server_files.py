"""What a server must not start with: keys that others can read, files that do not fit."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.host_files import HostFiles, host_files
from harness.drive.identities import CertFiles
from harness.judge.promises import assumed, holds
from harness.record.history import History
from harness.record.verdict import Finding, UnsupportedError

# A server that goes on for so long has started, and is ended; one that refuses takes a second.
STARTED_S: Final = 30
_TIMED_OUT: Final = 124  # timeout(1): the command was still running
_SHOWN_CHARACTERS: Final = 600


@runtime_checkable
class CommandTarget(Protocol):
    """A target that tells the command that starts its server."""

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """Return it, for a shell on the server's machine."""

    def new_root(self) -> str:
        """Return a cgroup root that no server has had."""


@dataclass(frozen=True, slots=True)
class BadFiles:
    """What is wrong with a server's files.

    Attributes:
        name: what it is.
        make: makes it so.
        told: words of which the server's last words must have one, in any case; they name what is
            wrong, or where.
    """

    name: str
    make: Callable[[Stage, HostFiles], None]
    told: tuple[str, ...]


def _expose(mode: str) -> Callable[[Stage, HostFiles], None]:
    return lambda _, files: files.run(f"chmod {mode} {files.path('server.key')}")


def _mismatch(stage: Stage, files: HostFiles) -> None:
    files.put("server.key", stage.target.identities.files("admin").key.read_text())


def _no_key(_: Stage, files: HostFiles) -> None:
    files.put("server.key", "this is no key\n")


def _no_file(_: Stage, files: HostFiles) -> None:
    files.run(f"rm {files.path('server.crt')}")


def _writable_authority(_: Stage, files: HostFiles) -> None:
    files.run(f"chmod 666 {files.path('ca.crt')}")


FAULTS: Final = (
    BadFiles("a key that its group may read", _expose("640"), ("server.key",)),
    BadFiles("a key that everybody may read", _expose("604"), ("server.key",)),
    BadFiles("the key of another certificate", _mismatch, ("server.key", "mismatch", "match")),
    BadFiles("a key that is none", _no_key, ("server.key",)),
    BadFiles("a certificate that is not there", _no_file, ("server.crt",)),
    BadFiles("an authority that everybody may replace", _writable_authority, ("ca.crt",)),
)


def run_start(stage: Stage) -> None:
    """A start with good files, to see that it is the fault that matters; then one with each."""
    target = stage.target
    if not isinstance(target, CommandTarget):
        raise UnsupportedError(Need.LAUNCH)

    with (
        host_files(stage) as files,
        stage.fresh_server(files=files.certificates) as server,
        stage.client(server=server) as client,
    ):
        stage.fact("with good files", client.start("true").call.code)

    def start(fault: BadFiles) -> None:
        with host_files(stage) as files:
            fault.make(stage, files)
            command = target.command_line(target.new_root(), (), files.certificates)
            done = stage.host.run(f"timeout -k 5 {STARTED_S} {command} 2>&1")
            said = done.stdout.replace(files.directory, "...")[-_SHOWN_CHARACTERS:]
            stage.fact(f"start: {fault.name}", [done.exit_code, said])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, FAULTS))


def judge_start(history: History) -> Iterator[Finding]:
    """Refused, and the reason named."""
    good = history.fact("with good files")
    yield assumed("with good files it starts and serves", true=good == "OK", got=good, want="OK")
    for fault in FAULTS:
        code, said = _start(history, fault.name)
        got = "it started" if code in {0, _TIMED_OUT} else f"exit code {code}: {said.strip()}"
        yield holds(
            f"a server does not start with {fault.name}", kept=code not in {0, _TIMED_OUT},
            got=got, want="an exit code that tells of a fault",
        )  # fmt: skip
        yield holds(
            f"it says what is wrong with {fault.name}",
            kept=any(word in said.lower() for word in fault.told), got=said.strip()[-300:],
            want=" or ".join(fault.told),
        )  # fmt: skip


def _start(history: History, name: str) -> tuple[int, str]:
    value = history.fact(f"start: {name}")
    if not isinstance(value, list):
        return -1, str(value)
    code, said = value
    return int(str(code)), str(said)


CHECKS: Final = (
    Check(
        "identity.start",
        "A server does not start with keys that others can read, or files that do not fit.",
        run_start, judge_start, frozenset({Need.LAUNCH, Need.HOST, Need.NATIVE}), ("29",),
    ),
)  # fmt: skip
