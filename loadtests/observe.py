"""Samples the server and the machine during a load, and measures the generator's own lateness.

Each process of the generator has `Hiccups`: beside the readers, something wakes at planned instants
and notes how late it is. Whatever delays it (other streams' work, the interpreter lock, a busy
machine, a hypervisor) delays the readers too, so a latency below its figures is not the server's.
"""

import asyncio
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import psutil

from loadtests.record import Sample

_HICCUP_EVERY_NS: Final = 5_000_000
_SAMPLE_EVERY_S: Final = 0.2
_MEMFD_BLOCK_BYTES: Final = 512


class Hiccups:
    """How late wake-ups at planned instants were, in nanoseconds."""

    def __init__(self) -> None:
        self.lateness_ns = array("q")
        self._due_ns = 0

    def plan_s(self) -> float:
        """Plan the next instant; return the seconds until it."""
        self._due_ns = time.monotonic_ns() + _HICCUP_EVERY_NS
        return _HICCUP_EVERY_NS / 1e9

    def note(self) -> None:
        """Note how late it is now."""
        late_ns = time.monotonic_ns() - self._due_ns
        # Instants missed meanwhile were late too: to leave them out would be coordinated omission.
        while late_ns > 0:
            self.lateness_ns.append(late_ns)
            late_ns -= _HICCUP_EVERY_NS


class HiccupMeter:
    """Measures in a thread of its own; a context manager.

    Shared state: `hiccups`, written by the meter's thread alone, read once that has ended.
    """

    def __init__(self) -> None:
        self.hiccups = Hiccups()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hiccups")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self.hiccups.plan_s()):
            self.hiccups.note()


async def measure_loop(hiccups: Hiccups) -> None:
    """Measure how late the event loop is, which all streams of a process share, until cancelled."""
    while True:
        await asyncio.sleep(hiccups.plan_s())
        hiccups.note()


class Sampler:
    """Takes samples in a thread of its own until the context ends.

    Shared state: `samples`, written by the sampler's thread alone, read once that has ended.
    """

    def __init__(self, pid: int | None, now_ns: Callable[[], int]) -> None:
        self.samples: list[Sample] = []
        self._now_ns = now_ns
        self._server = None if pid is None else psutil.Process(pid)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Self:
        self.samples.append(self.sample())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.samples.append(self.sample())

    def _run(self) -> None:
        while not self._stopping.wait(_SAMPLE_EVERY_S):
            self.samples.append(self.sample())

    def sample(self) -> Sample:
        """Return a sample of this instant."""
        times = psutil.cpu_times()
        busy_s = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        server = self._server_values()
        return Sample(self._now_ns(), *server, machine_busy_s=busy_s, machine_steal_s=times.steal)

    def _server_values(self) -> tuple[float, float, int, int, int, int]:
        server = self._server
        if server is None:
            return 0.0, 0.0, 0, 0, 0, 0
        try:
            times = server.cpu_times()
            memfd_bytes, fds = memfds(server.pid)
            return (
                times.user + times.system,
                times.children_user + times.children_system + _children_cpu_s(server),
                server.memory_info().rss,
                memfd_bytes,
                server.num_threads(),
                fds,
            )
        except psutil.NoSuchProcess:
            return 0.0, 0.0, 0, 0, 0, 0


def _children_cpu_s(server: psutil.Process) -> float:
    """Return the processor time of the children that the server has not waited for."""
    total_s = 0.0
    for child in server.children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total_s += times.user + times.system
    return total_s


def memfds(pid: int) -> tuple[int, int]:
    """Return the memory of a process's memfds, in bytes, and the number of its descriptors."""
    blocks: dict[int, int] = {}
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        count += 1
        try:
            if "/memfd:" in str(fd.readlink()):
                status = fd.stat()
                blocks[status.st_ino] = status.st_blocks * _MEMFD_BLOCK_BYTES
        except OSError:
            continue  # it was just closed
    return sum(blocks.values()), count
