"""Launches a server on this host: the project's, or any that a command starts."""

import os
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.host.clock import poll_until
from harness.host.ports import free_port, reserved_port
from harness.host.processes import Done, program, run, start_bound
from harness.record.verdict import BrokenError, UnsupportedError
from harness.targets.launching import SECRET_VARIABLE, LaunchingTarget, LaunchOptions, end_server
from harness.targets.target import ENDING_SIGNALS, OUR_FLAGS

START_TIMEOUT_S: Final = 60.0
LOG_TAIL_BYTES: Final = 4000

# {listen}, {ca}, {cert}, {key} and {cgroup_root} are replaced; a variant's flags are appended.
OUR_COMMAND: Final = (
    "{python} -m worker_service serve --listen {listen} --ca {ca} --cert {cert} --key {key} "
    "--cgroup-root {cgroup_root} --log-level warning --stop-grace 2s"
)
# Marks a disposable machine; harness/vm/provision.sh writes it.
MARKER: Final = Path("/etc/jobworker-machine")


class LocalServer:
    """A launched server process."""

    def __init__(self, address: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
        self.address = address
        self._process = process
        self._log = log
        self._end_requested = False

    @property
    def pid(self) -> int | None:
        """See `RunningServer`."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`."""
        if number in ENDING_SIGNALS:
            self._end_requested = True
        self._process.send_signal(number)

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def has_died(self) -> bool:
        """See `RunningServer`."""
        return not self._end_requested and self._process.poll() is not None

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


class LocalTarget(LaunchingTarget[LocalServer]):
    """See `Target`.

    Args:
        identities: the server trusts their authority.
        command: the launch command, in which `{listen}`, `{ca}`, `{cert}`, `{key}` and
            `{cgroup_root}` (a directory of cgroupfs for this server alone) are replaced.
        flags: setting of `Variant` -> flag of the launch command.
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
        super().__init__(name, identities, OUR_FLAGS if flags is None else flags, LocalHost())
        self._command = command
        self._environment = environment or {}

    def describe(self) -> str:
        """See `Target`."""
        return f"launched on this host: {self._command}"

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """See `LaunchingTarget`."""
        words = [*self._words(f"127.0.0.1:{free_port()}", cgroup_root, files), *flags]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return shlex.join(["env", *variables, *words])

    @contextmanager
    def _run_server(self, options: LaunchOptions) -> Iterator[LocalServer]:
        words = list[str]()
        if (maximum := options.descriptors) is not None:
            words += [program("prlimit"), f"--nofile={maximum}:{maximum}"]
        environment = {
            **os.environ, **self._environment, SECRET_VARIABLE: f"secret-{secrets.token_hex(8)}"
        }  # fmt: skip
        with reserved_port() as port, tempfile.TemporaryFile() as log:
            address = f"127.0.0.1:{port}"
            words += options.wrapper
            words += self._words(address, options.cgroup_root, options.files)
            words += options.flags
            server = LocalServer(address, start_bound(words, log, environment=environment), log)
            try:
                wait_listening(server)
                yield server
            finally:
                end_server(server)

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
                f"a valid launch command: {self._command!r} ({error}); it may use "
                "{listen}, {ca}, {cert}, {key}, {cgroup_root} and {python}"
            ) from error


def wait_listening(server: LocalServer) -> None:
    """Wait until a launched server accepts connections and starts TLS on them.

    Raises:
        BrokenError: the server ended, or timed out; has the end of its log.
    """
    host, _, port = server.address.rpartition(":")

    def connects() -> bool | None:
        if server.has_died():
            raise BrokenError(f"the server ended during its start:\n{server.log_tail()}")
        return True if _answers(host, int(port)) else None

    poll_until(connects, START_TIMEOUT_S, f"a server at {server.address}", server.log_tail)


def _answers(host: str, port: int) -> bool:
    """Return whether a server accepts a connection and does not reset it when TLS begins."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no data is sent, and none is trusted
    try:
        with socket.create_connection((host, port), timeout=5) as raw:
            # If no server listens, the kernel may connect the socket to itself.
            if raw.getsockname() == raw.getpeername():
                return False
            with suppress(ssl.SSLError, TimeoutError):
                context.wrap_socket(raw).close()
    except OSError:
        return False
    return True


def processor_is_emulated() -> bool:
    """Return whether QEMU emulates this machine's processor; with KVM it does not.

    Source: systemd-detect-virt(1), `qemu` is QEMU "without KVM".
    """
    try:
        return run(["systemd-detect-virt", "--vm"], 30).stdout.strip() == "qemu"
    except BrokenError:
        return False  # systemd-detect-virt is not installed
