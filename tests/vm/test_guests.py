"""Guests that must never look like a pass: dying, hanging, orphaned, restored from rubbish."""

import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.host.clock import poll_until
from harness.record.verdict import BrokenError
from harness.vm.guest import Guest, booted
from harness.vm.image import built_image
from harness.vm.state import saved_state_path

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def test_a_guest_that_dies_is_broken_and_shows_its_console() -> None:
    with booted("dying") as guest:
        guest.run("echo 1 > /proc/sys/kernel/sysrq; (sleep 1; echo c > /proc/sysrq-trigger) &")
        with pytest.raises(BrokenError, match="Kernel panic"):
            guest.run("sleep 60", timeout_s=60)


def test_a_command_that_does_not_end_is_broken(guest: Guest) -> None:
    with pytest.raises(BrokenError, match="did not end within 1 s"):
        guest.run("sleep 60", timeout_s=1)


def test_two_guests_at_once_do_not_meet() -> None:
    def told(name: str) -> str:
        with booted(name) as guest:
            guest.put("/root/name", name.encode())
            return guest.get("/root/name").decode()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(told, ["one", "two"])) == ["one", "two"]


def test_a_port_is_forwarded_until_it_is_given_back(guest: Guest) -> None:
    port = guest.forward(22)
    greeting = ["sh", "-c", f"timeout 20 bash -c 'head -c 4 < /dev/tcp/127.0.0.1/{port}'"]
    told = subprocess.run(greeting, capture_output=True, text=True, check=False, timeout=60)
    assert told.stdout == "SSH-"
    guest.end_forward(port)
    refused = subprocess.run(greeting, capture_output=True, text=True, check=False, timeout=60)
    assert "refused" in refused.stderr


def test_a_saved_guest_that_cannot_be_restored_is_replaced_by_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = built_image()
    copy = tmp_path / "vm" / image.directory.name
    copy.mkdir(parents=True)
    for file in image.directory.iterdir():
        if not file.name.startswith("state-"):
            (copy / file.name).symlink_to(file)
    monkeypatch.setenv("JOBWORKER_CACHE", str(tmp_path))
    state = saved_state_path(built_image())
    state.write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING), booted("fallback") as guest:
        assert not guest.restored
        assert guest.require("echo alive") == "alive\n"
    assert "could not be restored, booting a new one" in caplog.text
    with booted("restored") as guest:  # from what was saved in its place
        assert guest.restored


ORPHAN = """
import os, signal
from harness.vm.guest import booted
with booted("orphan") as guest:
    print(guest.machine.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_guest_does_not_outlive_a_harness_that_is_killed() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=200, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    machine = Path(f"/proc/{int(killed.stdout)}")
    poll_until(lambda: None if machine.exists() else True, 30, "the machine's end")
