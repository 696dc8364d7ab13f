"""One cgroup v2 directory: limits, usage, kill, remove. Knows no jobs.

Only this module and `hierarchy`, which creates the directories, access cgroupfs. No pid is ever
written to `cgroup.procs`: `spawn` starts processes inside their cgroup.
Source: Linux Documentation/admin-guide/cgroup-v2.rst.
"""

import errno
import logging
import os
import re
import select
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker_service.errors import (
    HostExhaustedError,
    InvalidRequestError,
)

logger = logging.getLogger(__name__)

CPU_PERIOD_US: Final = 100_000
CPU_MIN_MILLICORES: Final = 10  # the kernel's minimum quota is 1000 us per period
CPU_MAX_MILLICORES: Final = 1_000_000
MEMORY_MIN_BYTES: Final = 1024 * 1024  # with less, not even a program's loader fits
MEMORY_MAX_BYTES: Final = 2**53
IO_WEIGHT_MAX: Final = 10_000
PIDS_MAX: Final = 4_194_304  # the kernel's highest pid

# This process or the host has no descriptor left: temporary, and unrelated to the cgroup.
NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})
_REMOVED: Final = frozenset({errno.ENOENT, errno.ENODEV})


@dataclass(frozen=True, slots=True)
class IoMax:
    """Rate limits for one block device; None means unlimited."""

    device: str
    read_bytes_per_second: int | None = None
    write_bytes_per_second: int | None = None
    read_operations_per_second: int | None = None
    write_operations_per_second: int | None = None

    def kernel_line(self) -> str:
        """Return the line for `io.max`.

        Raises:
            InvalidRequestError: not a block device, or no rate or a rate of 0 is given.
        """
        ceilings = {
            "rbps": self.read_bytes_per_second,
            "wbps": self.write_bytes_per_second,
            "riops": self.read_operations_per_second,
            "wiops": self.write_operations_per_second,
        }
        given = {key: value for key, value in ceilings.items() if value is not None}
        if not given or not all(0 < value < 2**63 for value in given.values()):
            raise InvalidRequestError(
                f"io_max for {self.device!r} is {given or 'empty'}; give at least one rate, "
                "each at least 1"
            )
        words = [f"{key}={value}" for key, value in given.items()]
        return " ".join([_device_number(self.device), *words])


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one cgroup; None leaves the kernel's default, unlimited."""

    cpu_millicores: int | None = None
    memory_max_bytes: int | None = None
    io_weight: int | None = None
    io_max: tuple[IoMax, ...] = ()
    pids_max: int | None = None

    def validate(self) -> None:
        """Reject limits that no kernel accepts.

        Raises:
            InvalidRequestError: names the limit, the value received and the range allowed.
        """
        bounds = (
            ("cpu_millicores", self.cpu_millicores, CPU_MIN_MILLICORES, CPU_MAX_MILLICORES),
            ("memory_max_bytes", self.memory_max_bytes, MEMORY_MIN_BYTES, MEMORY_MAX_BYTES),
            ("io_weight", self.io_weight, 1, IO_WEIGHT_MAX),
            ("pids_max", self.pids_max, 1, PIDS_MAX),
        )
        for name, value, lowest, highest in bounds:
            if value is not None and not lowest <= value <= highest:
                raise InvalidRequestError(
                    f"{name} is {value}; it must be from {lowest} to {highest}"
                )
        for ceiling in self.io_max:
            ceiling.kernel_line()

    def kernel_files(self) -> list[tuple[str, str]]:
        """Return the files to write and their contents, in order."""
        files: list[tuple[str, str]] = []
        if self.cpu_millicores is not None:
            quota_us = self.cpu_millicores * CPU_PERIOD_US // 1000
            files.append(("cpu.max", f"{quota_us} {CPU_PERIOD_US}"))
        if self.memory_max_bytes is not None:
            files.append(("memory.max", str(self.memory_max_bytes)))
            # The OOM killer must end the whole job: the rest of it would be of no use.
            files.append(("memory.oom.group", "1"))
        if self.io_weight is not None:
            files.append(("io.weight", f"default {self.io_weight}"))
        files += [("io.max", ceiling.kernel_line()) for ceiling in self.io_max]
        if self.pids_max is not None:
            files.append(("pids.max", str(self.pids_max)))
        return files


# R-CGROUP-2: half a core, 100 MB (the kernel's "100M"), weight 500.
DEFAULT_LIMITS: Final = Limits(
    cpu_millicores=500, memory_max_bytes=100 * 1024 * 1024, io_weight=500
)


@dataclass(frozen=True, slots=True)
class Usage:
    """A cgroup's counters; one that the kernel does not have is 0."""

    cpu_usage_us: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_us: int = 0
    memory_current_bytes: int = 0
    memory_peak_bytes: int = 0
    oom_kills: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    pids_current: int = 0


class Cgroup:
    """One job's cgroup."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Return whether the directory exists."""
        return self.path.is_dir()

    def open_directory(self) -> int:
        """Return a descriptor of the directory, for the spawn; the caller closes it.

        Raises:
            HostExhaustedError: it cannot be opened.
        """
        return _open(self.path, os.O_RDONLY | os.O_DIRECTORY)

    def open_events(self) -> int:
        """Return a descriptor for `is_populated`; a change raises POLLPRI on it."""
        return _open(self.path / "cgroup.events", os.O_RDONLY)

    def open_kill(self) -> int:
        """Return a descriptor for `kill_through`."""
        return _open(self.path / "cgroup.kill", os.O_WRONLY)

    def open_memory_events(self) -> int:
        """Return a descriptor of `memory.events`, for `usage`."""
        return _open(self.path / "memory.events", os.O_RDONLY)

    def kill(self) -> None:
        """Kill every process in it and below it; do nothing if the cgroup was removed."""
        try:
            (self.path / "cgroup.kill").write_text("1", encoding="ascii")
        except OSError as error:
            if error.errno not in _REMOVED:
                raise

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no process is left in it or below it; return whether that is so."""
        events_fd = self.open_events()
        try:
            poller = select.poll()
            poller.register(events_fd, select.POLLPRI)
            deadline_s = time.monotonic() + timeout_s
            while is_populated(events_fd):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                poller.poll(left_s * 1000)
            return True
        finally:
            os.close(events_fd)

    def processes(self) -> list[int]:
        """Return the pids in it and below it that this server can see; none if it was removed.

        Raises:
            OSError: EMFILE, ENFILE: no descriptor is left to read them with.
        """
        pids: list[int] = []
        for directory, _, _ in os.walk(self.path, onerror=_raise_shortage):
            try:
                pids += map(int, (Path(directory) / "cgroup.procs").read_text("ascii").split())
            except OSError as error:  # removed, or threaded: its processes are listed above it
                _raise_shortage(error)
        return [pid for pid in pids if pid != 0]

    def usage(self, memory_events_fd: int | None = None) -> Usage:
        """Return the counters; with a descriptor, OOM kills even if no file can be opened."""
        cpu = _flat_keyed(_text(self.path / "cpu.stat"))
        oom = _flat_keyed(_text(self.path / "memory.events", memory_events_fd))
        read_bytes, write_bytes = _io_bytes(_text(self.path / "io.stat"))
        return Usage(
            cpu_usage_us=cpu.get("usage_usec", 0),
            cpu_throttled_periods=cpu.get("nr_throttled", 0),
            cpu_throttled_us=cpu.get("throttled_usec", 0),
            memory_current_bytes=int(_text(self.path / "memory.current") or 0),
            memory_peak_bytes=int(_text(self.path / "memory.peak") or 0),
            oom_kills=oom.get("oom_kill", 0),
            io_read_bytes=read_bytes,
            io_write_bytes=write_bytes,
            pids_current=int(_text(self.path / "pids.current") or 0),
        )

    def remove(self) -> None:
        """Remove the directory and those that the job made inside it, as far as they exist.

        Raises:
            OSError: EBUSY while a process is left inside; EMFILE, ENFILE if the directories inside
                cannot be listed. Those that were not removed stay.
        """
        try:
            self.path.rmdir()  # most jobs make no directories inside; this opens no descriptor
        except FileNotFoundError:
            return
        except OSError:
            for directory, _, _ in os.walk(self.path, topdown=False, onerror=_raise):
                with suppress(FileNotFoundError):
                    Path(directory).rmdir()


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise HostExhaustedError(f"cgroup {path}: {error.strerror}") from error


def _raise(error: OSError) -> None:
    """Make `os.walk` fail on a directory that it cannot list, instead of skipping it."""
    raise error


def _raise_shortage(error: OSError) -> None:
    """Make `os.walk` skip a directory that was removed, but not one that it cannot open now."""
    if error.errno in NO_DESCRIPTOR:
        raise error


def kill_through(kill_fd: int) -> None:
    """Kill as `Cgroup.kill` does, through an open descriptor of `cgroup.kill`."""
    try:
        os.pwrite(kill_fd, b"1", 0)
    except OSError as error:
        if error.errno not in _REMOVED:
            raise


def is_populated(events_fd: int) -> bool:
    """Read `cgroup.events` and arm the next POLLPRI on it; a removed cgroup is not populated."""
    try:
        text = os.pread(events_fd, 4096, 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return b"populated 1" in text


def _device_number(device: str) -> str:
    """Return MAJOR:MINOR of a block device given as that or as a path."""
    if re.fullmatch(r"[0-9]{1,4}:[0-9]{1,7}", device):
        return device
    try:
        status = Path(device).stat() if device.startswith("/") else None
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"io_max device {device!r}: {error}") from error
    if status is None or not stat.S_ISBLK(status.st_mode):
        raise InvalidRequestError(
            f"io_max device is {device!r}; it must be a block device: MAJOR:MINOR or a path such "
            "as /dev/vda"
        )
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _text(path: Path, open_fd: int | None = None) -> str:
    """Return a counter file's text; empty if it cannot be read, which is documented as 0."""
    try:
        if open_fd is not None:
            return os.pread(open_fd, 4096, 0).decode("ascii")
        return path.read_text(encoding="ascii")
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            logger.warning("%s: %s; its counters are reported as 0", path, error.strerror)
        return ""  # or the controller is disabled, or the kernel has no such counter


def _flat_keyed(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, text.splitlines())}


def _io_bytes(text: str) -> tuple[int, int]:
    read, written = (re.findall(rf"\b{name}=(\d+)", text) for name in ("rbytes", "wbytes"))
    return sum(map(int, read)), sum(map(int, written))
