"""QEMU: the process that is a guest's machine."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.processes import run
from harness.verdict import BrokenError
from harness.vm.image import Image

MEMORY_MIB: Final = 1024
CPUS: Final = 2
DATA_DISK_BYTES: Final = 256 * 1024 * 1024
SERIAL_TAIL_CHARACTERS: Final = 3000
_KVM_PROBE_TIMEOUT_S: Final = 10.0

# maxcpus=1: the kernel patches its own code while it boots, and an emulated second processor can
# run into a half-patched instruction (1 of 9 boots panicked so). The guest switches it on later.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable rdinit=/init maxcpus=1"
)
# Without KVM: QEMU 7.2 emulates cmpxchg16b wrongly, which kills 6.12 kernels under load.
TCG: Final = ("-accel", "tcg,thread=multi", "-cpu", "max,-cx16")
KVM: Final = ("-accel", "kvm", "-cpu", "host")


@dataclass(frozen=True, slots=True)
class Machine:
    """A running QEMU."""

    name: str
    directory: Path
    ssh_port: int
    process: subprocess.Popen[bytes]

    @property
    def qmp_socket(self) -> Path:
        """Where QEMU takes commands."""
        return self.directory / "qmp"

    @property
    def serial(self) -> str:
        """Everything that the guest wrote to its console."""
        return (self.directory / "serial").read_text(encoding="utf-8", errors="replace")

    def serial_tail(self) -> str:
        """Return the end of the console, for an error."""
        return self.serial[-SERIAL_TAIL_CHARACTERS:]

    def require_alive(self) -> None:
        """Raise if the guest has died.

        Raises:
            BrokenError: with the last lines of its console.
        """
        if self.process.poll() is not None:
            said = (self.directory / "qemu.log").read_text(errors="replace")[-1000:]
            raise BrokenError(
                f"guest {self.name} died, QEMU's exit code {self.process.returncode}\n{said}\n"
                f"{self.serial_tail()}"
            )
        if "Kernel panic" in self.serial or "GUEST-FAILED" in self.serial:
            raise BrokenError(f"guest {self.name} failed\n{self.serial_tail()}")


def acceleration() -> tuple[str, ...]:
    """Return QEMU's flags: KVM where it really works, else emulation.

    The device may be there, open, and even make a machine, and still not run one: so a small one is
    tried.
    """
    cpu = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    if not (" vmx" in cpu or " svm" in cpu) or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    # A machine without a disk that asks itself to quit: qemu ends with 0 only if KVM could start.
    probe = ["qemu-system-x86_64", *KVM, "-M", "q35", "-m", "64", "-nographic", "-nodefaults"]
    try:
        done = run([*probe, "-monitor", "stdio", "-S"], _KVM_PROBE_TIMEOUT_S, text_in="quit\n")
    except BrokenError:
        return TCG
    return KVM if done.exit_code == 0 else TCG


@contextmanager
def running_machine(image: Image, name: str, restore_from: Path | None = None) -> Iterator[Machine]:
    """Run a guest's machine, booting or restored; it is killed at the end, whatever happened."""
    directory = Path(tempfile.mkdtemp(prefix=f"jobworker-{name}-"))
    process = None
    try:
        with (directory / "data").open("wb") as disk:
            disk.truncate(DATA_DISK_BYTES)
        (directory / "serial").touch()  # read before QEMU has opened it
        port = _free_port()
        # setpriv: the machine dies with the harness, even with one that is killed.
        command = ["setpriv", "--pdeathsig", "KILL", *_command(image, name, directory, port)]
        if restore_from is not None:
            command += ["-incoming", f"exec:cat {shlex.quote(str(restore_from))}"]
        with (directory / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        yield Machine(name, directory, port, process)
    finally:
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _command(image: Image, name: str, directory: Path, ssh_port: int) -> list[str]:
    network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-10.0.2.15:22"
    command = ["qemu-system-x86_64", "-name", name, "-M", "q35", *acceleration()]
    command += ["-smp", str(CPUS), "-m", str(MEMORY_MIB), "-nodefaults", "-no-reboot"]
    command += ["-display", "none", "-serial", f"file:{directory / 'serial'}"]
    command += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", KERNEL_ARGUMENTS]
    for disk in (image.root, image.site):
        command += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on,cache=unsafe"]
    command += ["-drive", f"file={directory / 'data'},format=raw,if=virtio,cache=none"]
    command += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
    return [*command, "-device", "virtio-rng-pci"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
