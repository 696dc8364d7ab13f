"""Readers and a server that are paused with SIGSTOP: no other reader and no byte is lost."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import PROCESS_UNSEEN, Check, Stage
from harness.checks.common import (
    KIB,
    MIB,
    WriterJob,
    WriterStep,
    open_gate,
    server_memory_bytes,
    start_writer,
)
from harness.checks.streams.plans import OWN_SERVER, PYTHON
from harness.drive.client import message_of
from harness.drive.receiver import StreamPlan
from harness.drive.streamers import ConcurrentReaders, Reader
from harness.host.clock import measured_window, seconds_until
from harness.judge.promises import (
    answered,
    assumed,
    at_most,
    at_most_s,
    equal,
    floor,
    holds,
    unseen,
)
from harness.judge.streams import all_exact
from harness.record.history import History, Observation, UsageCurve
from harness.record.terms import Terms, terms_of
from harness.record.verdict import Finding
from harness.targets.target import RunningServer
from jobworker.v1 import jobworker_pb2 as pb

# -- paused readers -------------------------------------------------------------------------------

STALLED_READERS: Final = 10
READERS_BESIDE: Final = 5
# What one stalled connection holds besides the log: flow-control windows, a message, TLS buffers.
STALLED_READER_BYTES: Final = 8 * MIB
READ_BESIDE_STALLED_S: Final = 15.0
READ_BESIDE_STALLED_WHY: Final = "ten times the usual time; a stalled reader stays for minutes"
READ_TIMEOUT_S: Final = 60.0
# The log is in memory once; buffers that grow by copying would hold it twice or more.
MEMORY_SLACK_BYTES: Final = 48 * MIB
# Of other kinds of server, which promise no such thing: old and new buffers, not yet collected. A
# copy for each of the stalled readers would be ten times.
OTHERS_LOG_TIMES: Final = 5


@dataclass(frozen=True, slots=True)
class ReadBesideStalled(Observation):
    """What happened beside stalled readers.

    Attributes:
        joined: how many readers had their first byte before some were paused.
        read_after_s: how long after the gate opened the other readers had ended.
        bound_s: how long that may take on this target.
        memory_grown_bytes: by how much the server's memory grew at most, or None if its process
            cannot be seen.
    """

    joined: int
    read_after_s: float
    bound_s: float
    memory_grown_bytes: int | None


def run_stalled(stage: Stage) -> None:
    """Pause ten readers and let five read on."""
    size_mib = stage.pick(full=96, small=12)
    files, address = stage.target.identities.files("user"), stage.server.address
    with stage.client() as client:
        writer = start_writer(stage, client, [WriterStep(MIB, repeat=size_mib)], gated=True)

        def named(name: str, count: int) -> list[Reader]:
            return [Reader(f"{name} {i}", writer.job_id, writer.seed) for i in range(count)]

        with (
            ConcurrentReaders(
                address,
                files,
                named("stalled", STALLED_READERS),
                stage.recorder,
                dialect=stage.dialect,
            ) as stalled,
            ConcurrentReaders(
                address,
                files,
                named("reading", READERS_BESIDE),
                stage.recorder,
                dialect=stage.dialect,
            ) as reading,
        ):
            joined = sum(each.wait_joined(stage.join_timeout_s) for each in (stalled, reading))
            memory = _MemoryWatch(stage)
            stalled.pause()
            open_gate(client, writer)
            opened_s = stage.recorder.now_s()
            seconds_until(
                lambda: memory.sample() or reading.wait_done(0), stage.patience(READ_TIMEOUT_S)
            )
            read_after_s = stage.recorder.now_s() - opened_s
            reading.require_done(1)
            bound_s = stage.patience(READ_BESIDE_STALLED_S)
            grown_bytes = memory.record(
                _stalled_limit_bytes(writer.total_bytes, stage.dialect.terms)
            )
            stage.record(ReadBesideStalled(joined, read_after_s, bound_s, grown_bytes))
            client.query(writer.job_id, label="meanwhile")
            client.must_start("true", label="start meanwhile")


class _MemoryWatch:
    """Samples by how much a server's memory grows, if its process can be seen."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._samples: list[tuple[float, float]] = []
        self._before = 0 if stage.server.pid is None else self._now_bytes()

    def _now_bytes(self) -> int:
        return server_memory_bytes(self._stage, self._stage.server)

    def sample(self) -> bool:
        """Take a sample; return False, so that `seconds_until` can call it before a condition."""
        if self._stage.server.pid is not None:
            at_s = self._stage.recorder.now_s()
            self._samples.append((at_s, self._now_bytes() - self._before))
        return False

    def record(self, limit_bytes: int) -> int | None:
        """Record the samples for the report; return the largest growth, None if it is unknown."""
        if self._stage.server.pid is None:
            return None
        title = f"Memory that the server took beside {STALLED_READERS} stalled readers"
        self._stage.record(UsageCurve(title, "bytes", limit_bytes, tuple(self._samples)))
        return int(max(grown for _, grown in self._samples))


def _stalled_limit_bytes(total: int, terms: Terms) -> int:
    times = 1 if terms.own else OTHERS_LOG_TIMES
    return times * total + STALLED_READERS * STALLED_READER_BYTES + MEMORY_SLACK_BYTES


def judge_stalled(history: History) -> Iterator[Finding]:
    """The other readers have everything, the job has ended, memory is bounded."""
    total, terms = history.the(WriterJob).total_bytes, terms_of(history)
    seen = history.the(ReadBesideStalled)
    yield floor("readers before the gate opens", seen.joined, STALLED_READERS + READERS_BESIDE)
    reading = history.streams("reading")
    yield equal("readers whose streams ended", len(reading), READERS_BESIDE)
    yield all_exact("readers beside ten stalled ones get every byte", reading, total)
    promise = "seconds until the others have everything"
    yield at_most_s(promise, seen.read_after_s, seen.bound_s, READ_BESIDE_STALLED_WHY)
    meanwhile = history.call("meanwhile")
    yield answered("a query is answered beside stalled readers", meanwhile)
    status = message_of(meanwhile, pb.QueryJobResponse).status
    kept = terms.is_status(status, "exited")
    yield holds("stalled readers do not delay the job", kept=kept, got=status, want="exited")
    yield answered("a start is answered beside stalled readers", history.call("start meanwhile"))
    promise = "bytes of memory that the server took"
    if seen.memory_grown_bytes is None:
        yield unseen(promise, PROCESS_UNSEEN)
        return
    often = "once" if terms.own else f"{OTHERS_LOG_TIMES} times, as it may grow by copying"
    why = f"the log {often}, 8 MiB for each stalled reader, {MEMORY_SLACK_BYTES // MIB} MiB"
    yield at_most(promise, seen.memory_grown_bytes, _stalled_limit_bytes(total, terms), why)


STALLED: Final = Check(
    "streams.stalled",
    "Ten readers that are paused with SIGSTOP delay neither the job nor the others, and cost "
    "bounded memory.",
    run_stalled,
    judge_stalled,
    needs=PYTHON,
    cites=("68", "R-STREAM-3"),
    time_limit_s=240,
    alone=True,
)

# -- a paused server ------------------------------------------------------------------------------

PAUSE_S: Final = 2.0
PAUSED_AFTER_BYTES: Final = MIB  # of some 5 MiB in two seconds: amid the bursts
PAUSED_BURSTS: Final = 20
PAUSED_BURSTS_EMULATED: Final = 60  # two looks at an emulated machine take seconds
STOPPED_STATES: Final = ("T", "t")  # of a process: proc_pid_stat(5)
STOPPED_TIMEOUT_S: Final = 5.0
REACHED_TIMEOUT_S: Final = 30.0
PAUSED_READERS: Final = 10


@dataclass(frozen=True, slots=True)
class PausedServer(Observation):
    """A server during its pause.

    Attributes:
        joined: how many readers had their first byte before the bursts.
        state: of the server's process, a letter as in proc_pid_stat(5).
        received_bytes: how much one reader had received by then.
    """

    joined: int
    state: str
    received_bytes: int


def run_paused(stage: Stage) -> None:
    """Pause a server with SIGSTOP amid bursts, as a host does that swaps or migrates a machine."""
    files = stage.target.identities.files("user")
    read_timeout_s = stage.patience(READ_TIMEOUT_S)
    with (
        stage.fresh_server() as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        bursts = stage.pick(full=PAUSED_BURSTS, small=PAUSED_BURSTS_EMULATED)
        step = WriterStep(256 * KIB, pause_ms=100, repeat=bursts)
        writer = start_writer(stage, client, [step], gated=True)
        plan = StreamPlan(pattern=writer.pattern, timeout_s=READ_TIMEOUT_S)
        watched = client.receiver(writer.job_id, plan, label="reader watched")
        readers = [
            Reader(f"reader {number}", writer.job_id, writer.seed, timeout_s=read_timeout_s)
            for number in range(PAUSED_READERS)
        ]
        with ConcurrentReaders(
            server.address, files, readers, stage.recorder, dialect=stage.dialect
        ) as running:
            watching = pool.submit(watched.run)
            watched.first_byte.wait(stage.join_timeout_s)
            joined = 1 + running.wait_joined(stage.join_timeout_s)
            open_gate(client, writer)
            seconds_until(
                lambda: watched.ended.is_set() or watched.received_bytes >= PAUSED_AFTER_BYTES,
                stage.patience(REACHED_TIMEOUT_S),
            )
            server.signal(signal.SIGSTOP)
            try:
                state = _wait_stopped(stage, server)
                stage.record(PausedServer(joined, state, watched.received_bytes))
                measured_window(PAUSE_S)
            finally:
                server.signal(signal.SIGCONT)
            running.require_done(read_timeout_s)
            watching.result()
        client.query(writer.job_id, label="afterwards")
        client.output(client.must_start("echo", ["afterwards"]), label="output afterwards")


def _wait_stopped(stage: Stage, server: RunningServer) -> str:
    """Wait until a server's process is stopped; return its state."""

    def state() -> str:
        return stage.host.run(f"cut -d ' ' -f 3 /proc/{server.pid}/stat").stdout.strip()

    # A thread that is running stops only when the kernel next schedules it.
    seconds_until(lambda: state() in STOPPED_STATES, STOPPED_TIMEOUT_S)
    return state()


def judge_paused(history: History) -> Iterator[Finding]:
    """No byte is lost, no stream is cut, and the server continues."""
    total = history.the(WriterJob).total_bytes
    seen = history.the(PausedServer)
    yield floor("readers before the bursts", seen.joined, 1 + PAUSED_READERS)
    stopped = seen.state in STOPPED_STATES
    yield assumed("the server was stopped", true=stopped, got=seen.state, want="T")
    received = seen.received_bytes
    amid = PAUSED_AFTER_BYTES <= received < total
    yield assumed("that was amid the bursts", true=amid, got=received, want=f"below {total}")
    streams = history.streams("reader ")
    yield equal("readers whose streams ended", len(streams), 1 + PAUSED_READERS)
    yield all_exact("a pause of the server loses no byte of any reader", streams, total)
    call = history.call("afterwards")
    yield answered("a query is answered after the pause", call)
    status = message_of(call, pb.QueryJobResponse).status
    kept = terms_of(history).is_status(status, "exited")
    yield holds("the job exits", kept=kept, got=status, want="exited")
    text = history.stream("output afterwards").text
    yield equal("a job can be started after the pause", text, "afterwards\n")


PAUSED_SERVER: Final = Check(
    "streams.paused-server",
    "A server that is paused with SIGSTOP for seconds and continued loses no byte and no reader.",
    run_paused,
    judge_paused,
    needs=OWN_SERVER,
    cites=("73", "R-STREAM-2"),
    time_limit_s=180,
    alone=True,
)

CHECKS: Final = (STALLED, PAUSED_SERVER)
