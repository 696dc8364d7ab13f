"""Where `make verify` runs: a Vagrant machine, the harness's guest, or here; and why.

The choice is a function of what was seen (`Sight`), so it can be read as a table and tested as one.
"""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from harness.record.verdict import BrokenError
from harness.targets.local import MARKER
from harness.vm.vagrant import running_provider

CGROUP_MOUNT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = frozenset({"cpu", "memory", "io", "pids"})
GLIBC_LEAST: Final = (2, 39)  # the first that starts a process inside a cgroup


class Place(StrEnum):
    """Where."""

    VAGRANT = "vagrant"
    GUEST = "guest"
    HERE = "here"


_SAID: Final = {
    Place.VAGRANT: "in the Vagrant machine",
    Place.GUEST: "here and in a guest",
    Place.HERE: "here, in place",
}


@dataclass(frozen=True, slots=True)
class Where:
    """Where, and why there."""

    place: Place
    why: str

    def __str__(self) -> str:
        """Say both."""
        return f"{_SAID[self.place]}: {self.why}"


@dataclass(frozen=True, slots=True)
class Sight:
    """What there is to choose by.

    Attributes:
        vagrant_provider: of the running machine of this checkout; None: none runs.
        disposable_host: this machine was provisioned to be verified in.
        no_limits_because: why a server could not give limits here; "" when it can.
        no_guest_because: why no guest can be booted here; "" when one can.
    """

    vagrant_provider: str | None = None
    disposable_host: bool = False
    no_limits_because: str = ""
    no_guest_because: str = ""


def decide(sight: Sight) -> Where:
    """Choose. A guest comes before this machine, unless this one was made for it: checks bomb.

    Raises:
        BrokenError: there is no place; says what would make one.
    """
    if sight.vagrant_provider:
        return Where(
            Place.VAGRANT, f"a Vagrant machine of this checkout runs ({sight.vagrant_provider})"
        )
    if sight.disposable_host:
        return Where(Place.HERE, "this machine was made to be verified in")
    if not sight.no_guest_because:
        return Where(Place.GUEST, "no Vagrant machine of this checkout runs, so a guest is booted")
    if not sight.no_limits_because:
        return Where(Place.HERE, f"this is a cgroup v2 machine, as root; {sight.no_guest_because}")
    raise BrokenError(
        "there is no place to verify in: no Vagrant machine of this checkout runs (vagrant up "
        f"starts one); {sight.no_guest_because}; {sight.no_limits_because}"
    )


def choose(asked: str | None) -> Where:
    """Return the place that was asked for, or the best that there is.

    Raises:
        BrokenError: it is not there, or none is.
    """
    if asked is not None:
        return Where(Place(asked), f"--in {asked}")
    return decide(look())


def look() -> Sight:
    """Look around."""
    provider = running_provider()
    if provider is not None:
        return Sight(vagrant_provider=provider)
    return Sight(
        disposable_host=MARKER.exists(),
        no_limits_because=no_limits_because(),
        no_guest_because=no_guest_because(),
    )


def no_limits_because() -> str:
    """Return why a server could not give limits on this machine, or "" when it can."""
    try:
        controllers = set((CGROUP_MOUNT / "cgroup.controllers").read_text().split())
    except OSError:
        return f"this machine has no cgroup v2 at {CGROUP_MOUNT}"
    if missing := CONTROLLERS - controllers:
        return f"the cgroup v2 here lacks {', '.join(sorted(missing))}"
    if os.geteuid() != 0 or not os.access(CGROUP_MOUNT / "cgroup.subtree_control", os.W_OK):
        return "the cgroup v2 here is not for this user to write"
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC_LEAST:
        return f"limits need glibc >= 2.39, and this is {name or 'no glibc'} {version}"
    return ""


def no_guest_because() -> str:
    """Return why no guest can be booted on this machine, or "" when one can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "guests need Linux on x86-64"
    from harness.vm.image import missing_host_packages  # noqa: PLC0415 - Linux alone has its parts

    missing = missing_host_packages()
    if not missing or (os.geteuid() == 0 and shutil.which("apt-get")):
        return ""
    return f"a guest needs {', '.join(missing)} (sudo apt-get install {' '.join(missing)})"


def become_root_on_disposable_host() -> None:
    """Start this command anew as root, in a machine made to be verified in: limits need it.

    On any other machine it is the user's to decide; nothing is done there.
    """
    if MARKER.exists() and os.geteuid() != 0 and shutil.which("sudo"):
        # -n: without a password or not at all.
        words = ["sudo", "-n", sys.executable, "-m", "harness", *sys.argv[1:]]
        os.execvp("sudo", words)  # noqa: S606, S607 - found on PATH, as the user's shell finds it
