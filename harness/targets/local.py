"""A server that the harness launches on this host from a command of the user's."""

import itertools
import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from harness.drive.identities import CertFiles, IdentityStore
from harness.host.clock import poll_until
from harness.host.ports import free_port, reserved_port
from harness.host.processes import Done, run
from harness.record.verdict import BrokenError, UnsupportedError
from harness.targets.target import (
    DEFAULT,
    OUR_FLAGS,
    Host,
    RunningServer,
    Variant,
    flags_for,
    remove_cgroup_script,
)

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 60.0
LOG_TAIL_BYTES: Final = 4000

# {listen}, {ca}, {cert}, {key} and {cgroup_root} are filled in; flags of a variant come at the end.
OUR_COMMAND: Final = (
    "{python} -m worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} "
    "--cgroup-root {cgroup_root} --log-level warning --stop-grace 2s"
)
CGROUP_MOUNT: Final = "/sys/fs/cgroup"
# On a machine that was made to be verified in; written by harness/vm/provision.sh.
MARKER: Final = Path("/etc/jobworker-machine")

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
        if self._log.closed:
            return ""
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
        command: the launch command, with `{listen}`, `{ca}`, `{cert}`, `{key}` to fill in, and
            `{cgroup_root}`, a directory of cgroupfs for this one server.
        flags: how a setting of `Variant` is said to this server.
        name: the target's.
        environment: added to the server's.
    """

    emulated = False
    disposable_host = False
    has_data_disk = False

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
        self._token = secrets.token_hex(3)
        self._numbers = itertools.count(1)

    @property
    def can_launch(self) -> bool:
        """See `Target`."""
        return True

    def describe(self) -> str:
        """See `Target`."""
        return f"launched on this host: {self._command}"

    def new_root(self) -> str:
        """Return a cgroup root that no server has had."""
        return f"{CGROUP_MOUNT}/jw-{self._token}-{next(self._numbers)}"

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """Return a shell command that starts a server on a free port, for a check's script."""
        words = [*self._words(f"127.0.0.1:{free_port()}", cgroup_root, files), *flags]
        given = [f"{name}={value}" for name, value in self._environment.items()]
        return shlex.join(["env", *given, *words])

    @contextmanager
    def launched(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        cgroup_root: str | None = None,
        flags: Sequence[str] = (),
    ) -> Iterator[LocalServer]:
        """See `Target`.

        Args:
            variant: settings to change.
            files: its certificates, on its machine; None: the identities' own.
            descriptors: how many it may have open; None: as it comes.
            cgroup_root: of another server, to start on what that left; None: a root of its own.
            flags: more words for its command line.
        """
        # The server dies with the harness, even with one that is killed.
        words = [_program("setpriv"), "--pdeathsig", "KILL"]
        if descriptors is not None:
            words += [_program("prlimit"), f"--nofile={descriptors}:{descriptors}"]
        root = cgroup_root or self.new_root()
        environment = {
            **os.environ, **self._environment, SECRET_VARIABLE: f"secret-{secrets.token_hex(8)}"
        }  # fmt: skip
        with reserved_port() as port, tempfile.TemporaryFile() as log:
            address = f"127.0.0.1:{port}"
            words += self._words(address, root, files)
            words += [*flags_for(variant, self.flags), *flags]
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
                if cgroup_root is None:  # else it is the other server's to clean
                    LocalHost().run(remove_cgroup_script(root, END_TIMEOUT_S), 2 * END_TIMEOUT_S)

    def shared(self) -> AbstractContextManager[RunningServer]:
        """See `Target`."""
        return self.launched()

    def _words(self, address: str, cgroup_root: str, files: CertFiles | None = None) -> list[str]:
        files = files or self.identities.files("server")
        values = {
            "python": sys.executable, "listen": address, "ca": files.ca, "cert": files.cert,
            "key": files.key, "cgroup_root": cgroup_root,
        }  # fmt: skip
        try:
            return [word.format(**values) for word in shlex.split(self._command)]
        except (KeyError, IndexError, ValueError) as error:
            raise UnsupportedError(
                f"a launch command that can be filled in: {self._command!r} ({error}); it may use "
                "{listen}, {ca}, {cert}, {key}, {cgroup_root} and {python}"
            ) from error


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BrokenError(f"{name} is not installed; it is in Debian's package util-linux")
    return path


def wait_listening(server: LocalServer) -> None:
    """Wait until a launched server accepts connections, and answers on them.

    Raises:
        BrokenError: it ended, or did not in time; has the end of what it said.
    """
    host, _, port = server.address.rpartition(":")

    def connects() -> bool | None:
        if server.has_died():
            raise BrokenError(f"the server ended at its start:\n{server.log_tail()}")
        return True if _answers(host, int(port)) else None

    poll_until(connects, START_TIMEOUT_S, f"a server at {server.address}", server.log_tail)


def _answers(host: str, port: int) -> bool:
    """Tell whether somebody takes a connection and does not reset it when TLS begins on it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, nothing believed
    try:
        with socket.create_connection((host, port), timeout=5) as raw:
            # A port of which nobody listens may be given to the very socket that asks for it.
            if raw.getsockname() == raw.getpeername():
                return False
            with suppress(ssl.SSLError, TimeoutError):
                context.wrap_socket(raw).close()
    except OSError:
        return False
    return True


def _end(server: LocalServer) -> None:
    """End a server that may have ended: by SIGTERM, and if it does not take that, surely."""
    if server.wait_exit(0) is not None:
        return
    server.signal(signal.SIGCONT)
    server.signal(signal.SIGTERM)
    if server.wait_exit(END_TIMEOUT_S) is None:
        logger.warning(
            "the server %s does not take SIGTERM: it gets SIGKILL\n%s",
            server.pid,
            server.log_tail(),
        )
        server.signal(signal.SIGKILL)
        server.wait_exit(END_TIMEOUT_S)


def processor_is_emulated() -> bool:
    """Tell whether QEMU emulates this machine's processor; with KVM it does not.

    Source: systemd-detect-virt(1), `qemu` is QEMU "without KVM".
    """
    try:
        return run(["systemd-detect-virt", "--vm"], 30).stdout.strip() == "qemu"
    except BrokenError:
        return False  # not there
