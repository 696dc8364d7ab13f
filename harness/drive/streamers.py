"""Many real readers at once: processes of their own, a connection each, every byte compared.

A `Crowd` is one group of readers with one fate. Its processes are started by the harness, tell when
each reader has its first byte, begin their late joiners on `go`, and hand back a record for each
stream. A crowd can be stopped dead (SIGSTOP), killed (SIGKILL) or told to leave.

Threads: one for each process, which reads what it says. The processes are `streamer_process`.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from harness.drive.identities import CertFiles
from harness.record.history import Recorder, from_json
from harness.record.verdict import BrokenError

READERS_PER_PROCESS: Final = 125
_END_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Reader:
    """One reader.

    Attributes:
        label: of its record; a resumed stream's is `LABEL resumed`.
        job_id: the job.
        seed: of the pattern that the job writes.
        late_s: joins so long after `go`; None joins at once.
        bytes_per_s: reads no faster; None: as fast as it comes.
        cut_after_bytes: leaves after so much, and comes back on a new connection for the rest.
        offsets: whether the server knows offsets; else a resumed stream skips what it has.
        timeout_s: of each stream.
    """

    label: str
    job_id: str
    seed: str
    late_s: float | None = None
    bytes_per_s: float | None = None
    cut_after_bytes: int | None = None
    offsets: bool = True
    timeout_s: float = 120.0


class Crowd:
    """Some readers in processes of their own; a context manager, gone at its end.

    Shared state and its guard: `_joined` and `_left` under `_changed`; written by the threads that
    read the processes' output.
    """

    def __init__(
        self, address: str, files: CertFiles, readers: Sequence[Reader], recorder: Recorder
    ) -> None:
        self._address = address
        self._files = files
        self._readers = list(readers)
        self._recorder = recorder
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._joined: set[str] = set()
        self._left = 0

    def __enter__(self) -> Self:
        """Start the processes; their early readers begin at once."""
        count = -(-len(self._readers) // READERS_PER_PROCESS)
        try:
            for number in range(count):
                self._start(self._readers[number::count])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        for thread in self._threads:
            thread.join(_END_TIMEOUT_S)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close_quietly(pipe.close)

    def wait_joined(self, timeout_s: float) -> int:
        """Wait until every early reader has its first byte, or time is up; return how many have."""
        early = sum(reader.late_s is None for reader in self._readers)
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._joined) >= early or self._left == len(self._processes), timeout_s
            )
            return len(self._joined)

    def go(self) -> None:
        """Let the late joiners' time begin."""
        for process in self._processes:
            self._say(process, "go")

    def pause(self) -> None:
        """Stop all processes dead: their connections stay open and nothing is read any more."""
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill all processes."""
        self._signal(signal.SIGKILL)

    def leave(self) -> None:
        """Make every reader cancel its stream."""
        for process in self._processes:
            self._say(process, "leave")

    def wait_done(self, timeout_s: float) -> bool:
        """Wait until every reader has come to its end; tell whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._left == len(self._processes), timeout_s)

    def require_done(self, timeout_s: float) -> None:
        """Wait for the end; readers that do not come to it leave, and their records say so.

        Raises:
            BrokenError: the readers' processes do not even do that.
        """
        if self.wait_done(timeout_s):
            return
        self.leave()
        if not self.wait_done(_END_TIMEOUT_S):
            raise BrokenError("readers did not end, although they were told to")

    def _start(self, readers: Sequence[Reader]) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.drive.streamer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        order = {
            "address": self._address,
            "files": [str(path) for path in dataclasses.astuple(self._files)],
            "zero_s": self._recorder.zero_s,
            "readers": [dataclasses.asdict(reader) for reader in readers],
        }
        self._say(process, json.dumps(order))
        thread = threading.Thread(target=self._listen, args=(process,), name="crowd")
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _say(process: "subprocess.Popen[str]", line: str) -> None:
        if process.stdin is None:
            return
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended; `wait_done` tells

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            try:
                message = json.loads(line)
            except ValueError:
                break  # cut short by a kill
            if "joined" in message:
                with self._changed:
                    self._joined.add(message["joined"])
                    self._changed.notify_all()
            else:
                self._recorder.add(from_json(line))
        with self._changed:
            self._left += 1
            self._changed.notify_all()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)


def _close_quietly(close: Callable[[], None]) -> None:
    try:
        close()
    except BrokenPipeError:
        return  # what was buffered for a killed process is of no use to anybody


@contextmanager
def crowd(
    address: str, files: CertFiles, readers: Sequence[Reader], recorder: Recorder
) -> Iterator[Crowd]:
    """Run readers until the context ends."""
    with Crowd(address, files, readers, recorder) as running:
        yield running
