"""Watches how busy this machine is while checks run: `MachineLoad` has the rule for what it saw.

A thread wakes ten times a second, sees how late it is and how many threads run or wait, and once a
second how much processor time others took: all of the machine's, less that of the harness, of what
it started and of the server that it judges. Times are the kernel's, /proc/stat and /proc/PID/stat
of proc(5). It costs less than 1 % of a processor.

If the server is on this host and its process is not seen, no load is returned: the server's own
work would count as the others', and excuse its lateness. So it is without /proc.

What it leaves out: a container's program behind a proxy of its port; a daemon of a job whose
parents ended within the second in which it started.
"""

import ipaddress
import os
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from harness.record.machine_load import MachineLoad

_TICK_S: Final = 0.1
_WINDOW_S: Final = 1.0
# Shorter windows are not judged: the kernel counts in hundredths of a second.
_WINDOW_LEAST_S: Final = 0.2
_WINDOWS_MAX: Final = 4000  # longer than any check
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Used:
    """Processor seconds since the machine's start: of all programs, and of the harness's own."""

    at_s: float
    all_s: float
    own_s: float


@dataclass(frozen=True, slots=True)
class _Window:
    started_s: float
    ended_s: float
    load: MachineLoad


def load_between(
    before: Used, after: Used, processors: int, tasks: Collection[int], late_s: float
) -> MachineLoad:
    """Return the load of the time between two looks.

    Args:
        before: the first look.
        after: the second look.
        processors: of the machine.
        tasks: numbers of threads that ran or waited, as seen in between.
        late_s: by how much the harness woke late at most.
    """
    others_s = (after.all_s - before.all_s) - max(0.0, after.own_s - before.own_s)
    share = others_s / ((after.at_s - before.at_s) * processors)
    mean = sum(tasks) / len(tasks) if tasks else 0.0
    return MachineLoad(min(1.0, max(0.0, share)), mean / processors, late_s)


class MachineWatch:
    """A context manager that watches the machine; `load_since` returns what it saw.

    Not "others" are this process, those that `include` names, and all of their descendants, also
    those whose parents have ended since they were seen.

    Shared state and its guard: all but the event and the thread under `_lock`.
    """

    def __init__(self) -> None:
        self._servers: dict[str, set[int] | None] = {}  # by address, as `server_processes`
        self._family: dict[int, str] = {}  # the start times of those seen last, by process id
        self._lock = threading.Lock()
        self._windows: deque[_Window] = deque(maxlen=_WINDOWS_MAX)
        self._tasks: list[int] = []
        self._late_s = 0.0
        self._before = self._look()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="machine watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def own_s(self) -> float:
        """Return how many processor seconds the harness and its servers have taken so far."""
        with self._lock:
            return look.own_s if (look := self._look()) else 0.0

    def include(self, address: str) -> None:
        """Do not count the process of this host that listens at HOST:PORT among the others.

        Again if it has ended: another may have taken its place.
        """
        with self._lock:
            known = self._servers.get(address, set())
        if known is None or any((_PROC / str(pid)).exists() for pid in known):
            return
        found = server_processes(address)
        with self._lock:
            self._servers[address] = found
            self._before = self._look()

    def load_since(self, started_s: float) -> MachineLoad | None:
        """Return the load of the busiest second since a time of `time.monotonic`.

        None: the others' part of it is not known.
        """
        with self._lock:
            self._end_window()
            if self._before is None or set() in self._servers.values():
                return None
            loads = [each.load for each in self._windows if each.ended_s > started_s]
        busiest = max(loads, key=lambda load: load.slowdown, default=MachineLoad(0.0, 0.0, 0.0))
        late_s = max((load.late_s for load in loads), default=0.0)
        return MachineLoad(busiest.others_share, busiest.tasks_per_processor, late_s)

    def _watch(self) -> None:
        due_s = time.monotonic() + _TICK_S
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            now_s = time.monotonic()
            with self._lock:
                self._late_s = max(self._late_s, now_s - due_s)
                with suppress(OSError):
                    self._tasks.append(_running_tasks() - 1)  # without this thread
                if self._before is None or now_s - self._before.at_s >= _WINDOW_S:
                    self._end_window()
            due_s = time.monotonic() + _TICK_S  # a look does not count as lateness

    def _end_window(self) -> None:
        before, processors = self._before, os.cpu_count() or 1
        if before is not None and time.monotonic() - before.at_s < _WINDOW_LEAST_S:
            return
        after = self._look()
        if before is not None and after is not None:
            load = load_between(before, after, processors, self._tasks, self._late_s)
            self._windows.append(_Window(before.at_s, after.at_s, load))
        self._before, self._tasks, self._late_s = after, [], 0.0

    def _look(self) -> Used | None:
        roots = {os.getpid()}.union(*(each for each in self._servers.values() if each))
        try:
            family = list(_family(roots, self._family))
            names = (_PROC / "stat").read_text().split(maxsplit=9)[1:9]
        except OSError:
            return None
        self._family = {stat.pid: stat.started for stat in family}
        own_s = sum(map(_used_s, family))
        user, nice, system, _, _, _, _, steal = map(int, names)
        all_s = (user + nice + system + steal) / _TICKS_PER_S
        return Used(time.monotonic(), all_s, own_s)


def server_processes(address: str) -> set[int] | None:
    """Return which processes listen at HOST:PORT; None: that is another machine.

    It is empty if they cannot be seen: of another user, or behind a port that the kernel forwards.
    """
    host, _, port = address.rpartition(":")
    if not _is_this_machine(host.strip("[]")):
        return None
    with suppress(psutil.Error, OSError):
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        return {c.pid for c in listening if c.pid and c.laddr and str(c.laddr.port) == port}
    return set()


def _is_this_machine(host: str) -> bool:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    return not own.isdisjoint(found) or any(map(_is_loopback, found))


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified


def _running_tasks() -> int:
    return int((_PROC / "loadavg").read_text().split()[3].partition("/")[0])


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    fields: tuple[str, ...]

    @property
    def started(self) -> str:
        """When it started; with its id, it names one process."""
        return self.fields[19]


def _family(roots: Collection[int], seen_before: Mapping[int, str]) -> Iterator[_Stat]:
    """Yield the processes of these ids, those seen before, and the descendants of both."""
    found = {stat.pid: stat for stat in _processes()}
    children = defaultdict(list)
    for stat in found.values():
        children[stat.parent].append(stat.pid)
    left = [*roots, *(s.pid for s in found.values() if seen_before.get(s.pid) == s.started)]
    seen = set[int]()
    while left:
        pid = left.pop()
        if pid in found and pid not in seen:
            seen.add(pid)
            yield found[pid]
            left += children[pid]


def _processes() -> Iterator[_Stat]:
    for path in _PROC.iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                # The program's name, in parentheses, may contain anything.
                text = (path / "stat").read_text(errors="replace").rpartition(")")[2]
                fields = tuple(text.split())
                yield _Stat(int(path.name), int(fields[1]), fields)


def _used_s(stat: _Stat) -> float:
    """Return the processor time of a process and of its children that were waited for."""
    return sum(int(each) for each in stat.fields[11:15]) / _TICKS_PER_S
