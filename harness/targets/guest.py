"""Launches our server in a guest, which has cgroup v2 whether this host has it or not.

A tree (its `impl/` and `proto/`) is copied to the guest once for each target, into a directory of
its own, so that one guest can run the trees of several mutants, one after the other. Each server
gets its own port, cgroup root and directory. When its context ends, all processes left in its
cgroup root are killed: a check must look for leftovers before that.

Not covered: servers of other projects, guests that the harness did not boot.
"""

import logging
import re
import secrets
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.drive.identities import IdentityStore
from harness.host.cert_files import CertFiles
from harness.host.processes import Done
from harness.record.verdict import BrokenError
from harness.targets.launching import (
    CGROUP_MOUNT,
    SECRET_VARIABLE,
    LaunchingTarget,
    LaunchOptions,
)
from harness.targets.target import ENDING_SIGNALS, OUR_FLAGS, poll_script
from harness.vm.guest import SITE, Guest, boot_guest

logger = logging.getLogger(__name__)

GUEST_ADDRESS: Final = "10.0.2.15"  # assigned by QEMU's user network: qemu(1), -netdev user
# On an idle emulated processor a start takes 5 s, a tree's first 15 s; others may run beside it.
START_TIMEOUT_S: Final = 120.0
LOG_TAIL_BYTES: Final = 4000
DESCRIPTORS: Final = 65_536  # enough for a load's connections; the guest's own limit is 4096
_SHELL_SIGNAL_BASE: Final = 128  # sh(1): a command ended by signal N has the status 128 + N


class GuestHost:
    """Access to the guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """See `Host`."""
        return self._guest.run(script, timeout_s)


class GuestServer:
    """A server in the guest; created by `GuestTarget.launch`.

    Its directory in the guest has `pid`, `log` and, once it has ended, `exit` (a shell's status).
    """

    def __init__(self, guest: Guest, directory: str, cgroup_root: str) -> None:
        self.address = ""  # known once it listens
        self.cgroup_root = cgroup_root
        self.guest_address = ""
        self._guest = guest
        self._directory = directory
        self._pid: int | None = None
        self._end_requested = False

    @property
    def pid(self) -> int | None:
        """See `RunningServer`."""
        return self._pid

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`. An ended server gets no signal: its pid may have been reused."""
        if number in ENDING_SIGNALS:
            self._end_requested = True
        self._run(f"[ -e exit ] || kill -{number.value} {self._pid}")

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        status = self._run(
            poll_script("[ -e exit ]", timeout_s) + "; cat exit 2>/dev/null", timeout_s
        )
        if not status.stdout.strip():
            return None
        code = int(status.stdout)
        return code if code <= _SHELL_SIGNAL_BASE else _SHELL_SIGNAL_BASE - code

    def has_died(self) -> bool:
        """See `RunningServer`.

        Raises:
            BrokenError: the guest does not answer; the server's state is then unknown.
        """
        # Query the guest in any case: it may have died while the server was ending.
        ended = self.wait_exit(0) is not None
        return ended and not self._end_requested

    def log_tail(self) -> str:
        """See `RunningServer`."""
        try:
            return self._run(f"tail -c {LOG_TAIL_BYTES} log").stdout
        except BrokenError as error:
            return f"its log cannot be read: {error}"

    def wait_listening(self) -> None:
        """Wait until the log reports that the server listens.

        Raises:
            BrokenError: the server ended, or timed out; has the end of its log.
        """
        listening = "grep -q 'listening on' log || [ -e exit ]"
        started = self._run(
            poll_script(listening, START_TIMEOUT_S) + "; cat pid log", START_TIMEOUT_S
        )
        self._pid = int(started.require("start of the server").partition("\n")[0])
        found = re.search(r"listening on (\S+)", started.stdout)
        if found is None:
            ended = self.wait_exit(0)
            what = "does not listen" if ended is None else f"ended during its start with {ended}"
            raise BrokenError(f"the server {what}:\n{self.log_tail()}")
        self.guest_address = found[1]

    def _run(self, script: str, timeout_s: float = 0.0) -> Done:
        return self._guest.run(f"cd {self._directory} && {{ {script}; }}", timeout_s + 60)


class GuestTarget(LaunchingTarget[GuestServer]):
    """See `Target`.

    Args:
        guest: a booted guest, which the caller ends.
        identities: the servers trust their authority; `server` must be valid for 127.0.0.1.
        tree: the checkout whose `impl/` and `proto/` are run.
    """

    disposable_host = True
    has_data_disk = True

    def __init__(self, guest: Guest, identities: IdentityStore, tree: Path) -> None:
        super().__init__("vm", identities, OUR_FLAGS, GuestHost(guest))
        self.emulated = guest.is_emulated()
        self.guest = guest
        self._tree = tree
        self._directory = f"/root/jw-{self._token}"
        self._lock = threading.Lock()  # guards `_is_copied`, and QEMU's one control connection
        self._is_copied = False

    def describe(self) -> str:
        """See `Target`."""
        how = "restored" if self.guest.restored else "booted"
        where = f"our server from {self._tree} in a guest that was {how}"
        processor = "emulated (TCG)" if self.emulated else "this host's (KVM)"
        try:
            answer = self.guest.require(f"uname -sr && cat {CGROUP_MOUNT}/cgroup.controllers")
        except BrokenError as error:
            return f"{where}; its kernel is unknown: {error}"
        kernel, _, controllers = answer.strip().partition("\n")
        return f"{where}; kernel {kernel}, controllers {controllers}, processors {processor}"

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """See `LaunchingTarget`."""
        self._copy()
        tree = self._directory
        files = files or CertFiles(
            Path(f"{tree}/ca.crt"), Path(f"{tree}/server.crt"), Path(f"{tree}/server.key")
        )
        words = ["env", f"PYTHONPATH={SITE}:{tree}/impl:{tree}/proto"]
        words += [f"{SECRET_VARIABLE}=secret-{secrets.token_hex(8)}"]
        words += ["python3", "-m", "worker_service", "serve", "--listen", f"{GUEST_ADDRESS}:0"]
        words += ["--ca", str(files.ca), "--cert", str(files.cert), "--key", str(files.key)]
        words += ["--log-level", "warning", "--stop-grace", "2s"]
        return shlex.join([*words, "--cgroup-root", cgroup_root, *flags])

    @contextmanager
    def _run_server(self, options: LaunchOptions) -> Iterator[GuestServer]:
        command = self.command_line(options.cgroup_root, options.flags, options.files)
        command = shlex.join(options.wrapper) + f" {command}"
        directory = f"{self._directory}/server-{next(self._numbers)}"
        # The files appear complete, by a rename. setsid: the server gets no SIGHUP and, unlike a
        # shell's background job, ignores no signal.
        maximum = options.descriptors
        limit = f"ulimit -Hn {DESCRIPTORS}" if maximum is None else f"ulimit -n {maximum}"
        named = f"{limit}; echo $$ > pid.half; mv pid.half pid; exec {command}"
        watched = f"sh -c {shlex.quote(named)} > log 2>&1; echo $? > exit.half; mv exit.half exit"
        start = f"setsid -f sh -c {shlex.quote(watched)} > /dev/null 2>&1 < /dev/null"
        self.guest.require(f"mkdir {directory} && cd {directory} && {start}")
        server = GuestServer(self.guest, directory, options.cgroup_root)
        port = None
        try:
            server.wait_listening()
            port = self._forward(server)
            yield server
        finally:
            with _log_failure():
                if server.pid is not None:
                    self._end(server)
                if port is not None:
                    self._end_forward(port)

    def _copy(self) -> None:
        """Copy the tree and the certificates to the guest, once."""
        with self._lock:
            if self._is_copied:
                return
            self.guest.put_tree(self._tree, ("impl", "proto"), self._directory)
            files = self.identities.files("server")
            for name, path in (
                ("ca.crt", files.ca), ("server.crt", files.cert), ("server.key", files.key)
            ):  # fmt: skip
                self.guest.put(f"{self._directory}/{name}", path.read_bytes(), mode=0o600)
            self._is_copied = True

    def _forward(self, server: GuestServer) -> int:
        with self._lock:
            port = self.guest.forward(int(server.guest_address.rpartition(":")[2]))
        server.address = f"127.0.0.1:{port}"
        return port

    def _end_forward(self, port: int) -> None:
        with self._lock:
            self.guest.end_forward(port)

    def _remove_root(self, root: str) -> None:
        with _log_failure():
            super()._remove_root(root)


@contextmanager
def _log_failure() -> Iterator[None]:
    """Log a guest that died or does not answer: its servers are gone, and its next user fails."""
    try:
        yield
    except BrokenError as error:
        logger.warning("a server in the guest could not be ended: %s", error)


@contextmanager
def guest_target(identities: IdentityStore, tree: Path) -> Iterator[GuestTarget]:
    """Boot a guest, as a target that runs a tree's server; it ends with the context.

    Raises:
        BrokenError: the guest did not boot.
    """
    with boot_guest("vm") as guest:
        yield GuestTarget(guest, identities, tree)
