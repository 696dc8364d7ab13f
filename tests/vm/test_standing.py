"""`vm boot` leaves a guest that stays, `vm down` ends it surely, whatever became of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.host.clock import poll_until
from harness.vm.image import built_image, cache_directory

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

BROKEN = 2


def harness_vm(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "harness", "vm", *words],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test a cache of its own with the image in it, and end what it left standing."""
    image = built_image().directory
    place = tmp_path / "vm" / image.name
    place.parent.mkdir()
    place.symlink_to(image)
    monkeypatch.setenv("JOBWORKER_CACHE", str(tmp_path))
    yield
    harness_vm("down", "--all")


def booted_guest(name: str, *words: str) -> dict[str, dict[str, int]]:
    done = harness_vm("boot", name, *words)
    assert done.returncode == 0, done.stderr
    state: dict[str, dict[str, int]] = json.loads(
        (cache_directory() / "standing" / name / "guest.json").read_text()
    )
    return state


def wait_gone(state: dict[str, dict[str, int]]) -> None:
    for which in ("holder", "machine"):
        path = Path(f"/proc/{state[which]['pid']}")
        poll_until(lambda path=path: None if path.exists() else True, 30, f"end of the {which}")  # type: ignore[misc]


def test_a_guest_stays_is_used_and_is_ended() -> None:
    state = booted_guest("first", "--forward", "22")
    [port] = state["forwards"].values()
    listed = harness_vm("list").stdout
    assert f"22 is {port}" in listed
    assert harness_vm("run", "--in", "first", "echo kept > /tmp/kept").returncode == 0
    used = harness_vm("run", "--standing", "cat /tmp/kept; ls project; exit 7")
    assert (used.returncode, used.stdout.split()[:1]) == (7, ["kept"])
    assert "impl" in used.stdout
    taken = harness_vm("boot", "first")
    assert (taken.returncode, "is there already" in taken.stderr) == (BROKEN, True)
    assert "in use by the guests first" in harness_vm("clean").stderr
    assert harness_vm("down", "first").stdout == "guest first ended\n"
    wait_gone(state)
    assert not Path(str(state["directory"])).exists()
    assert harness_vm("list").stdout == ""


@pytest.mark.parametrize("which", ["machine", "holder"])
def test_a_guest_that_died_is_told_and_cleaned_up(which: str) -> None:
    state = booted_guest("mortal")
    os.kill(state[which]["pid"], signal.SIGKILL)
    wait_gone(state)
    assert "died" in harness_vm("list").stdout
    refused = harness_vm("run", "--in", "mortal", "true")
    assert (refused.returncode, "does not run" in refused.stderr) == (BROKEN, True)
    assert harness_vm("down", "mortal").stdout == "guest mortal had died before; cleaned up\n"
    assert not Path(str(state["directory"])).exists()
    booted_guest("mortal")


def test_a_stranger_with_the_pid_of_a_dead_guest_is_spared() -> None:
    with subprocess.Popen(["sleep", "100"]) as stranger:
        directory = cache_directory() / "standing" / "old"
        directory.mkdir(parents=True)
        (directory / "holder.json").write_text(f'{{"pid": {stranger.pid}, "start_ticks": 1}}')
        assert "had died before" in harness_vm("down", "old").stdout
        assert stranger.poll() is None
        stranger.kill()


def test_a_boot_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        (("boot", "Bad Name"), "is no name for a guest"),
        (("boot", "../up"), "is no name for a guest"),
        (("boot", "good", "--forward", "99999"), "99999 is not in the range"),
        (("down", "nobody"), "no guest 'nobody' stands"),
        (("down", "../up"), "is no name of a guest"),
        (("down", "nobody", "--all"), "leave the name out"),
        (("run", "--in", "nobody", "true"), "no guest 'nobody' stands"),
        (("run", "--standing", "true"), "0 guests stand"),
        (("run", "--in", "one", "--standing", "true"), "leave --standing out"),
        (("run", "--in", "one", "--fresh", "true"), "leave out --in"),
        (("shell", "--in", "nobody"), "no guest 'nobody' stands"),
    ],
)
def test_bad_input_gets_a_clear_error(words: tuple[str, ...], says: str) -> None:
    done = harness_vm(*words)
    assert done.returncode == BROKEN
    assert says in done.stderr
    assert "Traceback" not in done.stderr
