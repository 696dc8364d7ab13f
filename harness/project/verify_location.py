"""Decides where `make verify` runs: in a Vagrant machine, with a guest, or on this host; and why.

The decision is a function of `HostFacts`, so a table can test it.
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
GLIBC_MIN: Final = (2, 39)  # the first that can start a process inside a cgroup


class Location(StrEnum):
    """Where `make verify` runs."""

    VAGRANT = "vagrant"
    GUEST = "guest"
    HERE = "here"


_TEXTS: Final = {
    Location.VAGRANT: "in the Vagrant machine",
    Location.GUEST: "on this host and in a guest",
    Location.HERE: "on this host",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """A location and the reason for it."""

    location: Location
    reason: str

    def __str__(self) -> str:
        """Return both."""
        return f"{_TEXTS[self.location]}: {self.reason}"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the decision depends on.

    Attributes:
        vagrant_provider: of this checkout's running machine; None if no machine runs.
        disposable_host: whether this machine was provisioned for running checks.
        limits_obstacle: why a server cannot enforce limits on this host; "" if it can.
        guest_obstacle: why no guest can be booted on this host; "" if one can.
    """

    vagrant_provider: str | None = None
    disposable_host: bool = False
    limits_obstacle: str = ""
    guest_obstacle: str = ""


def decide(facts: HostFacts) -> Decision:
    """Decide. A guest is preferred to a host that is not disposable: checks run fork bombs.

    Raises:
        BrokenError: no location is possible; names the obstacle of each.
    """
    if facts.vagrant_provider:
        return Decision(
            Location.VAGRANT, f"a Vagrant machine of this checkout runs ({facts.vagrant_provider})"
        )
    if facts.disposable_host:
        return Decision(Location.HERE, "this machine was provisioned for running checks")
    if not facts.guest_obstacle:
        return Decision(
            Location.GUEST, "no Vagrant machine of this checkout runs, so a guest is booted"
        )
    if not facts.limits_obstacle:
        return Decision(
            Location.HERE, f"this machine has cgroup v2, and root; {facts.guest_obstacle}"
        )
    raise BrokenError(
        "cannot verify on this host: no Vagrant machine of this checkout runs (vagrant up "
        f"starts one); {facts.guest_obstacle}; {facts.limits_obstacle}"
    )


def choose(requested: str | None) -> Decision:
    """Return the requested location, or decide.

    Raises:
        BrokenError: no location is possible.
    """
    if requested is not None:
        return Decision(Location(requested), f"--in {requested}")
    return decide(gather_facts())


def gather_facts() -> HostFacts:
    """Return the facts of this host."""
    provider = running_provider()
    if provider is not None:
        return HostFacts(vagrant_provider=provider)
    return HostFacts(
        disposable_host=MARKER.exists(),
        limits_obstacle=limits_obstacle(),
        guest_obstacle=guest_obstacle(),
    )


def limits_obstacle() -> str:
    """Return why a server cannot enforce limits on this host, or "" if it can."""
    try:
        controllers = set((CGROUP_MOUNT / "cgroup.controllers").read_text().split())
    except OSError:
        return f"this machine has no cgroup v2 at {CGROUP_MOUNT}"
    if missing := CONTROLLERS - controllers:
        return f"this machine's cgroup v2 lacks {', '.join(sorted(missing))}"
    if os.geteuid() != 0 or not os.access(CGROUP_MOUNT / "cgroup.subtree_control", os.W_OK):
        return "limits need root, and a writable cgroup v2"
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC_MIN:
        return f"limits need glibc >= 2.39, and this machine has {name or 'no glibc'} {version}"
    return ""


def guest_obstacle() -> str:
    """Return why no guest can be booted on this host, or "" if one can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "guests need Linux on x86-64"
    from harness.vm.image import missing_host_packages  # noqa: PLC0415 - it imports on Linux only

    missing = missing_host_packages()
    if not missing or (os.geteuid() == 0 and shutil.which("apt-get")):
        return ""
    return f"a guest needs {', '.join(missing)} (sudo apt-get install {' '.join(missing)})"


def become_root_on_disposable_host() -> None:
    """Restart this command as root on a disposable machine, since limits need root.

    On any other machine, do nothing: the user decides there.
    """
    if MARKER.exists() and os.geteuid() != 0 and shutil.which("sudo"):
        # -n: never prompt for a password.
        words = ["sudo", "-n", sys.executable, "-m", "harness", *sys.argv[1:]]
        os.execvp("sudo", words)  # noqa: S606, S607 - found on PATH, as the user's shell finds it
