"""VMs that keep running between commands: `vm boot` starts one, `vm down` ends it.

Each VM has a holder, a background process that boots it and waits; QEMU dies with the holder,
however that ends. A directory of the cache, named after the VM, has the holder's log and `vm.json`,
which is complete or absent. Processes are identified by pid and start time: another process with a
reused pid is never taken for one.

Not covered: VMs of other users, restarts of the host (`vm down` cleans up after one).
"""

import dataclasses
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, cast

from harness.host.clock import poll_until
from harness.host.repository import ROOT
from harness.record.verdict import BrokenError
from harness.record.whole_file import write_whole
from harness.vm.guest import Guest, boot_guest
from harness.vm.image import Image, cache_directory, ensure_image
from harness.vm.machine import Machine

BOOT_TIMEOUT_S: Final = 300.0
END_TIMEOUT_S: Final = 30.0
NAME_PATTERN: Final = r"[a-z0-9][a-z0-9-]{0,30}"
DEFAULT_NAME: Final = "guest"
_STATE_FILE: Final = "vm.json"
_HOLDER_FILE: Final = "holder.json"
_LOG_FILE: Final = "log"
_LOG_TAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid and its process's start time, in clock ticks since the host's boot.

    Source: proc_pid_stat(5), field 22.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the identity of a running process.

        Raises:
            BrokenError: no process has this pid.
        """
        ticks = _start_ticks(pid)
        if ticks is None:
            raise BrokenError(f"no process has the pid {pid}")
        return cls(pid, ticks)

    def is_alive(self) -> bool:
        """Return whether this process still runs; a zombie does not."""
        return _start_ticks(self.pid) == self.start_ticks

    def end(self, timeout_s: float) -> None:
        """End it by SIGTERM, and by SIGKILL if that times out; do nothing if it has ended.

        Raises:
            BrokenError: it survived SIGKILL.
        """
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Checked with the descriptor open: from here on the pid cannot be reused unnoticed.
            if not self.is_alive():
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(pidfd, number)
                if select.select([pidfd], [], [], timeout_s)[0]:
                    return
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)
        raise BrokenError(f"process {self.pid} has not ended {timeout_s:g} s after SIGKILL")


def _start_ticks(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name, in brackets, may have any character; the state and 18 more fields follow.
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] in {"Z", "X"} else int(after_name[19])


@dataclass(frozen=True, slots=True)
class PersistentVm:
    """A persistent VM, as its holder recorded it.

    Attributes:
        name: chosen at boot.
        holder, machine: the holder's process, and QEMU's.
        ssh_port: on loopback.
        directory: of QEMU's sockets and console.
        control_directory: of the holder's ssh connection.
        image: the directory of its image.
        forwards: guest port -> loopback port.
        boot_s: duration of the boot.
        booted_at_s: seconds since the epoch.
    """

    name: str
    holder: ProcessId
    machine: ProcessId
    ssh_port: int
    directory: str
    control_directory: str
    image: str
    forwards: dict[int, int]
    boot_s: float
    booted_at_s: float

    def is_alive(self) -> bool:
        """Return whether it still runs."""
        return self.holder.is_alive() and self.machine.is_alive()


class _ForeignProcess:
    """The part of `Popen` that `Machine` needs, for a process that is not our child."""

    returncode = None

    def __init__(self, process: ProcessId) -> None:
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        return None if self._process.is_alive() else -1


def names() -> list[str]:
    """Return the names of all persistent VMs, including dead ones that `down` has not removed."""
    return sorted(path.name for path in _all_directory().iterdir() if path.is_dir())


def find(name: str) -> PersistentVm | None:
    """Return a VM's record; None while it boots, or if its holder died before writing it.

    Raises:
        BrokenError: no VM has this name, or its record cannot be read.
    """
    directory = _directory(name)
    if not directory.is_dir():
        raise BrokenError(f"no VM is called {name!r}; {_existing()}")
    try:
        values = json.loads((directory / _STATE_FILE).read_text())
        values["holder"], values["machine"] = (
            ProcessId(**values[which]) for which in ("holder", "machine")
        )
        values["forwards"] = {int(inside): at for inside, at in values["forwards"].items()}
        return PersistentVm(**values)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError(
            f"{directory / _STATE_FILE} cannot be read ({error}); `vm down {name}` removes it"
        ) from error


def _existing() -> str:
    existing = ", ".join(names())
    return f"existing VMs: {existing}" if existing else "`vm boot NAME` boots one"


def require_only_name() -> str:
    """Return the name of the only persistent VM.

    Raises:
        BrokenError: none exists, or more than one.
    """
    existing = names()
    if len(existing) == 1:
        return existing[0]
    if existing:
        raise BrokenError(f"{len(existing)} VMs exist; choose one with --in NAME; {_existing()}")
    raise BrokenError("no VM is running; `vm boot` boots one")


@contextmanager
def attach(name: str) -> Iterator[Guest]:
    """Connect to a running VM, which keeps running when the context ends.

    Raises:
        BrokenError: no VM has this name, or it does not run.
    """
    vm = find(name)
    if vm is None or not vm.is_alive():
        raise BrokenError(f"VM {name!r} is not running; `vm down {name}`, then boot it again")
    process = cast("subprocess.Popen[bytes]", _ForeignProcess(vm.machine))
    machine = Machine(name, Path(vm.directory), vm.ssh_port, process)
    guest = Guest(machine, Image(Path(vm.image)), vm.boot_s, restored=True)
    try:
        yield guest
    finally:
        guest.close()


def boot(name: str, ports: Sequence[int] = (), *, fresh: bool = False) -> PersistentVm:
    """Boot a VM that keeps running when this process has ended.

    Args:
        name: for `vm run --in` and `vm down`.
        ports: guest ports to forward from loopback.
        fresh: boot cold, even if a saved guest exists.

    Raises:
        BrokenError: the name is taken or invalid, or the VM did not boot.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise BrokenError(
            f"invalid VM name {name!r}: it must have at most 31 lower-case letters, digits and "
            "dashes, and must not begin with a dash"
        )
    ensure_image()  # here, where its progress is visible
    directory = _directory(name)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise BrokenError(f"VM {name!r} already exists; `vm down {name}` ends it") from None
    words = [sys.executable, "-m", "harness", "vm", "hold", name]
    words += [f"--forward={port}" for port in ports]
    words += ["--fresh"] if fresh else []
    with (directory / _LOG_FILE).open("wb") as log:
        holder = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
    _write(directory / _HOLDER_FILE, dataclasses.asdict(ProcessId.of(holder.pid)))

    def up() -> PersistentVm | None:
        if holder.poll() is not None:
            raise BrokenError(f"VM {name!r} did not boot\n{_log_tail(directory)}")
        return find(name)

    try:
        return poll_until(up, BOOT_TIMEOUT_S, f"VM {name!r}", lambda: _log_tail(directory))
    except BaseException:
        down(name)
        holder.wait()
        raise


def hold(name: str, ports: Sequence[int], *, fresh: bool) -> None:
    """Boot a VM and wait until it or this process ends; the holder runs this.

    Raises:
        BrokenError: the VM did not boot, or died by itself.
    """
    # SIGTERM unwinds the contexts, which kill QEMU and remove its directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with boot_guest(name, fresh=fresh) as guest:
        forwards = {port: guest.forward(port) for port in ports}
        machine = guest.machine
        vm = PersistentVm(
            name,
            ProcessId.of(os.getpid()),
            ProcessId.of(machine.process.pid),
            machine.ssh_port,
            str(machine.directory),
            str(guest.control_directory),
            str(guest.image.directory),
            forwards,
            guest.boot_s,
            time.time(),
        )
        _write(_directory(name) / _STATE_FILE, dataclasses.asdict(vm))
        machine.process.wait()
        machine.require_alive()


def down(name: str) -> str:
    """End a VM, remove its files, and return whether it was still running, as text.

    Raises:
        BrokenError: no VM has this name, or its processes cannot be ended.
    """
    directory = _directory(name)
    if not directory.is_dir():
        find(name)  # raises
    was_alive = False
    for process in _processes(directory):
        was_alive = was_alive or process.is_alive()
        process.end(END_TIMEOUT_S)
    try:
        vm = find(name)
    except BrokenError:
        vm = None
    if vm is not None:
        for remaining in (vm.directory, vm.control_directory):
            shutil.rmtree(remaining, ignore_errors=True)
    shutil.rmtree(directory)
    return "ended" if was_alive else "was already dead; removed"


def _processes(directory: Path) -> list[ProcessId]:
    """Return a VM's recorded processes, the holder first, since that ends QEMU."""
    found = []
    for file, keys in ((_HOLDER_FILE, ()), (_STATE_FILE, ("holder", "machine"))):
        try:
            values = json.loads((directory / file).read_text())
            found += [ProcessId(**values[key]) for key in keys] or [ProcessId(**values)]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not written yet, or written by another program
    return list(dict.fromkeys(found))


def _all_directory() -> Path:
    directory = cache_directory() / "persistent"
    directory.mkdir(exist_ok=True, mode=0o700)
    return directory


def _directory(name: str) -> Path:
    if not re.fullmatch(NAME_PATTERN, name):
        raise BrokenError(f"invalid VM name {name!r}; {_existing()}")
    return _all_directory() / name


def _write(path: Path, values: dict[str, object]) -> None:
    write_whole(path, json.dumps(values))


def _log_tail(directory: Path) -> str:
    return (directory / _LOG_FILE).read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
