"""The memory that a process may use, on made-up hosts."""

import os
from pathlib import Path

import pytest

from worker_service.host_memory import memory_bytes

MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
OF_NONE = "9223372036854771712"  # what version 1 shows without a limit

HOSTS = {
    "cgroup2": ("0::/jobs/server\n", "cgroup2", "cgroup2 rw,nsdelegate", "memory.max"),
    "cgroup": (
        "9:name=systemd:/\n4:cpu,memory:/jobs/server\n0::/elsewhere\n", "cgroup",
        "cgroup rw,cpu,memory", "memory.limit_in_bytes",
    ),
}  # fmt: skip


def make_host(path: Path, kind: str, limits: list[str], root: str = "/") -> Path:
    """Return a `proc` whose cgroups are directories below `path`: the server's, and those above."""
    cgroups, filesystem, options, name = HOSTS[kind]
    directory = path / "mount"
    for part, limit in zip(("", "jobs", "server"), limits, strict=True):
        directory /= part
        directory.mkdir()
        if limit:
            (directory / name).write_text(f"{limit}\n")
    (path / "self").mkdir()
    (path / "self/cgroup").write_text(cgroups)
    (path / "self/mountinfo").write_text(
        "23 1 0:22 / /proc rw,relatime shared:7 - proc proc rw\n"
        f"30 23 0:26 {root} {path}/mount rw,nosuid shared:4 - {filesystem} {options}\n"
        "31 23 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    )
    return path


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("limits", [["", "7000000", "max"], ["", OF_NONE, "7000000"]])
def test_smallest_limit_of_any_cgroup_counts(tmp_path: Path, kind: str, limits: list[str]) -> None:
    assert memory_bytes(make_host(tmp_path, kind, limits)) == 7_000_000


@pytest.mark.parametrize("kind", HOSTS)
def test_machine_counts_if_no_cgroup_has_a_limit(tmp_path: Path, kind: str) -> None:
    assert memory_bytes(make_host(tmp_path, kind, ["", "max", OF_NONE])) == MACHINE_BYTES


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("root", ["/jobs/server", "/elsewhere/in/the/host"])
def test_container_that_sees_only_its_own_cgroup(tmp_path: Path, kind: str, root: str) -> None:
    assert memory_bytes(make_host(tmp_path, kind, ["7000000", "", ""], root)) == 7_000_000


def test_machine_counts_without_any_cgroup(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path) == MACHINE_BYTES
