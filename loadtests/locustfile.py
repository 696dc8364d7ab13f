"""Streams for Locust: the same writer, checker and instants, driven by Locust's master and workers.

For load from several machines, and for Locust's web page, charts and CSV. Each worker starts a
writing job, and each of its users follows that on a connection of its own. As in `generator`, the
load begins when all users follow; it ends with its jobs, or when Locust stops. Every message is a
Locust request: `stream latency` counts from its planned instant, `stream observed` from its write.
A stream's first byte and its end are requests too; wrong bytes and bad ends are failures.

Settings come from the environment: JOBWORKER_TARGET (HOST:PORT), JOBWORKER_IDENTITIES (a directory
created by `python -m harness identities`), and the load: JOBWORKER_PROFILE (a name of `python -m
loadtests run --list`, or of the TOML file JOBWORKER_PROFILES), or JOBWORKER_RATE (messages per
second), JOBWORKER_MESSAGE_BYTES, JOBWORKER_SECONDS (how long a worker's job writes).

A profile gives the messages, their pace, and the share of streamers that join late; Locust's `-u`
gives the number of streamers. Refused are replays, slow readers, reconnections and storms of jobs.
A flood's messages have no latency; `stream flood` is its time from the begin to the last byte, with
its size.

    locust -f loadtests/locustfile.py --master --headless -u 10 -r 10 -t 20s --expect-workers 2
    locust -f loadtests/locustfile.py --worker       # as many as there are cores, on any machine

Not for rates: gevent runs all streams of a worker in one thread. If the server is on another
machine, latency counts from the fastest message so far. docs/load.md compares it with `python -m
loadtests`.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator"
# gevent has no types, nor have Locust's decorators.

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

# Locust patches the standard library for gevent, and must be imported before what uses that.
from locust import User, events, stats, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

# After the patching and before any of gRPC's objects: its waits then yield to other users.
import gevent  # isort: skip
import gevent.event  # isort: skip
import grpc.experimental.gevent as grpc_gevent  # isort: skip

grpc_gevent.init_gevent()
# Each stream that waits for its next message holds a thread of this pool. With gevent's default of
# ten, more streams than that wait for each other.
gevent.get_hub().threadpool.maxsize = 4096

import grpc  # noqa: E402 - after the patching

from harness.dialects.channel import open_channel  # noqa: E402
from harness.drive.client import Client  # noqa: E402
from harness.drive.identities import IdentityStore  # noqa: E402
from harness.host.cert_files import CertFiles  # noqa: E402, TC001
from harness.record.history import Recorder  # noqa: E402
from harness.record.results import EXIT_CODES  # noqa: E402
from harness.record.verdict import BrokenError, UnmetError, Verdict  # noqa: E402
from jobworker.v1 import jobworker_pb2 as pb  # noqa: E402
from jobworker.v1 import jobworker_pb2_grpc  # noqa: E402
from loadtests.checker import Checker  # noqa: E402
from loadtests.emitter import MONOTONIC, WritePlan  # noqa: E402
from loadtests.jobs import clock_of, new_gate, open_gate, writer_command  # noqa: E402
from loadtests.metrics import BEGUN, NUMBER, PLANNED, RECEIVED  # noqa: E402
from loadtests.pacer import steady  # noqa: E402
from loadtests.profile_file import load_profiles  # noqa: E402
from loadtests.profiles import Profile, accept_number, named  # noqa: E402
from loadtests.record import MESSAGE_COLUMNS  # noqa: E402

logger = logging.getLogger(__name__)

EXIT_BROKEN: Final = EXIT_CODES[Verdict.BROKEN]
TARGET: Final = os.environ.get("JOBWORKER_TARGET", "localhost:50051")
IDENTITIES: Final = Path(os.environ.get("JOBWORKER_IDENTITIES", "certs/out"))
_JOIN_TIMEOUT_S: Final = 600.0  # until all users follow; Locust starts them one by one
_FLOOD_TIMEOUT_S: Final = 600.0  # a flood has no planned end
STREAMS_ENDED: Final = "streams_ended"


def profile_of(environment: Mapping[str, str]) -> Profile:
    """Return the load of the environment.

    Raises:
        BrokenError: the profile does not exist, or Locust's users do not support it.
    """
    name = environment.get("JOBWORKER_PROFILE")
    if not name:

        def number(variable: str, name: str, default: str) -> Any:  # noqa: ANN401 - int or float
            try:
                return accept_number(name, environment.get(variable, default))
            except BrokenError as error:
                raise BrokenError(f"variable {variable}: {error}") from None

        pace = steady(
            number("JOBWORKER_RATE", "rate_per_s", "100"),
            number("JOBWORKER_SECONDS", "duration_s", "3600"),
        )
        size = number("JOBWORKER_MESSAGE_BYTES", "message_bytes", "128")
        return Profile("lines", "lines at a rate", message_bytes=size, pace=pace)
    own = environment.get("JOBWORKER_PROFILES")
    [profile] = named((name,), load_profiles(Path(own)) if own else ())
    for what, has in (
        ("replays an ended job", profile.replay), ("has slow readers", profile.slow),
        ("reconnects", profile.cut_every_bytes), ("starts and stops jobs", profile.storm),
        ("begins before its readers join", profile.late == profile.streamers),
    ):  # fmt: skip
        if has:
            raise BrokenError(
                f"JOBWORKER_PROFILE={name} {what}, which Locust's users do not support; use "
                f"`python -m loadtests run {name}`"
            )
    return profile


def joins_late(number: int, profile: Profile) -> bool:
    """Return whether a user joins late: the profile's share of a worker's, not the first one."""
    early = profile.streamers - profile.late
    return number * early % profile.streamers >= early


try:
    PROFILE: Final = profile_of(os.environ)
except BrokenError as refused:
    sys.stderr.write(f"BROKEN: {refused}\n")
    sys.exit(EXIT_BROKEN)
_STREAM_TIMEOUT_S: Final = (
    _JOIN_TIMEOUT_S + (PROFILE.duration_s if PROFILE.is_timed else _FLOOD_TIMEOUT_S) + 60
)


class Job:
    """The job that this worker's users follow, and their progress.

    Attributes:
        has_all_users: whether Locust has started all requested users.
        users: number of this worker's.
        late: those of them that join after the begin.
        settled: those that have their first byte, or ended without one, or join late.
        ended: those whose stream has ended.
        begun: set when the load begins, at `begun_ns`.
        is_ending: whether the run is about to end.
    """

    def __init__(self) -> None:
        self.has_all_users = self.is_ending = False
        self.users = self.late = self.settled = self.ended = 0
        self.begun, self.begun_ns = gevent.event.Event(), 0
        self.job_id = ""
        self.seed = secrets.token_hex(4)
        self.now_ns: Callable[[], int] = time.monotonic_ns
        self._fastest_ns: int | None = None
        self.files: CertFiles | None = None
        self._gate = ""

    def start(self) -> None:
        """Start it; it writes one message and waits at its gate.

        Raises:
            UnmetError, BrokenError: the server did not start it, or is unreachable.
        """
        self.has_all_users = False
        self.users = self.late = self.settled = self.ended = 0
        self.begun, self.begun_ns = gevent.event.Event(), 0
        self.files = IdentityStore(IDENTITIES).files("admin")
        self._gate = new_gate()
        with Client(TARGET, self.files, Recorder()) as client:
            clock = clock_of(client)
            self.now_ns = time.monotonic_ns if clock == MONOTONIC else time.time_ns
            self._fastest_ns = None
            if PROFILE.pace is None:
                raise BrokenError(f"{PROFILE.name} has no messages to follow")
            size_bytes = PROFILE.message_bytes
            plan = WritePlan(PROFILE.pace, size_bytes, self.seed, self._gate, clock)
            self.job_id = client.must_start(*writer_command(plan))

    def begin_when_all_follow(self) -> None:
        """Open the gate, once."""
        if not self._gate or not self.has_all_users or self.settled < self.users or not self.files:
            return
        gate, self._gate = self._gate, ""
        self.begun_ns = self.now_ns()
        self.begun.set()
        with Client(TARGET, self.files, Recorder()) as client:
            open_gate(client, gate)

    def apart_ns(self, travel_ns: int) -> int:
        """Return the estimated difference of two clocks: the fastest message's time from its write.

        See `metrics.Recorded.offset_ns`; 0 on one machine.
        """
        if self.now_ns is time.monotonic_ns:
            return 0
        if self._fastest_ns is None or travel_ns < self._fastest_ns:
            self._fastest_ns = travel_ns
        return self._fastest_ns

    @property
    def has_ended(self) -> bool:
        """Whether all of its streams have ended."""
        return self.has_all_users and self.ended >= self.users

    def stop(self) -> None:
        """Stop it; its streams end."""
        if self.job_id and self.files is not None:
            with Client(TARGET, self.files, Recorder()) as client:
                client.stop(self.job_id)


JOB: Final = Job()


@events.report_to_master.add_listener
def report_end(data: dict[str, Any], **_: object) -> None:
    """Report, beside this worker's figures, whether its streams have ended."""
    data[STREAMS_ENDED] = JOB.has_ended


@events.init.add_listener
def watch_ends(environment: Any, **_: object) -> None:  # noqa: ANN401 - Locust's own
    """Let the master end the run when the streams of all workers have ended."""
    ended = set()

    @events.worker_report.add_listener
    def note_end(client_id: str, data: dict[str, Any], **_: object) -> None:
        if data.get(STREAMS_ENDED):
            ended.add(client_id)
            if len(ended) >= environment.runner.worker_count:
                ended.clear()
                # On a greenlet of its own: to quit ends the one that listens.
                gevent.spawn(end_run, environment)


def end_run(environment: Any) -> None:  # noqa: ANN401 - as above
    """End a run, once; and Locust too, unless its web page can start another one."""
    if JOB.is_ending:
        return
    JOB.is_ending = True
    # Locust writes its CSV periodically, but not once more before it quits.
    gevent.sleep(2 * stats.CSV_STATS_INTERVAL_SEC)
    if environment.web_ui is None:
        environment.runner.quit()
    else:
        environment.runner.stop()
    JOB.is_ending = False


@events.test_start.add_listener
def start_job(environment: Any, **_: object) -> None:  # noqa: ANN401 - as above
    """Start this worker's job; the master does not have one."""
    if isinstance(environment.runner, MasterRunner):
        return
    try:
        JOB.start()
    except (BrokenError, UnmetError) as error:
        # Locust would only log it, and continue without a job.
        logger.error("BROKEN: %s", error)  # noqa: TRY400 - the message is complete
        environment.process_exit_code = EXIT_BROKEN
        environment.runner.quit()


@events.spawning_complete.add_listener
def count_users(**_: object) -> None:
    """Begin if all users follow already."""
    JOB.has_all_users = True
    JOB.begin_when_all_follow()


@events.test_stop.add_listener
def stop_job(environment: Any, **_: object) -> None:  # noqa: ANN401 - as above
    """Stop this worker's job."""
    if not isinstance(environment.runner, MasterRunner):
        JOB.stop()


class Streamer(User):
    """Follows the job until it ends or the test does."""

    def on_start(self) -> None:
        """Count this user, and decide whether it joins late."""
        self.is_late = joins_late(JOB.users, PROFILE)
        self.late_number = JOB.late
        JOB.users += 1
        JOB.late += self.is_late

    @task
    def follow(self) -> None:
        """Follow one stream; each message is a request."""
        checker = Checker(JOB.seed, PROFILE.message_bytes)
        due_ns = self._wait_to_join()
        began_ns, first, reported = JOB.now_ns(), True, 0
        failure: Exception | None = None
        channel = open_channel(TARGET, JOB.files or IdentityStore(IDENTITIES).files("admin"))
        try:
            request = pb.StreamLogsRequest(job_id=JOB.job_id)
            stub = jobworker_pb2_grpc.JobWorkerStub(channel)
            for message in stub.StreamLogs(request, timeout=_STREAM_TIMEOUT_S):
                received_ns = JOB.now_ns()
                checker.take(message.message, received_ns)
                if first:
                    self._report("first byte", received_ns - due_ns, len(message.message))
                    first = False
                    if not self.is_late:
                        self._settle()
                reported = self._report_messages(checker, began_ns, reported)
        except grpc.RpcError as error:
            failure = error
        finally:
            channel.close()
        if checker.wrong:
            failure = ValueError(checker.wrong)
        ended_ns = JOB.now_ns()
        self._report("whole stream", ended_ns - began_ns, checker.checked_bytes, failure)
        if not PROFILE.is_timed:
            self._report("flood", ended_ns - JOB.begun_ns, checker.checked_bytes, failure)
        if first and not self.is_late:
            self._settle()
        JOB.ended += 1
        if JOB.has_ended and not isinstance(self.environment.runner, WorkerRunner):
            # On a greenlet of its own, as above: to quit ends this user too.
            gevent.spawn(end_run, self.environment)
        raise StopUser

    def _wait_to_join(self) -> int:
        """Wait for the planned join of a late joiner; return its instant, now for the others.

        As in `generator`, late joiners join evenly over the load's time. Their number is known when
        the load begins.
        """
        if not self.is_late:
            return JOB.now_ns()
        self._settle()
        JOB.begun.wait()
        after_s = PROFILE.duration_s * (self.late_number + 1) / (JOB.late + 1)
        due_ns = JOB.begun_ns + round(after_s * 1e9)
        gevent.sleep(max(0, due_ns - JOB.now_ns()) / 1e9)
        return due_ns

    def _settle(self) -> None:
        JOB.settled += 1
        JOB.begin_when_all_follow()

    def _report_messages(self, checker: Checker, began_ns: int, reported: int) -> int:
        """Report the messages after position `reported` to Locust; return the new position."""
        width = len(MESSAGE_COLUMNS)
        for at in range(reported, len(checker.rows), width):
            row = checker.rows[at : at + width]
            apart_ns = JOB.apart_ns(row[RECEIVED] - row[BEGUN])
            # A message due before this user joined is old, not slow.
            if PROFILE.is_timed and row[NUMBER] and row[PLANNED] + apart_ns >= began_ns:
                size_bytes = PROFILE.message_bytes
                self._report("latency", row[RECEIVED] - row[PLANNED] - apart_ns, size_bytes)
                self._report("observed", row[RECEIVED] - row[BEGUN] - apart_ns, size_bytes)
        return len(checker.rows)

    def _report(
        self, name: str, took_ns: int, size_bytes: int, failure: Exception | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type="stream", name=name, response_time=took_ns / 1e6,
            response_length=size_bytes, exception=failure, context={},
        )  # fmt: skip
