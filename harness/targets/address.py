"""A running server at HOST:PORT that implements `jobworker.v1`; the harness did not start it."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from harness.dialects.dialect import CANONICAL, Dialect
from harness.drive.client import Client
from harness.drive.identities import IdentityStore
from harness.drive.receiver import StreamPlan
from harness.host.cert_files import CertFiles
from harness.host.processes import Done
from harness.record.history import Recorder
from harness.record.verdict import UnsupportedError
from harness.targets.target import Host, RunningServer

OUTPUT_MAX_BYTES: Final = 1024 * 1024
_NOT_LAUNCHED: Final = "a launch command (--launch), so that the harness can start and kill it"


class GivenServer:
    """A server that the harness can only call."""

    pid = None

    def __init__(self, address: str) -> None:
        self.address = address

    def signal(self, number: signal.Signals) -> None:
        """See `RunningServer`."""
        del number
        raise UnsupportedError(_NOT_LAUNCHED)

    def wait_exit(self, timeout_s: float) -> int | None:
        """See `RunningServer`."""
        del timeout_s
        raise UnsupportedError(_NOT_LAUNCHED)

    def has_died(self) -> bool:
        """See `RunningServer`. Its process cannot be observed; an unanswered call is recorded."""
        return False

    def log_tail(self) -> str:
        """See `RunningServer`."""
        return ""


class JobHost:
    """The server's machine, accessed by jobs that an admin starts.

    A server that isolates its jobs in namespaces gives no access; the capabilities test for that.
    """

    def __init__(self, address: str, files: CertFiles, *, dialect: Dialect = CANONICAL) -> None:
        self._address = address
        self._files = files
        self._dialect = dialect

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """See `Host`.

        Raises:
            UnmetError: the server did not run the job until it ended.
        """
        with Client(self._address, self._files, Recorder(), dialect=self._dialect) as client:
            job_id = client.must_start("sh", ["-c", script])
            plan = StreamPlan(keep_bytes=OUTPUT_MAX_BYTES, timeout_s=timeout_s)
            text = client.stream(job_id, plan).text
            job = client.must_query(job_id)
        return Done(128 + job.signal if job.signal else job.exit_code, text, "")


class AddressTarget:
    """See `Target`."""

    emulated = False
    disposable_host = False
    has_data_disk = False
    serial = False
    can_launch = False

    def __init__(
        self, address: str, identities: IdentityStore, *, dialect: Dialect = CANONICAL
    ) -> None:
        self.name = address
        self.dialect = dialect
        self.identities = identities
        self.flags: dict[str, str] = {}
        self.host: Host | None = JobHost(address, identities.files("admin"), dialect=dialect)
        self._server = GivenServer(address)

    def describe(self) -> str:
        """See `Target`."""
        return f"a running server at {self._server.address}"

    def launch(self, *_: object, **__: object) -> AbstractContextManager[RunningServer]:
        """See `Target`."""
        raise UnsupportedError(_NOT_LAUNCHED)

    @contextmanager
    def shared(self) -> Iterator[GivenServer]:
        """See `Target`."""
        yield self._server
