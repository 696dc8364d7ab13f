"""Watches how busy this machine is while checks run: `MachineLoad` has the rule for what it saw.

A thread wakes ten times a second, sees how late it is and how many threads run or wait, and once a
second how much processor time others took: all of the machine's, less that of the harness, of what
it started and of the server that it judges. Times are the kernel's, /proc/stat and /proc/PID/stat
of proc(5). It costs less than 1 % of a processor.
"""

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator
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

    Not "others" are this process, those that `include` names, and all of their descendants.

    Shared state and its guard: all but the event and the thread under `_lock`.
    """

    def __init__(self) -> None:
        self._roots = {os.getpid()}
        self._included: set[str] = set()
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
            return self._look().own_s

    def include(self, address: str) -> None:
        """Do not count the process of this host that listens at HOST:PORT among the others."""
        with self._lock:
            if address not in self._included:
                self._included.add(address)
                self._roots |= listening_process(address)
                self._before = self._look()

    def load_since(self, started_s: float) -> MachineLoad:
        """Return the load of the busiest second since a time of `time.monotonic`."""
        with self._lock:
            self._end_window()
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
                self._tasks.append(_running_tasks() - 1)  # without this thread
                if now_s - self._before.at_s >= _WINDOW_S:
                    self._end_window()
            due_s = max(due_s + _TICK_S, now_s)

    def _end_window(self) -> None:
        before, processors = self._before, os.cpu_count() or 1
        if time.monotonic() - before.at_s < _WINDOW_LEAST_S:
            return
        after = self._look()
        load = load_between(before, after, processors, self._tasks, self._late_s)
        self._windows.append(_Window(before.at_s, after.at_s, load))
        self._before, self._tasks, self._late_s = after, [], 0.0

    def _look(self) -> Used:
        own_s = sum(_used_s(stat) for stat in _family(self._roots))
        names = (_PROC / "stat").read_text().split(maxsplit=9)[1:9]
        user, nice, system, _, _, _, _, steal = map(int, names)
        all_s = (user + nice + system + steal) / _TICKS_PER_S
        return Used(time.monotonic(), all_s, own_s)


def listening_process(address: str) -> set[int]:
    """Return the process of this host that listens at HOST:PORT, if there is one."""
    host, _, port = address.rpartition(":")
    if host not in {"localhost", "[::1]"} and not host.startswith("127."):
        return set()
    with suppress(psutil.Error, OSError):
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        return {c.pid for c in listening if c.pid and c.laddr and c.laddr.port == int(port)}
    return set()


def _running_tasks() -> int:
    return int((_PROC / "loadavg").read_text().split()[3].partition("/")[0])


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    fields: tuple[str, ...]


def _family(roots: Collection[int]) -> Iterator[_Stat]:
    """Yield the processes of these ids and their descendants."""
    found = {stat.pid: stat for stat in _processes()}
    children = defaultdict(list)
    for stat in found.values():
        children[stat.parent].append(stat.pid)
    left, seen = list(roots), set[int]()
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
