"""The memory that this process may use: the machine's, or what a cgroup allows.

Sources: cgroups(7), proc_pid_cgroup(5), proc_pid_mountinfo(5).
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Final

_PROC: Final = Path("/proc")


def memory_bytes(proc: Path = _PROC) -> int:
    """Return the machine's memory, or the smallest limit of this process's cgroups, v1 and v2."""
    smallest_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _limit_files(_read(proc / "self/cgroup"), _read(proc / "self/mountinfo")):
        text = _read(file).strip()
        if text.isdecimal():  # not "max"
            smallest_bytes = min(smallest_bytes, int(text))
    return smallest_bytes


def _limit_files(cgroups: str, mounts: str) -> Iterator[Path]:
    """Yield the files that may hold a limit: of the process's cgroups and of those above them."""
    paths = {}
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        root, mount_point = mount.split()[3:5]
        kind, *_, options = source.split()
        if kind == "cgroup2":
            controller, name = "", "memory.max"
        elif kind == "cgroup" and "memory" in options.split(","):
            controller, name = "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePath(paths.get(controller, root))
        inside = own.relative_to(root) if own.is_relative_to(root) else PurePath()
        for above in (inside, *inside.parents):
            yield Path(mount_point) / above / name


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""  # not mounted, or the root of its hierarchy
