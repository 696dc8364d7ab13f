"""Runs QEMU, with KVM where a probe shows that it works; the process dies with the harness."""

import os
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.host.ports import free_port
from harness.host.processes import run, start_bound
from harness.record.verdict import BrokenError
from harness.vm.image import Image

CPUS: Final = 2
DATA_DISK_BYTES: Final = 256 * 1024 * 1024
SERIAL_TAIL_CHARACTERS: Final = 3000
_PROBE_TIMEOUT_S: Final = 10.0

# maxcpus=1: the kernel patches its own code while it boots, and an emulated second processor can
# execute a half-patched instruction (1 of 9 boots panicked). The guest enables it later.
# tsc=reliable: never replaced by a slower clock; guest.py rejects a boot that measured it wrongly.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable rdinit=/init maxcpus=1"
)
# For a guest with systemd as its init, see initrd-init; only the first processor is used.
SYSTEMD: Final = "guest_init=/usr/lib/systemd/systemd net.ifnames=0"
# Without KVM: QEMU 7.2 emulates cmpxchg16b wrongly, which kills 6.12 kernels under load.
TCG: Final = ("-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-m", "1024")
# As much memory as the Vagrant machine has: with KVM the checks run at full scale.
KVM: Final = ("-accel", "kvm", "-cpu", "host", "-m", "2048")

_CPU_INFO: Final = Path("/proc/cpuinfo")
_KVM_DEVICE: Final = Path("/dev/kvm")
# The probe: a firmware whose first instructions, 16 bytes below its end (Intel's SDM 3A, 10.1.4),
# write a byte to QEMU's debug exit, which ends QEMU with twice that and one:
# mov al, 0x2a; out 0xf4, al; hlt; and back to hlt.
_FIRMWARE: Final = (
    bytes.fromhex("b02ae6f4f4ebfd").rjust(0xFFF0 + 7, b"\xf4").ljust(0x1_0000, b"\xf4")
)
_DEBUG_EXIT: Final = "isa-debug-exit,iobase=0xf4,iosize=4"
_RAN_EXIT_CODE: Final = 2 * 0x2A + 1


@dataclass(frozen=True, slots=True)
class Machine:
    """A running QEMU process."""

    name: str
    directory: Path
    ssh_port: int
    process: subprocess.Popen[bytes]

    @property
    def qmp_socket(self) -> Path:
        """The socket for QEMU's commands."""
        return self.directory / "qmp"

    @property
    def serial(self) -> str:
        """The console's output so far."""
        return (self.directory / "serial").read_text(encoding="utf-8", errors="replace")

    def serial_tail(self) -> str:
        """Return the end of the console's output, for error messages."""
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
    """Return QEMU's flags: KVM where it works, else emulation.

    A host may let QEMU open /dev/kvm and create a machine, and still not run it. So a probe makes a
    virtual processor execute instructions.
    """
    cpu = _CPU_INFO.read_text(encoding="ascii", errors="replace")
    if not (" vmx" in cpu or " svm" in cpu) or not os.access(_KVM_DEVICE, os.R_OK | os.W_OK):
        return TCG
    return KVM if can_run_processor(KVM) else TCG


def can_run_processor(flags: Sequence[str]) -> bool:
    """Return whether QEMU with these flags executes instructions, within a bounded time."""
    with tempfile.NamedTemporaryFile() as firmware:
        firmware.write(_FIRMWARE)
        firmware.flush()
        probe = ["qemu-system-x86_64", *flags, "-M", "q35", "-smp", str(CPUS), "-nodefaults"]
        probe += ["-no-reboot", "-display", "none", "-device", _DEBUG_EXIT, "-bios", firmware.name]
        try:
            return run(probe, _PROBE_TIMEOUT_S).exit_code == _RAN_EXIT_CODE
        except BrokenError:
            return False


@contextmanager
def run_machine(
    image: Image, name: str, restore_from: Path | None = None, kernel_arguments: str = ""
) -> Iterator[Machine]:
    """Run QEMU for a guest, cold or from a saved state; it is killed when the context ends."""
    directory = Path(tempfile.mkdtemp(prefix=f"jobworker-{name}-"))
    process = None
    try:
        with (directory / "data").open("wb") as disk:
            disk.truncate(DATA_DISK_BYTES)
        (directory / "serial").touch()  # read before QEMU has opened it
        port = free_port()
        # Each forwarded connection takes a descriptor of QEMU's, and before 9.0 QEMU did not raise
        # its own limit.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        command = ["prlimit", f"--nofile={most}:{most}"]
        command += _command(image, name, directory, port, kernel_arguments)
        if restore_from is not None:
            command += ["-incoming", f"exec:cat {shlex.quote(str(restore_from))}"]
        with (directory / "qemu.log").open("wb") as log:
            process = start_bound(command, log, new_session=True)
        yield Machine(name, directory, port, process)
    finally:
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _command(
    image: Image, name: str, directory: Path, ssh_port: int, kernel_arguments: str
) -> list[str]:
    network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-10.0.2.15:22"
    command = ["qemu-system-x86_64", "-name", name, "-M", "q35", *acceleration()]
    command += ["-smp", str(CPUS), "-nodefaults", "-no-reboot"]
    command += ["-display", "none", "-serial", f"file:{directory / 'serial'}"]
    command += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}".rstrip()]
    for disk in (image.root, image.site):
        command += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on,cache=unsafe"]
    command += ["-drive", f"file={directory / 'data'},format=raw,if=virtio,cache=none"]
    command += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
    return [*command, "-device", "virtio-rng-pci"]
