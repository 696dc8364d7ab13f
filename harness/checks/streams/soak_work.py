"""The work of a soak's rounds: jobs, streams, stops, deletes, renewed and denied certificates."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from harness.checks.check import Need, Stage
from harness.checks.common import MIB, WriterJob, WriterStep, start_writer
from harness.checks.identity.host_files import HostFiles
from harness.checks.identity.live_reload import shown_serial
from harness.drive.certificates import serial_number, server_spec
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.record.history import Call, CallByHand, History, Outcome, Record, Recorder, Stream
from harness.targets.target import RunningServer

AT_ONCE: Final = 8
STREAM_TIMEOUT_S: Final = 60.0

# How many of each in a round. Jobs stay in the server's memory, streams must leave nothing.
SHORT_JOBS: Final = 6
STOPPED_JOBS: Final = 3
LEFT_JOBS: Final = 3
WHOLE_STREAMS: Final = 4
HALF_STREAMS: Final = 4
RESUMED_STREAMS: Final = 1
# In every so many rounds the server's certificate is renewed, and a client is denied.
ROTATED_EACH: Final = 5
DENIED_EACH: Final = 10
DENIED_WAIT_S: Final = 15.0
DENIED: Final = "denied"
NO_ONE: Final = "# none\n"
REFUSED: Final = "UNAUTHENTICATED"
# The labels of streams that end at the end of the log that all rounds read.
EXACT: Final = ("whole", "resumed")
JOBS: Final = SHORT_JOBS + STOPPED_JOBS + LEFT_JOBS

# The log of a job that all rounds read, and what is retained of one that writes all the time.
LOG_BYTES: Final = 2 * MIB
FLOW: Final = WriterStep(MIB, pause_ms=250, repeat=1_000_000)
FLOW_STREAM_BYTES: Final = LOG_BYTES + MIB
ROUND_BYTES: Final = (
    (WHOLE_STREAMS + RESUMED_STREAMS) * LOG_BYTES
    + HALF_STREAMS * LOG_BYTES // 2
    + FLOW_STREAM_BYTES
)


def can_deny(stage: Stage) -> bool:
    """Return whether certificates can be renewed and denied."""
    return stage.target_has(Need.DENY_LIST) and stage.target_has(Need.IDENTITIES)


def start_writers(stage: Stage, client: Client) -> tuple[WriterJob, WriterJob]:
    """Start the jobs that all rounds read: one that has ended, and one that writes all the time."""
    whole = start_writer(stage, client, [WriterStep(LOG_BYTES)])
    client.stream(whole.job_id, StreamPlan(timeout_s=STREAM_TIMEOUT_S), label="first")
    return whole, start_writer(stage, client, [FLOW])


class Soak:
    """The work of the rounds, and the result. Only one thread at a time calls `work`.

    Args:
        stage: of the check, with its recorder.
        server: to work with.
        files: its certificates and its deny list; None: it has no deny list.
        whole, flow: the jobs that all rounds read, see `start_writers`.
        keeps: of how many rounds all records are kept; of the others, those that show a fault.
    """

    def __init__(
        self,
        stage: Stage,
        server: RunningServer,
        files: HostFiles | None,
        *,
        whole: WriterJob,
        flow: WriterJob,
        keeps: int,
    ) -> None:
        self.jobs = 0
        self.dropped_bytes = 0
        self.rotations = 0
        self.rotations_shown = 0
        self.deletes = stage.target_has(Need.DELETION)
        self.flow = flow
        self._stage = stage
        self._server = server
        self._files = files
        self._whole = whole
        self._keeps = keeps

    def work(self, number: int) -> None:
        """Do a round's work over its own connections, AT_ONCE pieces at a time."""
        stage = copy.copy(self._stage)
        stage.recorder = Recorder()
        stage.recorder.zero_s = self._stage.recorder.zero_s
        try:
            if self._files is not None and number % ROTATED_EACH == 0:
                self._rotate(self._files)
            with (
                stage.client(server=self._server) as client,
                ThreadPoolExecutor(AT_ONCE) as pool,
            ):
                futures = [pool.submit(one) for one in self._pieces(stage, client, number)]
                jobs = list(filter(None, [each.result() for each in futures]))
                self.jobs += len(jobs)
                for job_id in jobs if self.deletes else ():
                    client.delete(job_id)
        finally:
            self._keep(number, stage.recorder.history())

    def _pieces(
        self, stage: Stage, client: Client, number: int
    ) -> Iterator[Callable[[], str | None]]:
        """Yield a round's pieces of work; those that start a job return its id."""
        whole, half = self._whole, LOG_BYTES // 2
        yield from [partial(_run_short, client)] * SHORT_JOBS
        yield from [partial(_stop_streamed, stage, client)] * STOPPED_JOBS
        yield from [partial(_leave_stream, client)] * LEFT_JOBS
        yield from [partial(_read, client, whole, None, "whole")] * WHOLE_STREAMS
        yield from [partial(_read, client, whole, half, "half")] * HALF_STREAMS
        yield from [partial(_resume, stage, self._server, whole)] * RESUMED_STREAMS
        yield partial(_read, client, self.flow, FLOW_STREAM_BYTES, "flow")
        if self._files is not None and number % DENIED_EACH == 0:
            yield partial(_deny, stage, self._server, self.flow, self._files)

    def _rotate(self, files: HostFiles) -> None:
        """Renew the server's certificate."""
        renewed = self._stage.target.identities.sign("soak", server_spec())
        files.put_pair(renewed)
        self.rotations += 1
        self.rotations_shown += shown_serial(self._server.address) == serial_number(renewed)

    def _keep(self, number: int, history: History) -> None:
        """Keep the records of the first rounds, and of later ones those that show a fault."""
        for record in history.records:
            if isinstance(record, CallByHand) and number:
                continue
            if number < self._keeps or not is_sound(record):
                self._stage.recorder.add(record)
            elif isinstance(record, Stream):
                self.dropped_bytes += record.received_bytes


def is_sound(record: Record) -> bool:
    """Return whether a record shows that all was right."""
    if isinstance(record, Call):
        return record.outcome is Outcome.OK
    if not isinstance(record, Stream):
        return False
    right = record.wrong_at is None and not record.gap and not record.unended
    if record.label == DENIED:
        return right and record.code == REFUSED
    end = record.start_offset + record.received_bytes
    return (
        right and record.outcome is Outcome.OK and (record.label not in EXACT or end == LOG_BYTES)
    )


def _run_short(client: Client) -> str:
    """Run a job to its end."""
    job_id = client.must_start("echo", ["short"])
    client.output(job_id, label="short")
    return job_id


def _stop_streamed(stage: Stage, client: Client) -> str:
    """Stop a job that a reader follows."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 1000"])
    receiver = client.receiver(job_id, label="stopped")
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(receiver.run)
        receiver.first_byte.wait(stage.join_timeout_s)
        client.must_stop(job_id)
        streaming.result()
    return job_id


def _leave_stream(client: Client) -> str:
    """Cancel a stream while its job is running, then stop the job."""
    job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 1000"])
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="left")
    client.must_stop(job_id)
    return job_id


def _read(client: Client, writer: WriterJob, stop_after: int | None, label: str) -> None:
    """Read a writer's output, to its end or until so many bytes were received."""
    client.stream(writer.job_id, _plan(writer, stop_after), label=label)


def _plan(writer: WriterJob, stop_after: int | None) -> StreamPlan:
    return StreamPlan(
        pattern=writer.pattern, stop_after_bytes=stop_after, timeout_s=STREAM_TIMEOUT_S
    )


def _resume(stage: Stage, server: RunningServer, writer: WriterJob) -> None:
    """Read half of a writer's output over one connection, and the rest over another."""
    plan = _plan(writer, LOG_BYTES // 2)
    with stage.client(server=server) as client:
        first = client.stream(writer.job_id, plan, label="interrupted")
    with stage.client(server=server) as client:
        rest = plan.resumed_at(first.received_bytes, offsets=True)
        client.stream(writer.job_id, rest, label="resumed")


def _deny(stage: Stage, server: RunningServer, flow: WriterJob, files: HostFiles) -> None:
    """Deny a user's certificate during a stream, until the stream ends."""
    serial = serial_number(stage.target.identities.files("user"))
    plan = StreamPlan(pattern=flow.pattern, timeout_s=STREAM_TIMEOUT_S, may_time_out=True)
    with stage.client("user", server=server) as user, ThreadPoolExecutor(1) as pool:
        receiver = user.receiver(flow.job_id, plan, label=DENIED)
        streaming = pool.submit(receiver.run)
        receiver.first_byte.wait(stage.join_timeout_s)
        files.put(DENIED, f"{serial}\n")
        receiver.ended.wait(stage.patience(DENIED_WAIT_S))
        files.put(DENIED, NO_ONE)
        receiver.cancel()
        streaming.result()
