"""Boots a guest; runs commands in it, copies the project to it, forwards its ports."""

import logging
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from harness.host.clock import poll_until
from harness.host.processes import Done, run
from harness.host.repository import ROOT
from harness.record.verdict import BrokenError
from harness.vm.backlog import widen_backlog
from harness.vm.image import Image, ensure_image
from harness.vm.machine import SYSTEMD, Machine, run_machine
from harness.vm.qmp import execute, monitor_command
from harness.vm.state import is_running, save_state, saved_state_path

logger = logging.getLogger(__name__)

BOOT_TIMEOUT_S: Final = 180.0
RESTORE_TIMEOUT_S: Final = 60.0
SSH_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 120.0
# A cold boot measures the processor's clock. On a busy host the result can be wrong by a factor of
# three, for as long as the guest and all that are restored from it live.
CLOCK_WINDOW_S: Final = 3
CLOCK_ERROR_MAX: Final = 0.05
# ssh's exit code for a broken connection: the command's result is then unknown.
_SSH_BROKE: Final = 255
SITE: Final = "/opt/site"  # the locked Python packages
PYTHONPATH: Final = f"{SITE}:/root/project/impl:/root/project/proto:/root/project"
PARTS_TO_COPY: Final = ("impl", "proto", "certs/cnf", "certs/make-certs", "harness/payloads")


class Guest:
    """A booted guest; created by `boot_guest`."""

    def __init__(self, machine: Machine, image: Image, boot_s: float, *, restored: bool) -> None:
        self.machine = machine
        self.image = image
        self.boot_s = boot_s
        self.restored = restored
        # Short, since a socket's path has at most 107 bytes.
        self.control_directory = Path(tempfile.mkdtemp(prefix="jw-"))

    def run(
        self, command: str, timeout_s: float = COMMAND_TIMEOUT_S, stdin: IO[bytes] | None = None
    ) -> Done:
        """Run a shell command as root in the guest, with a file of the host as its input.

        Raises:
            BrokenError: the guest died, or the command timed out.
        """
        self.machine.require_alive()
        try:
            done = run([*self.ssh_command(), command], timeout_s, stdin=stdin)
        except BrokenError as error:
            self.machine.require_alive()
            raise BrokenError(f"{error}\n{self.machine.serial_tail()}") from error
        if done.exit_code == _SSH_BROKE:
            self.machine.require_alive()
            raise BrokenError(
                f"ssh to guest {self.machine.name} broke: {done.stderr}\n"
                f"{self.machine.serial_tail()}"
            )
        return done

    def require(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command that must succeed, and return its output.

        Raises:
            BrokenError: as for `run`, or the command failed.
        """
        return self.run(command, timeout_s).require(f"in the guest: {command}")

    def put_project(self) -> None:
        """Copy the service and the payloads; the locked packages are in the image."""
        self.put_tree(ROOT, PARTS_TO_COPY, "project")

    def put_tree(self, tree: Path, parts: Sequence[str], directory: str) -> None:
        """Copy parts of a tree to a directory in the guest, without compiled Python files."""
        with tempfile.TemporaryFile() as archive:
            existing = [part for part in parts if (tree / part).exists()]
            pack: list[str | Path] = ["tar", "-C", tree, "--exclude=__pycache__", "-cz", *existing]
            run(pack, COMMAND_TIMEOUT_S, stdout=archive).require("tar")
            archive.seek(0)
            target = shlex.quote(directory)
            unpack = f"mkdir -p {target} && tar -C {target} -xz"
            self.run(unpack, stdin=archive).require("tar in the guest")

    def get(self, path: str) -> bytes:
        """Return a file's content."""
        return bytes.fromhex(self.require(f"od -An -v -tx1 {shlex.quote(path)}"))

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file."""
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            command = (
                f"umask 077 && cat > {shlex.quote(path)} && chmod {mode:o} {shlex.quote(path)}"
            )
            self.run(command, stdin=file).require(f"put {path}")

    def forward(self, guest_port: int) -> int:
        """Forward a free loopback port of the host to a port of the guest, and return it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        rule = f"hostfwd_add net tcp:127.0.0.1:{port}-10.0.2.15:{guest_port}"
        answer = execute(self.machine.qmp_socket, monitor_command(rule))[-1]
        if str(answer).strip():
            raise BrokenError(f"QEMU cannot forward port {guest_port}: {answer}")
        widen_backlog(self.machine.process.pid, port)
        return port

    def end_forward(self, port: int) -> None:
        """Stop forwarding a port that `forward` returned."""
        rule = f"hostfwd_remove net tcp:127.0.0.1:{port}"
        execute(self.machine.qmp_socket, monitor_command(rule))

    def is_emulated(self) -> bool:
        """Return whether QEMU emulates the processors (TCG) rather than using the host's (KVM).

        Raises:
            BrokenError: QEMU does not answer.
        """
        [answer] = execute(self.machine.qmp_socket, {"execute": "query-kvm"})
        return not (isinstance(answer, dict) and answer.get("enabled"))

    def read_clock(self) -> "ClockReading":
        """Return the guest's time since its boot, and the host's before and after."""
        before_s = time.monotonic()
        guest_s = float(self.require("cat /proc/uptime").split()[0])
        return ClockReading(before_s, guest_s, time.monotonic())

    def set_clock(self) -> None:
        """Set the guest's clock to the host's, for the certificates' validity."""
        self.require(f"date -u -s @{time.time():.3f}")

    def ssh_command(self, *, shared: bool = True) -> list[str]:
        """Return the ssh command line for the guest, with its address as the last word.

        Args:
            shared: use the connection that all commands share, and that `close` ends.
        """
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",  # this process started the guest, on loopback
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "30",
        }
        if shared:
            options |= {
                "ControlMaster": "auto",
                "ControlPath": f"{self.control_directory}/c",
                "ControlPersist": "60",
            }
        command = ["ssh", "-F", "none", "-i", str(self.image.ssh_key)]
        command += ["-p", str(self.machine.ssh_port)]
        for key, value in options.items():
            command += ["-o", f"{key}={value}"]
        return [*command, "root@127.0.0.1"]

    def close(self) -> None:
        """End the ssh connection that all commands share."""
        run([*self.ssh_command()[:-1], "-O", "exit", "root@127.0.0.1"], SSH_TIMEOUT_S)
        # ssh may leave its socket behind for a moment.
        shutil.rmtree(self.control_directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A time of the guest, which the host read between two times of its own."""

    host_before_s: float
    guest_s: float
    host_after_s: float


def require_same_pace(first: ClockReading, last: ClockReading) -> None:
    """Require that the guest's clock runs as fast as the host's, as far as two readings show.

    Raises:
        BrokenError: it runs faster or slower.
    """
    guest_s = last.guest_s - first.guest_s
    least = guest_s / (last.host_after_s - first.host_before_s)
    most = guest_s / (last.host_before_s - first.host_after_s)
    if least > 1 + CLOCK_ERROR_MAX or most < 1 - CLOCK_ERROR_MAX:
        raise BrokenError(
            f"the guest's clock runs {least:.2f} to {most:.2f} times as fast as the host's, which "
            "was too busy while the guest booted: try again when it is less busy"
        )


@contextmanager
def boot_guest(name: str = "guest", *, fresh: bool = False) -> Iterator[Guest]:
    """Boot a guest, or restore a saved one, and end it when the context ends.

    The first guest of an image on a host is saved once it is up and its files are cached; later
    ones are restored from that. A failed restore is logged and followed by a cold boot; a failed
    cold boot is logged and tried once more. With `fresh`, there is one cold boot.

    Raises:
        BrokenError: the guest did not boot; has the end of its console.
    """
    image = ensure_image()
    name = f"{name}-{secrets.token_hex(3)}"
    state = saved_state_path(image)
    with ExitStack() as stack:
        guest = None
        if state.exists() and not fresh:
            guest = _restore(stack, image, name, state)
        if guest is None and fresh:
            guest = _boot_cold(stack, image, name)
        elif guest is None:
            guest = _save(_boot_with_retry(stack, image, name), state)
        stack.callback(guest.close)
        guest.set_clock()
        yield guest


@contextmanager
def boot_systemd_guest(name: str) -> Iterator[Guest]:
    """Boot a guest whose init is systemd, cold, with one processor; end it with the context.

    Raises:
        BrokenError: the guest did not boot; has the end of its console.
    """
    with ExitStack() as stack:
        image = ensure_image()
        guest = _boot_cold(stack, image, f"{name}-{secrets.token_hex(3)}", SYSTEMD)
        stack.callback(guest.close)
        guest.set_clock()
        yield guest


def _boot_with_retry(stack: ExitStack, image: Image, name: str) -> Guest:
    """Boot cold, and once more if that fails: a fault of the emulator is not the server's."""
    with ExitStack() as attempt:
        try:
            guest = _boot_cold(attempt, image, name)
        except BrokenError as error:
            logger.warning("the guest did not boot; trying once more: %s", error)
        else:
            stack.push(attempt.pop_all())
            return guest
    return _boot_cold(stack, image, name)


def _boot_cold(stack: ExitStack, image: Image, name: str, kernel_arguments: str = "") -> Guest:
    started_s = time.monotonic()
    machine = stack.enter_context(run_machine(image, name, kernel_arguments=kernel_arguments))

    def ready() -> bool | None:
        machine.require_alive()
        return True if "GUEST-READY" in machine.serial else None

    poll_until(ready, BOOT_TIMEOUT_S, "the guest to boot", machine.serial_tail)
    guest = Guest(machine, image, time.monotonic() - started_s, restored=False)
    first = guest.read_clock()
    guest.require(f"sleep {CLOCK_WINDOW_S}")
    require_same_pace(first, guest.read_clock())
    return guest


def _restore(stack: ExitStack, image: Image, name: str, state: Path) -> Guest | None:
    started_s = time.monotonic()
    with ExitStack() as attempt:
        try:
            machine = attempt.enter_context(run_machine(image, name, restore_from=state))
            poll_until(lambda: is_running(machine), RESTORE_TIMEOUT_S, "the guest to be restored")
            guest = Guest(machine, image, 0.0, restored=True)
            guest.require("true", RESTORE_TIMEOUT_S)
            guest.boot_s = time.monotonic() - started_s
        except BrokenError as error:
            logger.warning("the saved guest could not be restored; booting a new one: %s", error)
            state.unlink(missing_ok=True)
            return None
        stack.push(attempt.pop_all())
        return guest


def _save(guest: Guest, state: Path) -> Guest:
    """Read what the server imports into the guest's cache, save the guest, and reconnect to it."""
    guest.require(
        f"PYTHONPATH={PYTHONPATH} python3 -c 'import grpc, grpc_health, cryptography.x509'"
    )
    guest.close()  # a saved connection would be dead in a restored guest
    save_state(guest.machine, state)
    return Guest(guest.machine, guest.image, guest.boot_s, restored=False)
