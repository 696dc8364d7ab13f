"""A target: where the server is, what the harness may do to it, what it can look into."""

import signal
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Final, Protocol

from harness.drive.identities import CertFiles, IdentityStore
from harness.host.processes import Done
from harness.record.verdict import UnsupportedError


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings that a check wants changed; None leaves the server's own choice.

    Each maps to a flag of the launch command, see `flags_for`.
    """

    max_streams: int | None = None
    retention_bytes: int | None = None
    keepalive_s: float | None = None
    stop_grace_s: float | None = None
    handshake_timeout_s: float | None = None
    calls_a_connection: int | None = None
    deny_serials: str | None = None  # a file on the server's machine


DEFAULT: Final = Variant()

# The flags of this project's own server; another's are given with --launch-flag.
OUR_FLAGS: Final = {
    "max_streams": "--max-streams {}",
    "retention_bytes": "--log-retention {}",
    "keepalive_s": "--keepalive-time {}s --keepalive-timeout {}s",
    "stop_grace_s": "--stop-grace {}s",
    "handshake_timeout_s": "--handshake-timeout {}s",
    "calls_a_connection": "--max-concurrent-streams {}",
    "deny_serials": "--deny-serials {}",
}


def flags_for(variant: Variant, flags: dict[str, str]) -> list[str]:
    """Return the words that change a launch command to a variant.

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


_LOOK_S: Final = 0.2


def until_script(condition: str, timeout_s: float) -> str:
    """Return a script that waits on the server's machine: cheaper than to ask over and over."""
    looks = round(timeout_s / _LOOK_S)
    return (
        f"n=0; until {{ {condition}; }} || [ $n -ge {looks} ]; do n=$((n+1)); sleep {_LOOK_S}; done"
    )


def remove_cgroup_script(path: str, timeout_s: float) -> str:
    """Return a script that ends and removes a cgroup and all below it, if it is there."""
    empty = until_script(f"grep -q 'populated 0' {path}/cgroup.events", timeout_s)
    remove = f"find {path} -depth -type d -exec rmdir {{}} +"
    return f"[ ! -d {path} ] || {{ echo 1 > {path}/cgroup.kill; {empty}; {remove}; }}"


class RunningServer(Protocol):
    """A server that answers, or did."""

    @property
    def address(self) -> str:
        """HOST:PORT as this host reaches it."""

    @property
    def pid(self) -> int | None:
        """Its process id on its own machine; None when nobody knows."""

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""

    def wait_exit(self, timeout_s: float) -> int | None:
        """Return its exit code (negative: a signal), or None when it still runs by then."""

    def has_died(self) -> bool:
        """Tell whether it ended although nobody asked it to.

        Raises:
            BrokenError: its machine died or does not answer, so nothing can be said of it.
        """

    def log_tail(self) -> str:
        """Return the end of what it said."""


class Host(Protocol):
    """The machine that a server runs on, for looking into it."""

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """Run a shell script there, as root when the server is root."""


class Target(Protocol):
    """What is judged."""

    name: str
    emulated: bool  # its processor is emulated: loads are scaled down
    disposable_host: bool  # its machine was made to be verified in: nobody else needs it whole
    has_data_disk: bool  # that machine has an empty disk, see checks/limits_disk.py
    host: Host | None
    identities: IdentityStore
    flags: dict[str, str]

    def describe(self) -> str:
        """Say what it is and where, for the report."""

    def launched(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
    ) -> AbstractContextManager[RunningServer]:
        """Start a server; it is gone at the end of the context.

        Args:
            variant: settings to change.
            files: its certificates, on its machine; None: the identities' own.
            descriptors: how many it may have open, which it cannot raise; None: as it comes.

        Raises:
            UnsupportedError: the harness cannot start one.
            BrokenError: it did not come up.
        """

    def shared(self) -> AbstractContextManager[RunningServer]:
        """Return the server that checks share: the given one, or a launched one."""

    @property
    def can_launch(self) -> bool:
        """Whether `launched` can work at all."""
