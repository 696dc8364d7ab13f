"""Drives one load against one server and records it: nothing is judged here.

It leaves a `Load` in `load.json`, and a file of instants for each process of the generator, in one
directory. `metrics` folds them, now or later.

The readers are processes of their own, of `STREAMERS_PER_PROCESS` streams each: one thread carries
that many with little processor time (measured, docs/load.md); the best number of processes was not
measured. The writer is a job of the server, so the measured path is the whole one, including the
job's pipe.
"""

import dataclasses
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from harness.dialects.dialect import CANONICAL, Dialect
from harness.drive.client import Client
from harness.host.cert_files import CertFiles
from harness.host.clock import Deadline, poll_until
from harness.host.piped_program import PipedProgram
from harness.record.history import Recorder
from harness.record.verdict import BrokenError
from harness.targets.target import RunningServer
from loadtests.emitter import MONOTONIC, WritePlan
from loadtests.jobs import clock_of, new_gate, open_gate, writer_command
from loadtests.observe import Sampler
from loadtests.pacer import steady
from loadtests.profiles import Profile
from loadtests.reader_process import ReaderOrder, StreamOrder
from loadtests.record import EARLY, LATE, SLOW, GeneratorProcess, Load, StreamEnd, save_load
from loadtests.storm_process import StormOrder
from loadtests.worker_message import WorkerMessage, WorkerReport

STREAMERS_PER_PROCESS: Final = 125
PROCESSES_MAX: Final = 4
_JOIN_TIMEOUT_S: Final = 90.0
_JOIN_TIMEOUT_PER_STREAMER_S: Final = 0.2
_FLOOD_BYTES_PER_S: Final = 5e6  # a slower flood times out
_END_MARGIN_S: Final = 60.0
_SETTLE_S: Final = 0.3  # after the joins, so that the baseline is a quiet one


class GeneratorWorker:
    """A process of the generator; a context manager, killed at its end.

    Shared state and its guard: what the process reported (`joined`, `lost`, `ready`, `ended`,
    `report`), under `_changed`.
    """

    def __init__(self, module: str, order: object) -> None:
        self._order = msgspec.json.encode(order).decode()
        self._program = PipedProgram([sys.executable, "-m", module])
        self._changed = threading.Condition()
        self.joined: set[int] = set()
        self.lost: set[int] = set()
        self.ready = False
        self.ended = False
        self.report: WorkerReport | None = None

    def __enter__(self) -> Self:
        self._program.__enter__()
        self._thread = threading.Thread(target=self._listen, name="load worker")
        self._thread.start()
        self.say(self._order)
        return self

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._thread.join()
        self._program.__exit__()

    def say(self, line: str) -> None:
        """Send it a line; ignored if it has ended."""
        self._program.say(line)

    def wait(self, what: Callable[["GeneratorWorker"], bool], deadline: Deadline) -> bool:
        """Wait until something is true of it, or it has ended; return whether it is true."""
        with self._changed:
            self._changed.wait_for(lambda: what(self) or self.ended, deadline.left_s())
            return what(self)

    def _listen(self) -> None:
        """Take the messages of the program until it ends; what waits for one is then woken."""
        try:
            for line in self._program.lines():
                if line.startswith("{") and line.endswith("}\n"):  # else cut off, or no message
                    self._take(msgspec.json.decode(line, type=WorkerMessage))
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _take(self, message: WorkerMessage) -> None:
        with self._changed:
            if message.joined is not None:
                self.joined.add(message.joined)
            if message.lost is not None:
                self.lost.add(message.lost)
            self.ready = self.ready or message.ready
            self.report = message.report or self.report
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Setting:
    """The server of a load, how it is spoken to, and the directory of its records."""

    server: RunningServer
    files: CertFiles
    directory: Path
    options: tuple[tuple[str, int | str], ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    dialect: Dialect = CANONICAL


class Generator:
    """Runs one load. `during` is called once the load has begun, on a thread of its own."""

    def __init__(
        self, profile: Profile, setting: Setting, during: Callable[[], None] | None = None
    ) -> None:
        self._profile = profile
        self._setting = setting
        self._during = during
        self._seed = secrets.token_hex(4)
        self._gate = "" if profile.replay or profile.pace is None else new_gate()

    def run(self) -> Load:
        """Run and record it.

        Raises:
            BrokenError: it could not be driven: the server is unreachable, a process died, or it
                timed out.
            UnmetError: the server did not start the jobs.
        """
        setting = self._setting
        setting.directory.mkdir(parents=True, exist_ok=True)
        with Client(
            setting.server.address, setting.files, Recorder(), dialect=setting.dialect
        ) as client:
            load = self._drive(client, clock_of(client))
        save_load(load, setting.directory)
        return load

    def _drive(self, client: Client, clock: str) -> Load:
        profile, setting = self._profile, self._setting
        now_ns = time.monotonic_ns if clock == MONOTONIC else time.time_ns
        before = Sampler(setting.server.pid, now_ns).sample()
        job_id = self._start_writer(client, clock)
        with ExitStack() as stack:
            if job_id:
                stack.callback(client.stop, job_id)
            readers = [stack.enter_context(each) for each in self._readers(job_id, clock)]
            storms = [stack.enter_context(each) for each in self._storms(clock)]
            joined = self._wait_joined([*readers, *storms])
            sampler = stack.enter_context(Sampler(setting.server.pid, now_ns))
            go_ns = self._go(client, [*readers, *storms], now_ns)
            if self._during is not None:
                aside = threading.Thread(target=self._during, name="during the load")
                aside.start()
                stack.callback(aside.join)
            self._leave_slow(readers, go_ns, now_ns)
            self._wait_ended([*readers, *storms])
            exit_code = self._exit_code(client, job_id)
        return Load(
            profile=profile,
            labels=setting.labels,
            clock=clock,
            local=setting.server.pid is not None,
            cores=os.cpu_count() or 1,
            options=setting.options,
            joined=joined,
            go_ns=go_ns,
            before=before,
            samples=tuple(sampler.samples),
            processes=_processes(readers, storms),
            streams=_streams(readers),
            exit_code=exit_code,
        )

    def _start_writer(self, client: Client, clock: str) -> str:
        """Start the writing job; for a replay, wait until it has ended."""
        profile = self._profile
        if profile.pace is None:
            return ""
        plan = WritePlan(profile.pace, profile.message_bytes, self._seed, self._gate, clock)
        job_id = client.must_start(*writer_command(plan), label="writer")
        if profile.replay:
            poll_until(
                lambda: client.must_query(job_id).status != "running" or None,
                profile.size_bytes / _FLOOD_BYTES_PER_S + _END_MARGIN_S,
                "the end of the job whose output the readers will replay",
            )
        return job_id

    def _readers(self, job_id: str, clock: str) -> list[GeneratorWorker]:
        profile = self._profile
        if not job_id:
            return []
        orders = [self._stream_order(number, job_id) for number in range(profile.streamers)]
        # At least two, if there are two streams: a process has one interpreter lock.
        least = min(2, profile.streamers)
        count = max(least, min(PROCESSES_MAX, -(-profile.streamers // STREAMERS_PER_PROCESS)))
        return [
            GeneratorWorker("loadtests.reader_process", ReaderOrder(
                self._setting.server.address,
                self._files(),
                self._setting.dialect.source,
                clock,
                str(self._setting.directory / f"readers-{number}.npz"),
                self._setting.options,
                tuple(orders[number::count]),
            ))
            for number in range(count)
        ]  # fmt: skip

    def _stream_order(self, number: int, job_id: str) -> StreamOrder:
        profile = self._profile
        order = StreamOrder(
            number, job_id, self._seed, profile.message_bytes, EARLY, self._timeout_s(),
            cut_every_bytes=profile.cut_every_bytes,
        )  # fmt: skip
        if profile.replay:
            return dataclasses.replace(order, kind=LATE)
        if number < profile.late:
            join_after_s = profile.duration_s * (number + 1) / (profile.late + 1)
            return dataclasses.replace(order, kind=LATE, join_after_s=join_after_s)
        if number < profile.late + profile.slow:
            return dataclasses.replace(order, kind=SLOW, bytes_per_s=profile.slow_bytes_per_s)
        return order

    def _storms(self, clock: str) -> list[GeneratorWorker]:
        storm = self._profile.storm
        if storm is None:
            return []
        pace = None if storm.is_closed else steady(storm.starts_per_s, storm.duration_s)
        order = StormOrder(
            self._setting.server.address,
            self._files(),
            self._setting.dialect.source,
            clock,
            str(self._setting.directory / "storm.npz"),
            pace,
            storm.duration_s,
            storm.callers,
        )
        return [GeneratorWorker("loadtests.storm_process", order)]

    def _files(self) -> tuple[str, str, str]:
        files = self._setting.files
        return str(files.ca), str(files.cert), str(files.key)

    def _timeout_s(self) -> float:
        """Return the timeout of a stream, from its first connection to its end."""
        if self._profile.give_up_s:
            return self._profile.give_up_s
        join_s = _JOIN_TIMEOUT_S + _JOIN_TIMEOUT_PER_STREAMER_S * self._profile.streamers
        size_bytes = self._profile.size_bytes * self._profile.streamers
        return join_s + self._profile.duration_s + size_bytes / _FLOOD_BYTES_PER_S + _END_MARGIN_S

    def _wait_joined(self, workers: Sequence[GeneratorWorker]) -> int:
        """Wait until every process is ready and every early streamer has its first byte."""
        profile = self._profile
        deadline = Deadline(_JOIN_TIMEOUT_S + _JOIN_TIMEOUT_PER_STREAMER_S * profile.streamers)
        late = profile.streamers if profile.replay else profile.late
        early = profile.streamers - late if profile.pace else 0
        for worker in workers:
            if not worker.wait(lambda each: each.ready, deadline):
                raise BrokenError("a process of the generator is not ready; see its error above")
        while (known := _known(workers)) < early and not deadline.passed():
            if any(worker.ended for worker in workers):
                break
            step = Deadline(min(1.0, deadline.left_s()))
            for worker in workers:
                worker.wait(lambda _: _known(workers) > known, step)
        if not profile.replay:
            threading.Event().wait(_SETTLE_S)
        return sum(len(worker.joined) for worker in workers)

    def _go(
        self, client: Client, workers: Sequence[GeneratorWorker], now_ns: Callable[[], int]
    ) -> int:
        go_ns = now_ns()
        for worker in workers:
            worker.say(f"go {go_ns}")
        if self._gate:
            open_gate(client, self._gate)
        return go_ns

    def _leave_slow(
        self, readers: Sequence[GeneratorWorker], go_ns: int, now_ns: Callable[[], int]
    ) -> None:
        """Let the slow readers disconnect a second after the load's planned end."""
        if self._profile.slow:
            left_s = self._profile.duration_s + 1 - (now_ns() - go_ns) / 1e9
            threading.Event().wait(max(0.0, left_s))
            for worker in readers:
                worker.say("leave")

    def _wait_ended(self, workers: Sequence[GeneratorWorker]) -> None:
        deadline = Deadline(self._timeout_s() + _END_MARGIN_S)
        for worker in workers:
            if not worker.wait(lambda each: each.report is not None, deadline):
                raise BrokenError("a process of the generator has no report; see its error above")

    def _exit_code(self, client: Client, job_id: str) -> int | None:
        if not job_id:
            return 0
        # A server of another kind may report that a job ended without saying how.
        known = self._setting.dialect.terms
        job = client.must_query(job_id)
        return job.exit_code if known.is_status(job.status, "exited") else None


def _known(workers: Sequence[GeneratorWorker]) -> int:
    """Return the number of streams that have begun, or ended without a byte."""
    return sum(len(worker.joined) + len(worker.lost) for worker in workers)


def _processes(
    readers: Sequence[GeneratorWorker], storms: Sequence[GeneratorWorker]
) -> tuple[GeneratorProcess, ...]:
    return tuple(
        GeneratorProcess(kind, Path(report.file).name, report.cpu_s, report.wall_s, report.failures)
        for kind, workers in (("readers", readers), ("storm", storms))
        for report in _reports(workers)
    )


def _streams(readers: Sequence[GeneratorWorker]) -> tuple[StreamEnd, ...]:
    ends = [end for report in _reports(readers) for end in report.streams]
    return tuple(sorted(ends, key=lambda end: end.number))


def _reports(workers: Sequence[GeneratorWorker]) -> list[WorkerReport]:
    return [worker.report for worker in workers if worker.report is not None]
