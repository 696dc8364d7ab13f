"""Saves a booted guest to a file, from which later guests are restored in a second or two.

A saved state fits only the same image, QEMU version, machine flags and processor; its key has all.
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
    """Return the path for the saved state of this image on this host."""
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
    """Save a running guest, which continues afterwards.

    Raises:
        BrokenError: QEMU failed; no incomplete file is left behind.
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
    """Return True once a restored guest runs, else None, for `poll_until`.

    Raises:
        BrokenError: the machine died.
    """
    machine.require_alive()
    if not machine.qmp_socket.exists():
        return None
    [answer] = execute(machine.qmp_socket, {"execute": "query-status"})
    status = answer.get("status") if isinstance(answer, dict) else None
    if status == "paused":  # the state that was saved
        execute(machine.qmp_socket, {"execute": "cont"})
    return True if status == "running" else None


def _migrated(machine: Machine) -> bool | None:
    [answer] = execute(machine.qmp_socket, {"execute": "query-migrate"})
    status = answer.get("status") if isinstance(answer, dict) else None
    if status == "failed":
        raise BrokenError(f"QEMU could not save the guest: {answer}")
    return True if status == "completed" else None
