"""Our own server in a guest of the harness's own: a kernel with cgroup v2, whatever this host has.

A tree (its `impl/` and `proto/`) is put to the guest once for each target, in a directory of its
own; so the trees of several mutants can follow each other in one guest. Each server gets a port, a
cgroup root and a directory of its own. When it ends, what is left in its root is killed: leftovers
are a check's business as long as the context lasts, and nobody's after it.

Leaves out: servers of other projects, and guests that somebody else booted.
"""

import itertools
import logging
import re
import secrets
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from harness.drive.identities import CertFiles, IdentityStore
from harness.host.processes import Done
from harness.record.verdict import BrokenError
from harness.targets.local import SECRET_VARIABLE
from harness.targets.target import (
    DEFAULT,
    OUR_FLAGS,
    Host,
    Variant,
    flags_for,
    remove_cgroup_script,
    until_script,
)
from harness.vm.guest import SITE, Guest, booted

logger = logging.getLogger(__name__)

GUEST_ADDRESS: Final = "10.0.2.15"  # QEMU's user network gives it (qemu(1), -netdev user)
CGROUP_MOUNT: Final = "/sys/fs/cgroup"
# Alone on the emulated processor it takes 5 s, the first time of a tree 15 s; there may be others.
START_TIMEOUT_S: Final = 120.0
# SIGTERM, the grace of 2 s, and a throttled job's slow end; beyond it SIGKILL is right.
END_TIMEOUT_S: Final = 60.0
KILL_TIMEOUT_S: Final = 20.0
LOG_TAIL_BYTES: Final = 4000
DESCRIPTORS: Final = 65_536  # room for the many connections of a load; the guest allows 4096
_SHELL_SIGNAL_BASE: Final = 128  # sh(1): a command that a signal N ended has the status 128 + N


class GuestHost:
    """The guest, to look into."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """See `Host`."""
        return self._guest.run(script, timeout_s)


class GuestServer:
    """A server in the guest; made by `GuestTarget.launched`.

    Its directory there has `pid`, `log`, and, once it has ended, `exit` (the shell's status).
    """

    def __init__(self, guest: Guest, directory: str, cgroup_root: str) -> None:
        self.address = ""  # told once it listens
        self.cgroup_root = cgroup_root
        self.guest_address = ""
        self._guest = guest
        self._directory = directory
        self._pid: int | None = None
        self._asked_to_end = False

    @property
    def pid(self) -> int | None:
        """See `RunningServer`."""
        return self._pid

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`. An ended one gets nothing: its pid may be somebody else's by now."""
        if number in {signal.SIGTERM, signal.SIGKILL, signal.SIGINT}:
            self._asked_to_end = True
        self._run(f"[ -e exit ] || kill -{number.value} {self._pid}")

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        status = self._run(
            until_script("[ -e exit ]", timeout_s) + "; cat exit 2>/dev/null", timeout_s
        )
        if not status.stdout.strip():
            return None
        code = int(status.stdout)
        return code if code <= _SHELL_SIGNAL_BASE else _SHELL_SIGNAL_BASE - code

    def has_died(self) -> bool:
        """See `RunningServer`.

        Raises:
            BrokenError: the guest itself does not answer: then it is not the server that died.
        """
        # First the guest: it may have died under a server that was asked to end, too.
        ended = self.wait_exit(0) is not None
        return ended and not self._asked_to_end

    def log_tail(self) -> str:
        """See `RunningServer`."""
        try:
            return self._run(f"tail -c {LOG_TAIL_BYTES} log").stdout
        except BrokenError as error:
            return f"its log cannot be read: {error}"

    def wait_listening(self) -> None:
        """Wait until it says that it listens.

        Raises:
            BrokenError: it ended, or does not listen in time; has the end of what it said.
        """
        listening = "grep -q 'listening on' log || [ -e exit ]"
        told = self._run(
            until_script(listening, START_TIMEOUT_S) + "; cat pid log", START_TIMEOUT_S
        )
        self._pid = int(told.require("start of the server").partition("\n")[0])
        found = re.search(r"listening on (\S+)", told.stdout)
        if found is None:
            ended = self.wait_exit(0)
            what = "does not listen" if ended is None else f"ended at its start with {ended}"
            raise BrokenError(f"the server {what}:\n{self.log_tail()}")
        self.guest_address = found[1]

    def _run(self, script: str, timeout_s: float = 0.0) -> Done:
        return self._guest.run(f"cd {self._directory} && {{ {script}; }}", timeout_s + 60)


class GuestTarget:
    """See `Target`.

    Args:
        guest: a booted one, which is asked whether KVM runs it; it stays the caller's.
        identities: whose authority the servers trust; `server` must be valid for 127.0.0.1.
        tree: the checkout whose `impl/` and `proto/` are run.
    """

    disposable_host = True
    has_data_disk = True
    can_launch = True

    def __init__(self, guest: Guest, identities: IdentityStore, tree: Path) -> None:
        self.name = "vm"
        self.emulated = guest.is_emulated()
        self.identities = identities
        self.flags = OUR_FLAGS
        self.host: Host | None = GuestHost(guest)
        self.guest = guest
        self._tree = tree
        self._token = secrets.token_hex(3)
        self._directory = f"/root/jw-{self._token}"
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards `_is_there`, and QEMU's one control connection
        self._is_there = False

    def describe(self) -> str:
        """See `Target`."""
        how = "restored" if self.guest.restored else "booted"
        where = f"our server from {self._tree} in a guest that was {how}"
        by = "emulated (TCG)" if self.emulated else "this host's (KVM)"
        try:
            asked = self.guest.require(f"uname -sr && cat {CGROUP_MOUNT}/cgroup.controllers")
        except BrokenError as error:
            return f"{where}; its kernel cannot be asked: {error}"
        kernel, _, controllers = asked.strip().partition("\n")
        return f"{where}; kernel {kernel}, controllers {controllers}, processors {by}"

    def new_root(self) -> str:
        """Return a cgroup root that no server has had."""
        return f"{CGROUP_MOUNT}/jw-{self._token}-{next(self._numbers)}"

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """Return a shell command that runs a server on any free port, for a check's own script."""
        self._put()
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
    def launched(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        cgroup_root: str | None = None,
        flags: Sequence[str] = (),
    ) -> Iterator[GuestServer]:
        """See `Target`.

        Args:
            variant: settings to change.
            files: its certificates, on its machine; None: the identities' own.
            descriptors: how many it may have open; None: as it comes.
            cgroup_root: of another server, to start on what that left; it stays the other's to
                clean. None: a root of its own.
            flags: more words for its command line.
        """
        root = cgroup_root or self.new_root()
        command = self.command_line(root, [*flags_for(variant, self.flags), *flags], files)
        directory = f"{self._directory}/server-{next(self._numbers)}"
        # The files appear complete, by a rename. setsid: nobody hangs it up, and as no background
        # job of a shell it ignores no signal.
        limit = f"ulimit -Hn {DESCRIPTORS}" if descriptors is None else f"ulimit -n {descriptors}"
        named = f"{limit}; echo $$ > pid.half; mv pid.half pid; exec {command}"
        watched = f"sh -c {shlex.quote(named)} > log 2>&1; echo $? > exit.half; mv exit.half exit"
        start = f"setsid -f sh -c {shlex.quote(watched)} > /dev/null 2>&1 < /dev/null"
        self.guest.require(f"mkdir {directory} && cd {directory} && {start}")
        server = GuestServer(self.guest, directory, root)
        port = None
        try:
            server.wait_listening()
            port = self._forward(server)
            yield server
        finally:
            self._end(server, port, cleans=cgroup_root is None)

    def shared(self) -> AbstractContextManager[GuestServer]:
        """See `Target`."""
        return self.launched()

    def _put(self) -> None:
        """Put tree and certificates to the guest, once."""
        with self._lock:
            if self._is_there:
                return
            self.guest.put_tree(self._tree, ("impl", "proto"), self._directory)
            files = self.identities.files("server")
            for name, path in (
                ("ca.crt", files.ca), ("server.crt", files.cert), ("server.key", files.key)
            ):  # fmt: skip
                self.guest.put(f"{self._directory}/{name}", path.read_bytes(), mode=0o600)
            self._is_there = True

    def _forward(self, server: GuestServer) -> int:
        with self._lock:
            port = self.guest.forward(int(server.guest_address.rpartition(":")[2]))
        server.address = f"127.0.0.1:{port}"
        return port

    def _end(self, server: GuestServer, port: int | None, *, cleans: bool) -> None:
        """End a server that may have ended: by SIGTERM, and if it does not take that, surely."""
        try:
            if server.pid is not None and server.wait_exit(0) is None:
                server.signal(signal.SIGCONT)
                server.signal(signal.SIGTERM)
                if server.wait_exit(END_TIMEOUT_S) is None:
                    logger.warning("a server in the guest does not take SIGTERM: it gets SIGKILL")
                    server.signal(signal.SIGKILL)
                    server.wait_exit(KILL_TIMEOUT_S)
            if port is not None:
                with self._lock:
                    self.guest.end_forward(port)
            if cleans:
                self.guest.run(remove_cgroup_script(server.cgroup_root, KILL_TIMEOUT_S))
        except BrokenError as error:
            # It has gone with its guest; whoever uses that guest next is told so.
            logger.warning("a server in the guest could not be ended: %s", error)


@contextmanager
def guest_target(identities: IdentityStore, tree: Path) -> Iterator[GuestTarget]:
    """Boot a guest for as long as the context lasts, and judge a tree's server in it.

    Raises:
        BrokenError: the guest did not come up.
    """
    with booted("vm") as guest:
        yield GuestTarget(guest, identities, tree)
