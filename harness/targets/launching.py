"""The base of targets that launch servers: cgroup roots, the server's end, and cleaning up."""

import itertools
import logging
import secrets
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, TypedDict, Unpack

from harness.dialects.dialect import CANONICAL, Dialect
from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.targets.target import (
    DEFAULT,
    Host,
    RunningServer,
    Variant,
    flags_for,
    remove_cgroup_script,
)

logger = logging.getLogger(__name__)

CGROUP_MOUNT: Final = "/sys/fs/cgroup"
# SIGTERM, the grace of 2 s, and a throttled job's slow end; after it comes SIGKILL.
END_TIMEOUT_S: Final = 60.0
KILL_TIMEOUT_S: Final = 20.0
# Of the servers that follow one which ignored SIGTERM: each check would wait a minute.
NEXT_END_TIMEOUT_S: Final = 5.0

# In the server's environment; a job must never see it.
SECRET_VARIABLE: Final = "JOBWORKER_HARNESS_SECRET"  # noqa: S105 - its name, not a secret


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How one server is launched; see `LaunchingTarget.launch`."""

    cgroup_root: str
    flags: tuple[str, ...]
    files: CertFiles | None
    descriptors: int | None
    wrapper: tuple[str, ...]


class LaunchArguments(TypedDict, total=False):
    """How a server is launched.

    Attributes:
        files: its certificates, on its machine; None uses the identities' own.
        descriptors: the maximum of open ones, which it cannot raise; None keeps the default.
        wrapper: a command that gets the launch command as its arguments and becomes it.
        cgroup_root: an earlier server's root, whose contents that server's context removes;
            None creates a new root.
        flags: appended to the command line.
    """

    files: CertFiles | None
    descriptors: int | None
    wrapper: Sequence[str]
    cgroup_root: str | None
    flags: Sequence[str]


class LaunchingTarget[Server: RunningServer](ABC):
    """A `Target` that launches servers, each on a cgroup root of its own.

    Args:
        name: the target's.
        identities: the servers trust their authority.
        flags: setting of `Variant` -> flag of the launch command.
        host: the servers' machine.
    """

    can_launch = True
    serial = False
    dialect: Dialect = CANONICAL

    def __init__(
        self, name: str, identities: IdentityStore, flags: dict[str, str], host: Host
    ) -> None:
        self.name = name
        self.identities = identities
        self.flags = flags
        self.host: Host | None = host
        self._token = secrets.token_hex(3)
        self._numbers = itertools.count(1)
        self._end_timeout_s = END_TIMEOUT_S

    def new_root(self) -> str:
        """Return a cgroup root that no server has used."""
        return f"{CGROUP_MOUNT}/jw-{self._token}-{next(self._numbers)}"

    @abstractmethod
    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """Return a shell command that starts a server on a free port, for a check's script."""

    @contextmanager
    def launch(
        self, variant: Variant = DEFAULT, **arguments: Unpack[LaunchArguments]
    ) -> Iterator[Server]:
        """See `Target`, and `LaunchArguments`."""
        cgroup_root = arguments.get("cgroup_root")
        root = cgroup_root or self.new_root()
        words = (*flags_for(variant, self.flags), *arguments.get("flags", ()))
        options = LaunchOptions(
            root,
            words,
            arguments.get("files"),
            arguments.get("descriptors"),
            tuple(arguments.get("wrapper", ())),
        )
        try:
            with self._run_server(options) as server:
                yield server
        finally:
            if cgroup_root is None:
                self._remove_root(root)

    def shared(self) -> AbstractContextManager[RunningServer]:
        """See `Target`."""
        return self.launch()

    @abstractmethod
    def _run_server(self, options: LaunchOptions) -> AbstractContextManager[Server]:
        """Start a server, wait until it listens, and end it with the context."""

    def _remove_root(self, root: str) -> None:
        if self.host is not None:
            self.host.run(remove_cgroup_script(root, END_TIMEOUT_S), 2 * END_TIMEOUT_S)

    def _end(self, server: RunningServer) -> None:
        """End a server, if it still runs: by SIGTERM, and by SIGKILL when that times out."""
        if server.wait_exit(0) is not None:
            return
        server.signal(signal.SIGCONT)
        server.signal(signal.SIGTERM)
        timeout_s = self._end_timeout_s
        if server.wait_exit(timeout_s) is None:
            self._end_timeout_s = NEXT_END_TIMEOUT_S
            logger.warning(
                "server %s ignored SIGTERM for %g s and is killed\n%s",
                server.pid,
                timeout_s,
                server.log_tail(),
            )
            server.signal(signal.SIGKILL)
            server.wait_exit(KILL_TIMEOUT_S)
