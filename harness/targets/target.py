"""A target: where the server runs, how it is launched, and access to its machine."""

import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Final, Protocol

from harness.dialects.dialect import Dialect
from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.host.processes import Done
from harness.record.verdict import UnsupportedError


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings that a check changes; None keeps the server's default.

    Each becomes a flag of the launch command, see `flags_for`.
    """

    max_streams: int | None = None
    retention_bytes: int | None = None
    keepalive_s: float | None = None
    stop_grace_s: float | None = None
    handshake_timeout_s: float | None = None
    calls_a_connection: int | None = None
    deny_serials: str | None = None  # a file on the server's machine
    output_memory_bytes: int | None = None  # of all jobs together
    job_ttl_s: float | None = None  # an ended job is forgotten so long after its end
    flush_interval_s: float | None = None  # between two small messages of a stream
    log_level: str | None = None
    unary_threads: int | None = None  # for calls other than streams
    metrics: str | None = None  # HOST:PORT on the server's machine


DEFAULT: Final = Variant()

# A server that gets one of these may end, and has not died by itself then.
ENDING_SIGNALS: Final = frozenset(
    {
        signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
    }
)  # fmt: skip

# The flags of this project's server; --launch-flag gives another server's.
OUR_FLAGS: Final = {
    "max_streams": "--max-streams {}",
    "retention_bytes": "--log-retention {}",
    "keepalive_s": "--keepalive-time {}s --keepalive-timeout {}s",
    "stop_grace_s": "--stop-grace {}s",
    "handshake_timeout_s": "--handshake-timeout {}s",
    "calls_a_connection": "--max-concurrent-streams {}",
    "deny_serials": "--deny-serials {}",
    "output_memory_bytes": "--output-memory {}",
    "job_ttl_s": "--job-ttl {}s",
    "flush_interval_s": "--flush-interval {}s",
    "log_level": "--log-level {}",
    "unary_threads": "--unary-threads {}",
    "metrics": "--metrics {}",
}


def flags_for(variant: Variant, flags: dict[str, str]) -> list[str]:
    """Return the words that a variant adds to a launch command.

    Raises:
        UnsupportedError: the server has no flag for a setting.
    """
    words = []
    for each in fields(variant):
        value = getattr(variant, each.name)
        if value is None:
            continue
        if each.name not in flags:
            name = each.name
            raise UnsupportedError(f"a flag for {name} (--launch-flag {name}='--flag {{}}')")
        words += flags[each.name].replace("{}", str(value)).split()
    return words


_POLL_INTERVAL_S: Final = 0.2


def poll_script(condition: str, timeout_s: float) -> str:
    """Return a script that waits for a condition on the server's machine, within a time limit."""
    polls = round(timeout_s / _POLL_INTERVAL_S)
    return (
        f"n=0; until {{ {condition}; }} || [ $n -ge {polls} ]; "
        f"do n=$((n+1)); sleep {_POLL_INTERVAL_S}; done"
    )


def remove_cgroup_script(path: str, timeout_s: float) -> str:
    """Return a script that kills and removes a cgroup and its descendants, if it exists."""
    empty = poll_script(f"grep -q 'populated 0' {path}/cgroup.events", timeout_s)
    remove = f"find {path} -depth -type d -exec rmdir {{}} +"
    return f"[ ! -d {path} ] || {{ echo 1 > {path}/cgroup.kill; {empty}; {remove}; }}"


class RunningServer(Protocol):
    """A server that was started, and may have ended since."""

    @property
    def address(self) -> str:
        """HOST:PORT as this host reaches it."""

    @property
    def pid(self) -> int | None:
        """Its process id on its own machine; None if unknown."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process."""

    def wait_exit(self, timeout_s: float) -> int | None:
        """Return its exit code (negative: a signal), or None if it still runs after the timeout."""

    def has_died(self) -> bool:
        """Return whether it ended without being signalled by the harness.

        Raises:
            BrokenError: its machine died or does not answer, so its state is unknown.
        """

    def log_tail(self) -> str:
        """Return the end of its log."""


class Host(Protocol):
    """Access to the machine that a server runs on."""

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """Run a shell script there, as root when the server is root."""


class Target(Protocol):
    """What is judged."""

    name: str
    emulated: bool  # its processor is emulated: loads are scaled down
    disposable_host: bool  # its machine was provisioned for running checks, and may be disturbed
    has_data_disk: bool  # its machine has an empty disk, see checks/limits/disk.py
    serial: bool  # its servers have one address: a launched one takes the shared one's place
    host: Host | None
    identities: IdentityStore
    flags: dict[str, str]
    dialect: Dialect  # how its servers are spoken to

    def describe(self) -> str:
        """Return what it is and where it runs, for the report."""

    def launch(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        wrapper: Sequence[str] = (),
    ) -> AbstractContextManager[RunningServer]:
        """Start a server, which is ended when the context ends.

        Args:
            variant: settings to change.
            files: its certificates, on its machine; None uses the identities' own.
            descriptors: the maximum of open ones, which it cannot raise; None keeps the default.
            wrapper: a command that gets the launch command as its arguments and becomes it, as
                env(1) does: for what a server inherits.

        Raises:
            UnsupportedError: the harness cannot start one.
            BrokenError: the server did not start.
        """

    def shared(self) -> AbstractContextManager[RunningServer]:
        """Return the server that checks share: the one at HOST:PORT, or a launched one."""

    @property
    def can_launch(self) -> bool:
        """Whether the harness can start servers with `launch`."""
