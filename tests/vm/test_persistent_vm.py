"""`vm boot` starts a VM that keeps running; `vm down` ends it in every state."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.host.clock import poll_until
from harness.vm.image import cache_directory, ensure_image

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

BROKEN = 2


def harness_vm(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "harness", "vm", *words],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test its own cache, which has the image, and end the VMs that it left running."""
    image = ensure_image().directory
    cached = tmp_path / "vm" / image.name
    cached.parent.mkdir()
    cached.symlink_to(image)
    monkeypatch.setenv("JOBWORKER_CACHE", str(tmp_path))
    yield
    harness_vm("down", "--all")


def boot_vm(name: str, *words: str) -> dict[str, dict[str, int]]:
    done = harness_vm("boot", name, *words)
    assert done.returncode == 0, done.stderr
    state: dict[str, dict[str, int]] = json.loads(
        (cache_directory() / "persistent" / name / "vm.json").read_text()
    )
    return state


def wait_gone(state: dict[str, dict[str, int]]) -> None:
    for which in ("holder", "machine"):
        path = Path(f"/proc/{state[which]['pid']}")
        poll_until(lambda path=path: None if path.exists() else True, 30, f"end of the {which}")  # type: ignore[misc]


def test_booted_vm_runs_until_down() -> None:
    state = boot_vm("first", "--forward", "22")
    [port] = state["forwards"].values()
    listed = harness_vm("list").stdout
    assert f"port 22 on port {port}" in listed
    assert harness_vm("run", "--in", "first", "echo kept > /tmp/kept").returncode == 0
    used = harness_vm("run", "--running", "cat /tmp/kept; ls project; exit 7")
    assert (used.returncode, used.stdout.split()[:1]) == (7, ["kept"])
    assert "impl" in used.stdout
    taken = harness_vm("boot", "first")
    assert (taken.returncode, "already exists" in taken.stderr) == (BROKEN, True)
    assert "these VMs use the cache: first" in harness_vm("clean").stderr
    assert harness_vm("down", "first").stdout == "VM first ended\n"
    wait_gone(state)
    assert not Path(str(state["directory"])).exists()
    assert harness_vm("list").stdout == ""


@pytest.mark.parametrize("which", ["machine", "holder"])
def test_dead_vm_is_listed_as_died_and_removed_by_down(which: str) -> None:
    state = boot_vm("mortal")
    os.kill(state[which]["pid"], signal.SIGKILL)
    wait_gone(state)
    assert "died" in harness_vm("list").stdout
    refused = harness_vm("run", "--in", "mortal", "true")
    assert (refused.returncode, "is not running" in refused.stderr) == (BROKEN, True)
    assert harness_vm("down", "mortal").stdout == "VM mortal was already dead; removed\n"
    assert not Path(str(state["directory"])).exists()
    boot_vm("mortal")


def test_down_spares_another_process_with_the_reused_pid() -> None:
    with subprocess.Popen(["sleep", "100"]) as stranger:
        directory = cache_directory() / "persistent" / "old"
        directory.mkdir(parents=True)
        (directory / "holder.json").write_text(f'{{"pid": {stranger.pid}, "start_ticks": 1}}')
        assert "was already dead" in harness_vm("down", "old").stdout
        assert stranger.poll() is None
        stranger.kill()


def test_failed_boot_leaves_no_vm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    qemu = tmp_path / "bin" / "qemu-system-x86_64"
    qemu.parent.mkdir()
    qemu.write_text("#!/bin/sh\necho no machine today >&2\nexit 3\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    failed = harness_vm("boot", "never")
    assert failed.returncode == BROKEN
    assert "no machine today" in failed.stderr
    assert harness_vm("list").stdout == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("boot", "Bad Name"), "invalid VM name 'Bad Name'"),
        (("boot", "../up"), "must have at most 31 lower-case letters"),
        (("boot", "good", "--forward", "99999"), "'99999' is invalid; it must be"),
        (("down", "missing"), "no VM is called 'missing'"),
        (("down", "../up"), "invalid VM name"),
        (("down", "missing", "--all"), "leave NAME out"),
        (("run", "--in", "missing", "true"), "no VM is called 'missing'"),
        (("run", "--running", "true"), "no VM is running"),
        (("run", "--in", "one", "--running", "true"), "leave --running out"),
        (("run", "--in", "one", "--fresh", "true"), "leave out --in"),
        (("shell", "--in", "missing"), "no VM is called 'missing'"),
    ],
)
def test_bad_input_is_rejected_with_a_reason(words: tuple[str, ...], says: str) -> None:
    done = harness_vm(*words)
    assert done.returncode == BROKEN
    assert says in done.stderr
    assert "Traceback" not in done.stderr
