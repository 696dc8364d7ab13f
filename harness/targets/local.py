"""Launches a server on this host: the project's, or any that a command starts."""

import os
import re
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Unpack

from harness.dialects.dialect import Dialect
from harness.dialects.launch_recipe import LaunchRecipe
from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.host.clock import poll_until
from harness.host.ports import fixed_port, free_port, reserved_port
from harness.host.processes import Done, program, run, start_bound
from harness.record.verdict import BrokenError
from harness.targets.address import AddressTarget
from harness.targets.launching import (
    SECRET_VARIABLE,
    LaunchArguments,
    LaunchingTarget,
    LaunchOptions,
)
from harness.targets.serial import LentServer, OneAddress
from harness.targets.target import DEFAULT, ENDING_SIGNALS, OUR_FLAGS, RunningServer, Variant

START_TIMEOUT_S: Final = 60.0
BUILD_TIMEOUT_S: Final = 900.0  # a first build compiles what it depends on
PORT_TIMEOUT_S: Final = 60.0  # as long as a server may take to end
LOG_TAIL_BYTES: Final = 4000
LOG_MAX_BYTES: Final = 1024 * 1024

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
        return self.log()[-LOG_TAIL_BYTES:]

    def log(self) -> str:
        """Return what it has printed, at most the last MiB."""
        if self._log.closed:
            return ""
        start = max(0, os.fstat(self._log.fileno()).st_size - LOG_MAX_BYTES)
        return os.pread(self._log.fileno(), LOG_MAX_BYTES, start).decode("utf-8", "replace")


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
            `{cgroup_root}` (a directory of cgroupfs for this server alone) are replaced; or a
            recipe.
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
        command: str | LaunchRecipe = OUR_COMMAND,
        flags: dict[str, str] | None = None,
        *,
        name: str = "local",
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__(name, identities, OUR_FLAGS if flags is None else flags, LocalHost())
        if isinstance(command, str):
            command = LaunchRecipe(command, directory=Path.cwd(), environment=environment or {})
        self._recipe = command
        self._one_address = OneAddress() if command.listen else None
        self.serial = bool(command.listen)
        self._built = False
        self._build_lock = threading.Lock()

    def describe(self) -> str:
        """See `Target`."""
        return f"launched on this host: {self._recipe.command}"

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """See `LaunchingTarget`."""
        address = self._recipe.listen or f"127.0.0.1:{free_port()}"
        values = self._values(address, cgroup_root, files, self._recipe.directory or Path.cwd())
        variables = [f"{key}={value}" for key, value in self._recipe.variables(values).items()]
        return shlex.join(["env", *variables, *self._recipe.words(values), *flags])

    def shared(self) -> AbstractContextManager[RunningServer]:
        """See `Target`."""
        if self._one_address is None:
            return super().shared()
        return self._one_address.lend(LentServer(self._recipe.listen, super().launch))

    @contextmanager
    def launch(
        self, variant: Variant = DEFAULT, **options: Unpack[LaunchArguments]
    ) -> Iterator[LocalServer]:
        """See `LaunchingTarget`; ends the shared server first if there is one address only."""
        with ExitStack() as stack:
            if self._one_address is not None:
                stack.enter_context(self._one_address.taken())
            yield stack.enter_context(super().launch(variant, **options))

    @contextmanager
    def _run_server(self, options: LaunchOptions) -> Iterator[LocalServer]:
        self._build()
        words = list[str]()
        if (maximum := options.descriptors) is not None:
            words += [program("prlimit"), f"--nofile={maximum}:{maximum}"]
        with (
            self._address() as address,
            tempfile.TemporaryFile() as log,
            self._directory() as directory,
        ):
            values = self._values(address, options.cgroup_root, options.files, directory)
            words += [*options.wrapper, *self._recipe.words(values), *options.flags]
            self._recipe.put_files(directory, values)
            environment = {
                **os.environ, **self._recipe.variables(values),
                SECRET_VARIABLE: f"secret-{secrets.token_hex(8)}",
            }  # fmt: skip
            process = start_bound(words, log, environment=environment, directory=directory)
            server = LocalServer(address, process, log)
            try:
                wait_listening(server, self._recipe.ready)
                yield server
            finally:
                self._end(server)

    def _build(self) -> None:
        """Build the server before the first is started."""
        with self._build_lock:
            if self._recipe.build and not self._built:
                words = shlex.split(self._recipe.build)
                directory = self._recipe.directory or self._recipe.folder
                run(words, BUILD_TIMEOUT_S, directory=directory).require(
                    f"launch.build: {words[0]}"
                )
            self._built = True

    @contextmanager
    def _address(self) -> Iterator[str]:
        """Reserve the address of a server."""
        if (port := self._recipe.fixed_port) is not None:
            with fixed_port(port, PORT_TIMEOUT_S):
                yield self._recipe.listen
        else:
            with reserved_port() as port:
                yield f"127.0.0.1:{port}"

    @contextmanager
    def _directory(self) -> Iterator[Path]:
        """Make the working directory of a server, unless it has a given one."""
        if self._recipe.directory is not None:
            if not self._recipe.directory.is_dir():
                raise BrokenError(f"launch.directory: {self._recipe.directory} is not a directory")
            yield self._recipe.directory
        else:
            with tempfile.TemporaryDirectory(prefix="jobworker-server-") as directory:
                yield Path(directory)

    def _values(
        self, address: str, cgroup_root: str, files: CertFiles | None, directory: Path
    ) -> dict[str, object]:
        files = files or self.identities.files("server")
        host, _, port = address.rpartition(":")
        return {
            "listen": address, "host": host, "port": port, "ca": files.ca.absolute(),
            "cert": files.cert.absolute(), "key": files.key.absolute(), "cgroup_root": cgroup_root,
            "directory": directory, "folder": self._recipe.folder, "python": sys.executable,
        }  # fmt: skip


class ThisHostTarget(AddressTarget):
    """This host as a job worker, by the programs of a dialect, without a server."""

    def __init__(self, identities: IdentityStore, dialect: Dialect) -> None:
        super().__init__("localhost:0", identities, dialect=dialect)
        self.name = "local"

    def describe(self) -> str:
        """See `Target`."""
        return f"this host, by the programs of {self.dialect.name}"


def wait_listening(server: LocalServer, ready: str = "") -> None:
    """Wait until a launched server accepts connections and starts TLS on them.

    Args:
        server: that was started.
        ready: regular expression of the line that it then prints; "": its port is tried.

    Raises:
        BrokenError: the server ended, or timed out; has the end of its log.
    """
    host, _, port = server.address.rpartition(":")

    def connects() -> bool | None:
        if server.has_died():
            raise BrokenError(f"the server ended during its start:\n{server.log_tail()}")
        if ready:
            return True if re.search(ready, server.log(), re.MULTILINE) else None
        return True if _answers(host, int(port)) else None

    what = f"the line {ready!r} of the server" if ready else f"a server at {server.address}"
    poll_until(connects, START_TIMEOUT_S, what, server.log_tail)


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
