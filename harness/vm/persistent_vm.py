"""Guests that stay: booted by one command, used by others, ended by another.

A guest belongs to its holder, a process of its own that boots it and waits; the machine dies with
the holder, whatever happens to that. What is known of a guest is in a directory of the cache that
is named like it: the holder's log, and `guest.json`, complete or not there. Processes are known by
their pid and the moment of their start: a stranger with a reused pid is never taken for one.

Leaves out guests of other users, and restarts of the host: what is left of both is cleaned up.
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
from harness.vm.guest import Guest, booted
from harness.vm.image import Image, built_image, cache_directory
from harness.vm.machine import Machine

BOOT_TIMEOUT_S: Final = 300.0
END_TIMEOUT_S: Final = 30.0
NAME_PATTERN: Final = r"[a-z0-9][a-z0-9-]{0,30}"
DEFAULT_NAME: Final = "guest"
_STATE_FILE: Final = "guest.json"
_HOLDER_FILE: Final = "holder.json"
_LOG_FILE: Final = "log"
_LOG_TAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, not merely a pid: its start, in clock ticks since the host's boot, is part of it.

    Source: proc_pid_stat(5), field 22.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the identity of a process that runs now.

        Raises:
            BrokenError: there is none.
        """
        ticks = _start_ticks(pid)
        if ticks is None:
            raise BrokenError(f"there is no process {pid}")
        return cls(pid, ticks)

    def is_alive(self) -> bool:
        """Tell whether this very process still runs; a zombie does not."""
        return _start_ticks(self.pid) == self.start_ticks

    def end(self, timeout_s: float) -> None:
        """End it: by SIGTERM, and after a time surely. One that has ended is no error.

        Raises:
            BrokenError: the kernel holds it.
        """
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Looked at with the descriptor open: from here on it cannot become somebody else.
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
        raise BrokenError(f"process {self.pid} was killed and has not ended in {timeout_s:g} s")


def _start_ticks(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name, in brackets, may hold anything; the state and 18 more fields follow it.
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] in {"Z", "X"} else int(after_name[19])


@dataclass(frozen=True, slots=True)
class Standing:
    """A guest that stays, as its holder wrote it down.

    Attributes:
        name: what it is called.
        holder, machine: the process that holds it, and QEMU.
        ssh_port: of loopback.
        directory: QEMU's sockets and console.
        control_directory: of the holder's own connection.
        image: the directory of its image.
        forwards: port in the guest -> port of loopback.
        boot_s: how long it took to come up.
        booted_at_s: when, in seconds since the epoch.
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
        """Tell whether it stands."""
        return self.holder.is_alive() and self.machine.is_alive()


class _ForeignProcess:
    """What a `Machine` needs of its process, for one that is another process's child."""

    returncode = None

    def __init__(self, process: ProcessId) -> None:
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        return None if self._process.is_alive() else -1


def names() -> list[str]:
    """Return the names of all guests that stay, or stayed and left something behind."""
    return sorted(path.name for path in _all_directory().iterdir() if path.is_dir())


def find(name: str) -> Standing | None:
    """Return what is known of a guest; None while it boots, or when its holder died before.

    Raises:
        BrokenError: there is no guest of that name, or what is known of it cannot be read.
    """
    directory = _directory(name)
    if not directory.is_dir():
        raise BrokenError(f"no guest {name!r} stands; {_those_that_do()}")
    try:
        values = json.loads((directory / _STATE_FILE).read_text())
        values["holder"], values["machine"] = (
            ProcessId(**values[which]) for which in ("holder", "machine")
        )
        values["forwards"] = {int(inside): at for inside, at in values["forwards"].items()}
        return Standing(**values)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError(
            f"{directory / _STATE_FILE} cannot be read ({error}); `vm down {name}` cleans it up"
        ) from error


def _those_that_do() -> str:
    standing = names()
    return f"there is {', '.join(standing)}" if standing else "`vm boot NAME` boots one"


def the_only() -> str:
    """Return the name of the one guest that stands.

    Raises:
        BrokenError: there is none, or more than one.
    """
    standing = names()
    if len(standing) != 1:
        told = ", ".join(standing) or "none"
        raise BrokenError(f"{len(standing)} guests stand ({told}); name one with --in NAME")
    return standing[0]


@contextmanager
def attached(name: str) -> Iterator[Guest]:
    """Use a guest that stands; it goes on standing.

    Raises:
        BrokenError: there is none of that name, or it has died.
    """
    standing = find(name)
    if standing is None or not standing.is_alive():
        raise BrokenError(
            f"guest {name!r} does not run (any more); `vm down {name}`, then boot it again"
        )
    process = cast("subprocess.Popen[bytes]", _ForeignProcess(standing.machine))
    machine = Machine(name, Path(standing.directory), standing.ssh_port, process)
    guest = Guest(machine, Image(Path(standing.image)), standing.boot_s, restored=True)
    try:
        yield guest
    finally:
        guest.close()


def boot(name: str, ports: Sequence[int] = (), *, fresh: bool = False) -> Standing:
    """Boot a guest that stays when this process has ended.

    Args:
        name: what to call it.
        ports: of the guest, to reach on loopback.
        fresh: boot cold, even when a saved guest is there.

    Raises:
        BrokenError: the name is taken or bad, or the guest did not come up.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise BrokenError(
            f"{name!r} is no name for a guest: up to 31 lower-case letters, digits and dashes, "
            "beginning with no dash"
        )
    built_image()  # here, where its progress is seen
    directory = _directory(name)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise BrokenError(f"a guest {name!r} is there already; `vm down {name}` ends it") from None
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

    def up() -> Standing | None:
        if holder.poll() is not None:
            raise BrokenError(f"guest {name!r} did not come up\n{_log_tail(directory)}")
        return find(name)

    try:
        return poll_until(up, BOOT_TIMEOUT_S, f"guest {name!r}", lambda: _log_tail(directory))
    except BaseException:
        down(name)
        holder.wait()
        raise


def hold(name: str, ports: Sequence[int], *, fresh: bool) -> None:
    """Boot a guest and wait until it or this process is ended. Runs in the holder.

    Raises:
        BrokenError: it did not come up, or died by itself.
    """
    # SIGTERM unwinds the contexts, which end the machine and remove its directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with booted(name, fresh=fresh) as guest:
        forwards = {port: guest.forward(port) for port in ports}
        machine = guest.machine
        standing = Standing(
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
        _write(_directory(name) / _STATE_FILE, dataclasses.asdict(standing))
        machine.process.wait()
        machine.require_alive()


def down(name: str) -> str:
    """End a guest surely, and remove all that is left of it; says what was found.

    Raises:
        BrokenError: there is none of that name, or its processes cannot be ended.
    """
    directory = _directory(name)
    if not directory.is_dir():
        find(name)  # raises
    was_alive = False
    for process in _processes(directory):
        was_alive = was_alive or process.is_alive()
        process.end(END_TIMEOUT_S)
    try:
        standing = find(name)
    except BrokenError:
        standing = None
    if standing is not None:
        for left in (standing.directory, standing.control_directory):
            shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(directory)
    return "ended" if was_alive else "had died before; cleaned up"


def _processes(directory: Path) -> list[ProcessId]:
    """Return the processes that a guest's directory names: the holder first, it ends the other."""
    found = []
    for file, keys in ((_HOLDER_FILE, ()), (_STATE_FILE, ("holder", "machine"))):
        try:
            values = json.loads((directory / file).read_text())
            found += [ProcessId(**values[key]) for key in keys] or [ProcessId(**values)]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not written yet, or by somebody else: nothing is known of a process
    return list(dict.fromkeys(found))


def _all_directory() -> Path:
    directory = cache_directory() / "standing"
    directory.mkdir(exist_ok=True, mode=0o700)
    return directory


def _directory(name: str) -> Path:
    if not re.fullmatch(NAME_PATTERN, name):
        raise BrokenError(f"{name!r} is no name of a guest; {_those_that_do()}")
    return _all_directory() / name


def _write(path: Path, values: dict[str, object]) -> None:
    half = path.with_suffix(".half")
    half.write_text(json.dumps(values))
    half.rename(path)


def _log_tail(directory: Path) -> str:
    return (directory / _LOG_FILE).read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
