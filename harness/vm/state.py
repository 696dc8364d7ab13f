"""Saves a booted guest to a file, from which the next one is restored in a second or two.

The file is only good for the very same image, QEMU, machine and processor: all of that is its key.
"""

import hashlib
import shlex
from pathlib import Path
from typing import Final

from harness.host.clock import poll_until
from harness.host.processes import run
from harness.record.verdict import BrokenError
from harness.vm import machine as machine_module
from harness.vm.image import Image
from harness.vm.machine import Machine, acceleration
from harness.vm.qmp import execute

SAVE_TIMEOUT_S: Final = 60.0


def saved_state_path(image: Image) -> Path:
    """Return where the saved guest of this image, on this host, is or would be."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    model = next((line for line in cpu.splitlines() if line.startswith("model name")), "")
    inputs = [
        run(["qemu-system-x86_64", "--version"], SAVE_TIMEOUT_S).stdout,
        Path(machine_module.__file__ or "").read_text(encoding="utf-8"),
        " ".join(acceleration()),
        model,
    ]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    return image.directory / f"state-{key}"


def save_state(machine: Machine, path: Path) -> None:
    """Save a running guest, which goes on running afterwards.

    Raises:
        BrokenError: QEMU could not; nothing is left that could be taken for a saved guest.
    """
    half = path.with_name(f"{path.name}.{machine.name}")
    target = f"exec:cat > {shlex.quote(str(half))}"
    try:
        execute(
            machine.qmp_socket,
            {"execute": "stop"},
            {"execute": "migrate", "arguments": {"uri": target}},
        )
        poll_until(lambda: _migrated(machine), SAVE_TIMEOUT_S, "the guest to be saved")
        execute(machine.qmp_socket, {"execute": "cont"})
        half.rename(path)
    finally:
        half.unlink(missing_ok=True)


def is_running(machine: Machine) -> bool | None:
    """Tell whether a restored guest has begun to run; None is not yet, as `poll_until` has it.

    Raises:
        BrokenError: the machine died.
    """
    machine.require_alive()
    if not machine.qmp_socket.exists():
        return None
    [answer] = execute(machine.qmp_socket, {"execute": "query-status"})
    status = answer.get("status") if isinstance(answer, dict) else None
    if status == "paused":  # as it was when it was saved
        execute(machine.qmp_socket, {"execute": "cont"})
    return True if status == "running" else None


def _migrated(machine: Machine) -> bool | None:
    [answer] = execute(machine.qmp_socket, {"execute": "query-migrate"})
    status = answer.get("status") if isinstance(answer, dict) else None
    if status == "failed":
        raise BrokenError(f"QEMU could not save the guest: {answer}")
    return True if status == "completed" else None
