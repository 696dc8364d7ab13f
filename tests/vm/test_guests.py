"""Guests that die, hang, are orphaned or restored from garbage are BROKEN, never a pass."""

import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.host.clock import poll_until
from harness.record.verdict import BrokenError
from harness.vm.guest import Guest, boot_guest
from harness.vm.image import ensure_image
from harness.vm.state import saved_state_path

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def test_guest_panic_is_broken_and_shows_the_console() -> None:
    with boot_guest("dying") as guest:
        guest.run("echo 1 > /proc/sys/kernel/sysrq; (sleep 1; echo c > /proc/sysrq-trigger) &")
        with pytest.raises(BrokenError, match="Kernel panic"):
            guest.run("sleep 60", timeout_s=60)


def test_command_that_times_out_is_broken(guest: Guest) -> None:
    with pytest.raises(BrokenError, match="timed out after 1 s"):
        guest.run("sleep 60", timeout_s=1)


def test_two_guests_share_no_files() -> None:
    def write_and_read(name: str) -> str:
        with boot_guest(name) as guest:
            guest.put("/root/name", name.encode())
            return guest.get("/root/name").decode()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write_and_read, ["one", "two"])) == ["one", "two"]


def test_port_is_forwarded_until_end_forward(guest: Guest) -> None:
    port = guest.forward(22)
    greeting = ["sh", "-c", f"timeout 20 bash -c 'head -c 4 < /dev/tcp/127.0.0.1/{port}'"]
    greeted = subprocess.run(greeting, capture_output=True, text=True, check=False, timeout=60)
    assert greeted.stdout == "SSH-"
    guest.end_forward(port)
    refused = subprocess.run(greeting, capture_output=True, text=True, check=False, timeout=60)
    assert "refused" in refused.stderr


def test_corrupt_saved_state_is_replaced_by_a_cold_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = ensure_image()
    copy = tmp_path / "vm" / image.directory.name
    copy.mkdir(parents=True)
    for file in image.directory.iterdir():
        if not file.name.startswith("state-"):
            (copy / file.name).symlink_to(file)
    monkeypatch.setenv("JOBWORKER_CACHE", str(tmp_path))
    state = saved_state_path(ensure_image())
    state.write_bytes(b"garbage")
    with caplog.at_level(logging.WARNING), boot_guest("fallback") as guest:
        assert not guest.restored
        assert guest.require("echo alive") == "alive\n"
    assert "could not be restored; booting a new one" in caplog.text
    with boot_guest("restored") as guest:  # from the state that replaced it
        assert guest.restored


ORPHAN = """
import os, signal
from harness.vm.guest import boot_guest
with boot_guest("orphan") as guest:
    print(guest.machine.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_guest_dies_with_a_killed_harness() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=200, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    machine = Path(f"/proc/{int(killed.stdout)}")
    poll_until(lambda: None if machine.exists() else True, 30, "the machine's end")
