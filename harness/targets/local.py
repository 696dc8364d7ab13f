"""A server that the harness launches on this host from a command of the user's."""

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Final

from harness.clock import poll_until
from harness.identities import CertFiles, IdentityStore
from harness.processes import Done, run
from harness.targets.target import (
    DEFAULT,
    OUR_FLAGS,
    Host,
    RunningServer,
    Variant,
    flags_for,
)
from harness.verdict import BrokenError, UnsupportedError

START_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 60.0
LOG_TAIL_BYTES: Final = 4000

# {listen}, {ca}, {cert} and {key} are filled in; flags of a variant come at the end.
OUR_COMMAND: Final = (
    "{python} -m worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} "
    "--log-level warning --stop-grace 2s"
)

# In the server's environment, and never to be seen by a job.
SECRET_VARIABLE: Final = "JOBWORKER_HARNESS_SECRET"  # noqa: S105 - its name, no secret


class LocalServer:
    """A launched process."""

    def __init__(self, address: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
        self.address = address
        self._process = process
        self._log = log
        self._asked_to_end = False

    @property
    def pid(self) -> int | None:
        """See `RunningServer`."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`."""
        if number in {signal.SIGTERM, signal.SIGKILL, signal.SIGINT}:
            self._asked_to_end = True
        self._process.send_signal(number)

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def has_died(self) -> bool:
        """See `RunningServer`."""
        return not self._asked_to_end and self._process.poll() is not None

    def log_tail(self) -> str:
        """See `RunningServer`."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - LOG_TAIL_BYTES)
        return os.pread(self._log.fileno(), LOG_TAIL_BYTES, start).decode("utf-8", "replace")


class LocalHost:
    """This machine."""

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """See `Host`."""
        return run(["sh", "-c", script], timeout_s)


class LocalTarget:
    """See `Target`.

    Args:
        identities: whose authority the server is to trust.
        command: the launch command, with `{listen}`, `{ca}`, `{cert}`, `{key}` to fill in.
        flags: how a setting of `Variant` is said to this server.
        name: the target's.
        environment: added to the server's.
    """

    emulated = False

    def __init__(
        self,
        identities: IdentityStore,
        command: str = OUR_COMMAND,
        flags: dict[str, str] | None = None,
        *,
        name: str = "local",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.identities = identities
        self.flags = OUR_FLAGS if flags is None else flags
        self.host: Host | None = LocalHost()
        self._command = command
        self._environment = environment or {}

    @property
    def can_launch(self) -> bool:
        """See `Target`."""
        return True

    def describe(self) -> str:
        """See `Target`."""
        return f"launched on this host: {self._command}"

    @contextmanager
    def launched(self, variant: Variant = DEFAULT) -> Iterator[LocalServer]:
        """See `Target`."""
        address = f"127.0.0.1:{free_port()}"
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise BrokenError("setpriv is not installed; it is in Debian's package util-linux")
        # setpriv: the server dies with the harness, even with one that is killed.
        words = [setpriv, "--pdeathsig", "KILL", *self._words(address)]
        words += flags_for(variant, self.flags)
        environment = {
            **os.environ, **self._environment, SECRET_VARIABLE: f"secret-{secrets.token_hex(8)}"
        }  # fmt: skip
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            except OSError as error:
                raise BrokenError(f"{shlex.join(words)}: {error.strerror}") from error
            server = LocalServer(address, process, log)
            try:
                wait_listening(server)
                yield server
            finally:
                _end(server)

    def shared(self) -> AbstractContextManager[RunningServer]:
        """See `Target`."""
        return self.launched()

    def _words(self, address: str) -> list[str]:
        files: CertFiles = self.identities.files("server")
        values = {
            "python": sys.executable, "listen": address, "ca": files.ca, "cert": files.cert,
            "key": files.key,
        }  # fmt: skip
        try:
            return [word.format(**values) for word in shlex.split(self._command)]
        except (KeyError, IndexError, ValueError) as error:
            raise UnsupportedError(
                f"a launch command that can be filled in: {self._command!r} ({error}); it may use "
                "{listen}, {ca}, {cert}, {key} and {python}"
            ) from error


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_listening(server: LocalServer) -> None:
    """Wait until a launched server accepts connections.

    Raises:
        BrokenError: it ended, or did not in time; has the end of what it said.
    """
    host, _, port = server.address.rpartition(":")

    def connects() -> bool | None:
        if server.has_died():
            raise BrokenError(f"the server ended at its start:\n{server.log_tail()}")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            return None
        return True

    poll_until(connects, START_TIMEOUT_S, f"a server at {server.address}", server.log_tail)


def _end(server: LocalServer) -> None:
    """End a server that may have ended: by SIGTERM, and if it does not take that, surely."""
    if server.wait_exit(0) is not None:
        return
    server.signal(signal.SIGCONT)
    server.signal(signal.SIGTERM)
    if server.wait_exit(END_TIMEOUT_S) is None:
        server.signal(signal.SIGKILL)
        server.wait_exit(END_TIMEOUT_S)


def checkout() -> Path:
    """Return the checkout that this harness runs from."""
    return Path(__file__).resolve().parents[2]
