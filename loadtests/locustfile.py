"""Streams for Locust: the same writer, checker and instants, driven by Locust's master and workers.

For load from more machines than one, and for Locust's web page, charts and CSV. Each worker starts
a writing job, and each of its users follows that on a connection of its own. Every message is a
Locust request: `stream latency` counts from its planned instant, `stream observed` from its write.
A stream's first byte and its end are requests too; wrong bytes and bad ends are failures.

Settings come from the environment: JOBWORKER_TARGET (HOST:PORT), JOBWORKER_IDENTITIES (a directory
as `python -m harness identities` makes it), JOBWORKER_RATE (messages a second),
JOBWORKER_MESSAGE_BYTES, JOBWORKER_SECONDS (how long a worker's job writes).

    locust -f loadtests/locustfile.py --master --headless -u 10 -r 10 -t 20s --expect-workers 2
    locust -f loadtests/locustfile.py --worker       # as many as there are cores, on any machine

Not for rates: gevent runs all streams of a worker in one thread. How far it agrees with
`python -m loadtests` stands in docs/load.md.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator"
# Locust is no dependency of the project; what it lacks here mypy cannot know.

import logging
import os
import secrets
import time
from collections.abc import Callable  # noqa: TC003 - Locust's import order
from pathlib import Path
from typing import Any, Final

# Locust patches the standard library for gevent, and must come before everything that uses it.
from locust import User, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner

# After the patching and before any of gRPC's objects: its waits then yield to other users.
import grpc.experimental.gevent as grpc_gevent  # isort: skip

grpc_gevent.init_gevent()

import grpc  # noqa: E402 - as said above

from harness.client import Client, open_channel  # noqa: E402
from harness.history import Recorder  # noqa: E402
from harness.identities import CertFiles, IdentityStore  # noqa: E402
from harness.verdict import BrokenError, UnmetError  # noqa: E402
from jobworker.v1 import jobworker_pb2 as pb  # noqa: E402
from jobworker.v1 import jobworker_pb2_grpc  # noqa: E402
from loadtests.checker import Checker  # noqa: E402
from loadtests.emitter import MONOTONIC  # noqa: E402
from loadtests.jobs import Writer, clock_of  # noqa: E402
from loadtests.metrics import BEGUN, NUMBER, PLANNED, RECEIVED  # noqa: E402
from loadtests.pacer import steady  # noqa: E402
from loadtests.record import MESSAGE_COLUMNS  # noqa: E402

logger = logging.getLogger(__name__)

EXIT_BROKEN: Final = 2
TARGET: Final = os.environ.get("JOBWORKER_TARGET", "localhost:50051")
IDENTITIES: Final = Path(os.environ.get("JOBWORKER_IDENTITIES", "certs/out"))
RATE_PER_S: Final = float(os.environ.get("JOBWORKER_RATE", "100"))
MESSAGE_BYTES: Final = int(os.environ.get("JOBWORKER_MESSAGE_BYTES", "128"))
SECONDS: Final = float(os.environ.get("JOBWORKER_SECONDS", "3600"))
_STREAM_TIMEOUT_S: Final = SECONDS + 60


class Job:
    """The job that this worker's users follow."""

    def __init__(self) -> None:
        self.job_id = ""
        self.seed = secrets.token_hex(4)
        self.now_ns: Callable[[], int] = time.monotonic_ns
        self.files: CertFiles | None = None

    def start(self) -> None:
        """Start it.

        Raises:
            UnmetError, BrokenError: the server did not, or is not there.
        """
        self.files = IdentityStore(IDENTITIES).files("admin")
        with Client(TARGET, self.files, Recorder()) as client:
            clock = clock_of(client)
            self.now_ns = time.monotonic_ns if clock == MONOTONIC else time.time_ns
            writer = Writer(steady(RATE_PER_S, SECONDS), MESSAGE_BYTES, self.seed, "", clock)
            self.job_id = client.must_start(*writer.command())

    def stop(self) -> None:
        """Stop it; its streams end."""
        if self.job_id and self.files is not None:
            with Client(TARGET, self.files, Recorder()) as client:
                client.stop(self.job_id)


JOB: Final = Job()


@events.test_start.add_listener
def start_job(environment: Any, **_: object) -> None:  # noqa: ANN401 - Locust's own
    """Start this worker's job; the master has none."""
    if isinstance(environment.runner, MasterRunner):
        return
    try:
        JOB.start()
    except (BrokenError, UnmetError) as error:
        # Locust would only log it, and go on without a job.
        logger.error("BROKEN: %s", error)  # noqa: TRY400 - its text says all
        environment.process_exit_code = EXIT_BROKEN
        environment.runner.quit()


@events.test_stop.add_listener
def stop_job(environment: Any, **_: object) -> None:  # noqa: ANN401 - as above
    """Stop this worker's job."""
    if not isinstance(environment.runner, MasterRunner):
        JOB.stop()


class Streamer(User):
    """Follows the job until it ends or the test does."""

    @task
    def follow(self) -> None:
        """Follow one stream; each message is a request."""
        checker = Checker(JOB.seed, MESSAGE_BYTES)
        began_ns, first, told = JOB.now_ns(), True, 0
        failure: Exception | None = None
        channel = open_channel(TARGET, JOB.files or IdentityStore(IDENTITIES).files("admin"))
        try:
            request = pb.StreamLogsRequest(job_id=JOB.job_id)
            stub = jobworker_pb2_grpc.JobWorkerStub(channel)
            for message in stub.StreamLogs(request, timeout=_STREAM_TIMEOUT_S):
                received_ns = JOB.now_ns()
                checker.take(message.message, received_ns)
                if first:
                    self._tell("first byte", received_ns - began_ns, len(message.message))
                    first = False
                told = self._tell_messages(checker, began_ns, told)
        except grpc.RpcError as error:
            failure = error
        finally:
            channel.close()
        if checker.wrong:
            failure = ValueError(checker.wrong)
        self._tell("whole stream", JOB.now_ns() - began_ns, checker.checked_bytes, failure)
        raise StopUser

    def _tell_messages(self, checker: Checker, began_ns: int, told: int) -> int:
        """Tell Locust of the messages that came since; return up to where it was told."""
        width = len(MESSAGE_COLUMNS)
        for at in range(told, len(checker.rows), width):
            row = checker.rows[at : at + width]
            # What was due before this user came is old, not slow.
            if row[NUMBER] and row[PLANNED] >= began_ns:
                self._tell("latency", row[RECEIVED] - row[PLANNED], MESSAGE_BYTES)
                self._tell("observed", row[RECEIVED] - row[BEGUN], MESSAGE_BYTES)
        return len(checker.rows)

    def _tell(
        self, name: str, took_ns: int, size_bytes: int, failure: Exception | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type="stream", name=name, response_time=took_ns / 1e6,
            response_length=size_bytes, exception=failure, context={},
        )  # fmt: skip
