"""A booted guest: run commands in it, copy the project to it, reach its ports."""

import json
import secrets
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.clock import poll_until
from harness.processes import Done, run
from harness.verdict import BrokenError
from harness.vm.image import PROJECT, Image, built_image
from harness.vm.machine import Machine, running_machine

BOOT_TIMEOUT_S: Final = 180.0
SSH_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 120.0
# ssh's own exit code for a connection that broke: nothing is known of the command then.
_SSH_BROKE: Final = 255
PYTHONPATH: Final = "/opt/site:/root/project/impl:/root/project/proto:/root/project"
PARTS_TO_COPY: Final = ("impl", "proto", "certs/cnf", "certs/make-certs", "harness/payloads")


class Guest:
    """A guest that answers; made by `booted`."""

    def __init__(self, machine: Machine, image: Image, boot_s: float) -> None:
        self.machine = machine
        self.boot_s = boot_s
        self._image = image
        # Short: a socket's path may have 107 bytes.
        self._control = tempfile.mkdtemp(prefix="jw-")

    def run(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
        """Run a shell command as root in the guest.

        Raises:
            BrokenError: the guest died, or did not answer in time.
        """
        self.machine.require_alive()
        try:
            done = run([*self._ssh(), command], timeout_s)
        except BrokenError as error:
            self.machine.require_alive()
            raise BrokenError(f"{error}\n{self.machine.serial_tail()}") from error
        if done.exit_code == _SSH_BROKE:
            self.machine.require_alive()
            raise BrokenError(f"ssh to guest {self.machine.name} broke: {done.stderr}")
        return done

    def require(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command that must succeed, and return its output.

        Raises:
            BrokenError: as `run`, or the command failed.
        """
        return self.run(command, timeout_s).require(f"in the guest: {command}")

    @contextmanager
    def background(self, command: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a command for as long as the context lasts, its output going to a file on the host."""
        with log.open("wb") as file:
            # -tt: the guest's sshd hangs the command up when this end goes away.
            process = subprocess.Popen(
                [*self._ssh(), "-tt", command],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def put_project(self) -> None:
        """Copy the service and the payloads; the locked packages are in the image."""
        with tempfile.TemporaryFile() as archive:
            parts = [part for part in PARTS_TO_COPY if (PROJECT / part).exists()]
            pack = ["tar", "-C", PROJECT, "--exclude=__pycache__", "-cz", *parts]
            run(pack, COMMAND_TIMEOUT_S, stdout=archive).require("tar")
            archive.seek(0)
            unpack = [*self._ssh(), "mkdir -p project && tar -C project -xz"]
            run(unpack, COMMAND_TIMEOUT_S, stdin=archive).require("tar in the guest")

    def get(self, path: str) -> bytes:
        """Return a file's content."""
        return bytes.fromhex(self.require(f"od -An -v -tx1 {shlex.quote(path)}"))

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file."""
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            command = f"umask 077 && cat > {shlex.quote(path)} && chmod {mode:o} {shlex.quote(path)}"
            run([*self._ssh(), command], COMMAND_TIMEOUT_S, stdin=file).require(f"put {path}")

    def forward(self, guest_port: int) -> int:
        """Make a port of the guest reachable on the host's loopback, and return the port there."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        rule = f"hostfwd_add net tcp:127.0.0.1:{port}-10.0.2.15:{guest_port}"
        answer = self._monitor(rule)
        if answer.strip():
            raise BrokenError(f"QEMU does not forward port {guest_port}: {answer}")
        return port

    def set_clock(self) -> None:
        """Set the guest's clock to the host's: certificates depend on it."""
        self.require(f"date -u -s @{time.time():.3f}")

    def _monitor(self, command: str) -> str:
        """Send one command of QEMU's human monitor through QMP, and return its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SSH_TIMEOUT_S)
            connection.connect(str(self.machine.directory / "qmp"))
            with connection.makefile("rw", encoding="utf-8") as lines:
                lines.readline()
                answer: object = None
                requests: tuple[dict[str, object], ...] = (
                    {"execute": "qmp_capabilities"},
                    {"execute": "human-monitor-command", "arguments": {"command-line": command}},
                )
                for request in requests:
                    lines.write(json.dumps(request) + "\n")
                    lines.flush()
                    answer = json.loads(lines.readline())
        return str(answer["return"]) if isinstance(answer, dict) and "return" in answer else str(answer)

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",  # the guest is this process's own, on loopback
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ControlMaster": "auto",
            "ControlPath": f"{self._control}/c",
            "ControlPersist": "60",
            "ConnectTimeout": "30",
        }
        command = ["ssh", "-F", "none", "-i", str(self._image.ssh_key)]
        command += ["-p", str(self.machine.ssh_port)]
        for key, value in options.items():
            command += ["-o", f"{key}={value}"]
        return [*command, "root@127.0.0.1"]

    def close(self) -> None:
        """End the connection that the commands share."""
        run([*self._ssh()[:-1], "-O", "exit", "root@127.0.0.1"], SSH_TIMEOUT_S)
        Path(self._control).rmdir()


@contextmanager
def booted(name: str = "guest", image: Image | None = None) -> Iterator[Guest]:
    """Boot a guest and wait until it answers; it is gone at the end, whatever happens.

    Raises:
        BrokenError: it did not come up; has the end of its console.
    """
    image = image or built_image()
    started_s = time.monotonic()
    with running_machine(image, f"{name}-{secrets.token_hex(3)}") as machine:

        def ready() -> bool | None:
            machine.require_alive()
            return True if "GUEST-READY" in machine.serial else None

        poll_until(ready, BOOT_TIMEOUT_S, "the guest to boot", machine.serial_tail)
        guest = Guest(machine, image, time.monotonic() - started_s)
        try:
            guest.set_clock()
            yield guest
        finally:
            guest.close()
