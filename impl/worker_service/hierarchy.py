"""The cgroupfs directory that holds the jobs' cgroups: prepare, lock, create cgroups, reclaim."""

import errno
import fcntl
import logging
import os
import uuid
from pathlib import Path
from typing import Final

from worker_service.cgroup import NO_DESCRIPTOR, Cgroup, Limits
from worker_service.errors import ConfigurationError, HostExhaustedError, LimitsUnavailableError

logger = logging.getLogger(__name__)

DEFAULT_MOUNT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("cpu", "memory", "io", "pids")


class Hierarchy:
    """A cgroupfs directory that belongs to this server and holds its jobs' cgroups.

    It is locked while this object is open, so only one server at a time can use it.
    """

    def __init__(self, root: Path, lock_fd: int) -> None:
        self.root = root
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, root: Path, mount: Path = DEFAULT_MOUNT) -> "Hierarchy":
        """Prepare the directory: check the host, create it, lock it, enable its controllers.

        Raises:
            ConfigurationError: cgroup v2 cannot be used there; the text says what to change.
        """
        _require_cgroup2(mount)
        if root == mount or not root.is_relative_to(mount):
            raise ConfigurationError(f"cgroup root {root} must be a directory below {mount}")
        lock_fd = -1
        try:
            _enable_controllers(mount, root)
            lock_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (root / "cgroup.subtree_control").write_text(_enable_line(), encoding="ascii")
        except BlockingIOError as error:
            os.close(lock_fd)
            raise ConfigurationError(
                f"cgroup root {root} is in use by another server; give this one its own with "
                "--cgroup-root, or stop the other"
            ) from error
        except OSError as error:
            if lock_fd >= 0:
                os.close(lock_fd)
            raise ConfigurationError(f"cgroup root {root}: {_cause(error)}") from error
        return cls(root, lock_fd)

    def close(self) -> None:
        """Unlock the directory, and remove it when it is empty."""
        try:
            self.root.rmdir()
        except OSError as error:
            logger.info("cgroup root %s stays: %s", self.root, error.strerror)
        os.close(self._lock_fd)

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Create a cgroup with limits; on failure nothing is left behind.

        Raises:
            LimitsUnavailableError: the kernel refused a limit.
            HostExhaustedError: the directory cannot be created or already exists, or no descriptor
                is left to write the limits.
        """
        path = self.root / name
        try:
            path.mkdir(mode=0o755)
        except OSError as error:
            raise HostExhaustedError(f"cgroup {path}: {error.strerror}") from error
        try:
            self._write_limits(path, limits)
        except BaseException:
            path.rmdir()
            raise
        return Cgroup(path)

    @staticmethod
    def _write_limits(path: Path, limits: Limits) -> None:
        files = limits.kernel_files()
        if limits.memory_max_bytes is not None and (path / "memory.swap.max").exists():
            # Otherwise a job could exceed memory.max by swapping.
            files.append(("memory.swap.max", "0"))
        for file, text in files:
            try:
                (path / file).write_text(text, encoding="ascii")
            except OSError as error:
                if error.errno in NO_DESCRIPTOR:
                    raise HostExhaustedError(f"cgroup {path}: {error.strerror}") from error
                raise LimitsUnavailableError(
                    f"the kernel refused {text!r} for {file}: {error.strerror} "
                    f"(errno {error.errno})"
                ) from error

    def leftovers(self) -> list[Cgroup]:
        """Return the cgroups of an earlier server's jobs: the directories named by a UUID."""
        return [Cgroup(path) for path in sorted(self.root.iterdir()) if _is_job_name(path.name)]


def _cause(error: OSError) -> str:
    """Return why a root cannot be used, and what to change."""
    if error.errno == errno.EBUSY:  # cgroup-v2.rst, "No Internal Process Constraint"
        if error.filename is None:
            return (
                "it contains processes, so the kernel allows no limits below it; choose another "
                "with --cgroup-root, or end them"
            )
        return (
            f"{Path(error.filename).parent} contains processes, perhaps this server, so the kernel "
            "allows no limits below it; run them in a cgroup of their own (systemd: "
            "DelegateSubgroup=), or choose another root with --cgroup-root"
        )
    place = f" ({error.filename})" if error.filename is not None else ""
    return (
        f"{error.strerror}{place}; the server needs write access there (run it as root, or "
        "delegate the directory to it), or start it with --no-limits"
    )


def _is_job_name(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _enable_line() -> str:
    return " ".join(f"+{controller}" for controller in CONTROLLERS)


def _enable_controllers(mount: Path, root: Path) -> None:
    """Enable the controllers in every directory above the root, and create the root."""
    directory = mount
    for part in root.relative_to(mount).parts:
        control = directory / "cgroup.subtree_control"
        missing = set(CONTROLLERS) - set(control.read_text(encoding="ascii").split())
        if missing:
            line = " ".join(f"+{controller}" for controller in sorted(missing))
            try:
                control.write_text(line, encoding="ascii")
            except OSError as error:
                error.filename = control  # a write does not name it
                raise
        directory /= part
        directory.mkdir(mode=0o755, exist_ok=True)


def _require_cgroup2(mount: Path) -> None:
    """Check that `mount` is cgroup v2 and has the controllers that limits need."""
    try:
        have = set((mount / "cgroup.controllers").read_text(encoding="ascii").split())
    except OSError as error:
        raise ConfigurationError(
            f"{mount} is not a cgroup v2 hierarchy (cgroup v1 or hybrid, or not mounted); limits "
            "need cgroup v2. Boot with systemd.unified_cgroup_hierarchy=1, or start the server "
            "with --no-limits, which rejects jobs that request limits"
        ) from error
    missing = [controller for controller in CONTROLLERS if controller not in have]
    if missing:
        raise ConfigurationError(
            f"{mount} has the controllers {' '.join(sorted(have)) or 'none'} and lacks "
            f"{' '.join(missing)}; enable them in the kernel or in the parent cgroup, or start the "
            "server with --no-limits"
        )
