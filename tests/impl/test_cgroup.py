"""Cgroups without the kernel's part: files, bounds, refusals, leftovers.

A directory of plain files replaces cgroupfs here; the kernel's part is tested in a VM.
"""

import errno
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.descriptors import no_descriptor_left
from worker_service.cgroup import DEFAULT_LIMITS, Cgroup, IoMax, Limits, Usage
from worker_service.errors import (
    ConfigurationError,
    HostExhaustedError,
    InvalidRequestError,
    LimitsUnavailableError,
)
from worker_service.hierarchy import Hierarchy


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A directory that looks like a cgroup v2 mount with all controllers."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "cgroup.subtree_control").write_text("")
    return tmp_path


@pytest.fixture
def hierarchy(mount: Path) -> Iterator[Hierarchy]:
    opened = Hierarchy.open(mount / "jobs", mount)
    yield opened
    opened.close()


def test_default_limits_are_half_a_core_100_mb_and_weight_500() -> None:
    assert DEFAULT_LIMITS.kernel_files() == [
        ("cpu.max", "50000 100000"),
        ("memory.max", "104857600"),
        ("memory.oom.group", "1"),
        ("io.weight", "default 500"),
    ]


def test_kernel_files_has_a_file_for_every_limit() -> None:
    limits = Limits(
        cpu_millicores=2000, io_max=(IoMax("8:0", 1, 2, 3, 4), IoMax("8:16", None, 5)), pids_max=7
    )
    limits.validate()
    assert limits.kernel_files() == [
        ("cpu.max", "200000 100000"),
        ("io.max", "8:0 rbps=1 wbps=2 riops=3 wiops=4"),
        ("io.max", "8:16 wbps=5"),
        ("pids.max", "7"),
    ]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(cpu_millicores=0), "cpu_millicores is 0; it must be from 10"),
        (Limits(cpu_millicores=9), "from 10"),
        (Limits(cpu_millicores=10**6 + 1), "to 1000000"),
        (Limits(memory_max_bytes=0), "memory_max_bytes is 0"),
        (Limits(memory_max_bytes=2**20 - 1), "from 1048576"),
        (Limits(io_weight=0), "from 1 to 10000"),
        (Limits(io_weight=10_001), "from 1 to 10000"),
        (Limits(pids_max=0), "pids_max is 0"),
        (Limits(io_max=(IoMax("8:0"),)), "at least one rate"),
        (Limits(io_max=(IoMax("8:0", 0),)), "each at least 1"),
        (Limits(io_max=(IoMax("vda", 1),)), "must be a block device"),
        (Limits(io_max=(IoMax("/dev/null", 1),)), "must be a block device"),
        (Limits(io_max=(IoMax("/dev/no-such", 1),)), "No such file"),
        (Limits(io_max=(IoMax("8:0\nmax", 1),)), "must be a block device"),
    ],
)
def test_validate_rejects_a_limit_out_of_range_with_the_range(limits: Limits, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        limits.validate()


@pytest.mark.usefixtures("hierarchy")
def test_open_enables_the_controllers_above_and_in_the_root(mount: Path) -> None:
    assert set((mount / "cgroup.subtree_control").read_text().split()) == {
        "+cpu", "+io", "+memory", "+pids",
    }  # fmt: skip
    assert "+memory" in (mount / "jobs" / "cgroup.subtree_control").read_text()


def test_open_makes_the_root_and_close_removes_it(mount: Path) -> None:
    root = mount / "new"
    opened = Hierarchy.open(root, mount)
    assert "+memory" in (root / "cgroup.subtree_control").read_text()
    (root / "cgroup.subtree_control").unlink()  # cgroupfs removes it with its directory
    opened.close()
    assert not root.exists()


def test_open_rejects_a_root_in_use_by_another_server(mount: Path) -> None:
    first = Hierarchy.open(mount / "jobs", mount)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        Hierarchy.open(mount / "jobs", mount)
    first.close()
    Hierarchy.open(mount / "jobs", mount).close()


def test_open_rejects_a_host_without_cgroup_v2_or_a_controller(tmp_path: Path, mount: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not a cgroup v2 hierarchy.*--no-limits"):
        Hierarchy.open(tmp_path / "v1" / "jobs", tmp_path / "v1")
    (mount / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(ConfigurationError, match="lacks memory io"):
        Hierarchy.open(mount / "jobs", mount)


@pytest.mark.parametrize("root", ["/", "/etc", "."])
def test_open_rejects_a_root_outside_the_mount(root: str, mount: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be a directory below"):
        Hierarchy.open(mount / root, mount)


def test_create_rejects_an_existing_name_and_leaves_it_alone(
    mount: Path, hierarchy: Hierarchy
) -> None:
    taken = mount / "jobs" / "name"
    taken.mkdir()
    (taken / "foreign").write_text("mine")
    with pytest.raises(HostExhaustedError, match="File exists"):
        hierarchy.create("name", Limits())
    assert (taken / "foreign").read_text() == "mine"


def test_create_with_a_limit_that_the_kernel_refuses_leaves_no_cgroup(
    mount: Path, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str, **_: str) -> int:
        raise OSError(19, f"No such device ({text})", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuse)
        with pytest.raises(LimitsUnavailableError, match=r"cpu\.max"):
            hierarchy.create("name", DEFAULT_LIMITS)
    assert not (mount / "jobs" / "name").exists()


@pytest.mark.parametrize("file", ["cpu.max", "memory.swap.max"])
def test_create_without_a_descriptor_is_an_exhausted_host_not_a_refused_limit(
    mount: Path, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    writes = Path.write_text

    def exhausted(path: Path, text: str, **_: str) -> int:
        if path.name != file:
            return len(text)
        with no_descriptor_left():
            return writes(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", exhausted)
        patched.setattr(Path, "exists", lambda _: True)
        with pytest.raises(HostExhaustedError, match="Too many open files"):
            hierarchy.create("name", DEFAULT_LIMITS)
    assert not (mount / "jobs" / "name").exists()


def test_opens_without_a_descriptor_are_an_exhausted_host(mount: Path) -> None:
    cgroup = Cgroup(mount)
    opens = (
        cgroup.open_directory, cgroup.open_events, cgroup.open_kill, cgroup.open_memory_events
    )  # fmt: skip
    with no_descriptor_left():
        for each in opens:
            with pytest.raises(HostExhaustedError, match="Too many open files"):
                each()


def test_usage_is_read_from_the_kernels_files(hierarchy: Hierarchy) -> None:
    cgroup = hierarchy.create("name", Limits(pids_max=3))
    for file, text in {
        "cpu.stat": "usage_usec 10\nuser_usec 4\nnr_throttled 2\nthrottled_usec 30\n",
        "memory.events": "low 0\noom 1\noom_kill 4\n",
        "memory.current": "4096\n",
        "memory.peak": "8192\n",
        "pids.current": "3\n",
        "io.stat": "8:0 rbytes=5 wbytes=6 rios=1\n8:16 rbytes=10 wbytes=20\n",
    }.items():
        (cgroup.path / file).write_text(text)
    assert cgroup.usage() == Usage(10, 2, 30, 4096, 8192, 4, 15, 26, 3)


def test_usage_of_missing_counters_is_0(hierarchy: Hierarchy) -> None:
    assert hierarchy.create("name", Limits()).usage() == Usage()


def test_leftovers_are_only_the_directories_named_like_jobs(
    mount: Path, hierarchy: Hierarchy
) -> None:
    job = str(uuid.uuid4())
    for name in (job, "not-a-job", job.upper(), "{" + job + "}"):
        (mount / "jobs" / name).mkdir()
    assert [cgroup.path.name for cgroup in hierarchy.leftovers()] == [job]


def test_remove_also_removes_the_directories_inside(hierarchy: Hierarchy) -> None:
    cgroup = hierarchy.create("name", Limits())
    (cgroup.path / "sub" / "subsub").mkdir(parents=True)
    cgroup.remove()
    assert not cgroup.exists()
    cgroup.remove()  # of a removed cgroup does nothing


def test_remove_of_an_empty_cgroup_opens_no_descriptor(tmp_path: Path) -> None:
    cgroup = Cgroup(tmp_path / "name")
    cgroup.path.mkdir()
    with no_descriptor_left():
        cgroup.remove()
    assert not cgroup.exists()


def test_remove_fails_if_the_directories_inside_cannot_be_listed(tmp_path: Path) -> None:
    cgroup = Cgroup(tmp_path / "name")
    (cgroup.path / "sub").mkdir(parents=True)
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        cgroup.remove()
    assert (cgroup.path / "sub").exists()


def test_usage_without_a_descriptor_is_0_and_logged_except_for_oom_kills(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file, text in (("memory.events", "oom 1\noom_kill 4\n"), ("pids.current", "3\n")):
        (tmp_path / file).write_text(text)
    cgroup = Cgroup(tmp_path)
    fd = cgroup.open_memory_events()
    with no_descriptor_left(), caplog.at_level(logging.WARNING):
        assert cgroup.usage(fd) == Usage(oom_kills=4)
    os.close(fd)
    logged = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/pids.current: Too many open files; its counters are reported as 0" in logged
    assert not [text for text in logged if "memory.events" in text]


@pytest.mark.parametrize(
    ("busy", "says"),
    [("jobs", "root .*jobs: it contains processes"), ("", "DelegateSubgroup=")],
)
def test_busy_cgroup_is_named_and_explained(
    mount: Path, monkeypatch: pytest.MonkeyPatch, busy: str, says: str
) -> None:
    write = Path.write_text

    def refuse(path: Path, text: str, encoding: str) -> int:
        if path == mount / busy / "cgroup.subtree_control":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # as a write: without a name
        return write(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ConfigurationError, match=says) as refused:
        Hierarchy.open(mount / "jobs", mount)
    assert busy or f"{mount} contains processes, perhaps this server" in str(refused.value)
