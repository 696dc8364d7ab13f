"""Concurrent readers: in processes of their own, a connection each, every byte compared.

`ConcurrentReaders` is one group that is paused (SIGSTOP), killed (SIGKILL) or ended together. Its
processes (`streamer_process`) report each reader's first byte, start the timers of late joiners on
`go`, and return a record for each stream.

Threads: one for each process, which reads its output.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from harness.dialects.dialect import CANONICAL, Dialect
from harness.host.cert_files import CertFiles
from harness.host.piped_program import PipedProgram
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
        late_s: joins so long after `go`; None: at once.
        bytes_per_s: reads at most this fast on average; None: unlimited.
        cut_after_bytes: cancels after so much, and resumes on a new connection.
        offsets: whether the server knows offsets; otherwise a resumed stream starts at 0 and skips
            the bytes that it has.
        timeout_s: the deadline of each stream.
    """

    label: str
    job_id: str
    seed: str
    late_s: float | None = None
    bytes_per_s: float | None = None
    cut_after_bytes: int | None = None
    offsets: bool = True
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a process of readers is to do: the first line of its standard input, as JSON.

    Attributes:
        address: the server, HOST:PORT.
        files: paths of the CA's certificate, the client's certificate and its key.
        dialect: how the server is spoken to, see `Dialect.source`.
        zero_s: the start of the run, on the monotonic clock.
        readers: its readers.
    """

    address: str
    files: tuple[str, str, str]
    dialect: str
    zero_s: float
    readers: tuple[Reader, ...]


class ConcurrentReaders:
    """Readers in processes of their own; a context manager that kills what is left at its end.

    Shared state and its guard: `_joined` and `_ended_processes` under `_changed`; written by the
    threads that read the processes' output.
    """

    def __init__(
        self,
        address: str,
        files: CertFiles,
        readers: Sequence[Reader],
        recorder: Recorder,
        *,
        dialect: Dialect = CANONICAL,
    ) -> None:
        self._address = address
        self._files = files
        self._readers = list(readers)
        self._recorder = recorder
        self._dialect = dialect
        self._processes: list[PipedProgram] = []
        self._running = ExitStack()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._joined: set[str] = set()
        self._ended_processes = 0

    def __enter__(self) -> Self:
        """Start the processes; the readers that are not late join at once."""
        count = -(-len(self._readers) // READERS_PER_PROCESS)
        try:
            for number in range(count):
                self._start(self._readers[number::count])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        # Before the pipes are closed: the threads read from them.
        for thread in self._threads:
            thread.join(_END_TIMEOUT_S)
        self._running.close()

    def wait_joined(self, timeout_s: float) -> int:
        """Wait until every reader that is not late has its first byte; return how many have."""
        early = sum(reader.late_s is None for reader in self._readers)
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._joined) >= early or self._have_ended(), timeout_s
            )
            return len(self._joined)

    def go(self) -> None:
        """Start the timers of the late joiners."""
        for process in self._processes:
            process.say("go")

    def pause(self) -> None:
        """Pause all processes with SIGSTOP: connections stay open, but nothing is read."""
        for process in self._processes:
            os.kill(process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.kill()

    def cancel(self) -> None:
        """Make every reader cancel its stream."""
        for process in self._processes:
            process.say("cancel")

    def wait_done(self, timeout_s: float) -> bool:
        """Wait until every reader has ended; return whether that was in time."""
        with self._changed:
            return self._changed.wait_for(self._have_ended, timeout_s)

    def _have_ended(self) -> bool:
        return self._ended_processes == len(self._processes)

    def require_done(self, timeout_s: float) -> None:
        """Wait until every reader has ended; after the timeout, cancel those that have not.

        Their records then say that they were cancelled.

        Raises:
            BrokenError: the readers' processes do not end even then.
        """
        if self.wait_done(timeout_s):
            return
        self.cancel()
        if not self.wait_done(_END_TIMEOUT_S):
            raise BrokenError("the readers did not end, although they were cancelled")

    def _start(self, readers: Sequence[Reader]) -> None:
        command = [sys.executable, "-m", "harness.drive.streamer_process"]
        process = self._running.enter_context(PipedProgram(command))
        self._processes.append(process)
        files = (str(self._files.ca), str(self._files.cert), str(self._files.key))
        order = Order(
            self._address, files, self._dialect.source, self._recorder.zero_s, tuple(readers)
        )
        process.say(msgspec.json.encode(order).decode())
        thread = threading.Thread(target=self._listen, args=(process,), name="readers")
        self._threads.append(thread)
        thread.start()

    def _listen(self, process: PipedProgram) -> None:
        for line in process.lines():
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
            self._ended_processes += 1
            self._changed.notify_all()
