"""What a check is: data, a run that only records, and a judge that sees only the records."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from harness.dialects.dialect import Dialect
from harness.drive.client import SLOW_FACTOR, Client
from harness.host.cert_files import CertFiles
from harness.record.history import History, Observation, Recorder
from harness.record.verdict import Finding, UnsupportedError
from harness.targets.target import DEFAULT, Host, RunningServer, Target, Variant


class Need(StrEnum):
    """What a check may need. Each text completes the sentence 'the target lacks ...'."""

    LAUNCH = "a launch command, so that the harness can start and kill it"
    HOST = "access to the server's machine"
    GUEST = "a disposable machine, which a check may reconfigure"
    DISK = "an empty disk reserved for the checks"
    IDENTITIES = "the harness's own certificates (harness identities DIR)"
    ROLES = "roles in certificates (the table [identities] of its dialect names none)"
    CERTIFICATE_RULES = "rules for certificates beyond mutual TLS (`refuses`, `accepts`)"
    GRPC = "gRPC over TLS (the table [protocol] of its dialect)"
    EXIT_CODES = "exit codes in its query (`query.job.exit_code` of its dialect)"
    SIGNALS = "signals in its query (`query.job.signal` of its dialect)"
    PIDS = "process ids in its query (`query.job.pid` of its dialect)"
    TIMES = "times in its query (`query.job.started_at` and `ended_at` of its dialect)"
    ONE_OUTPUT = "one order of standard output and standard error (`stream.output` names both)"
    PYTHON = "python3 on the server's machine, for this check's job"
    CGROUPS = "a cgroup v2 for each job"
    LIMIT_FIELDS = "limits in StartJob (the added field `limits`)"
    IO_MAX = "limits of a disk in StartJob and its query (the added field `io_max`)"
    USAGE = "usage and OOM kills in its query (the added fields `usage` and `oom_killed`)"
    LOG_SIZES = "sizes of output in its query (the added field `log_size_bytes`)"
    OFFSETS = "offsets in StreamLogs (the added fields `from_offset` and `offset`)"
    JOB_ENVIRONMENT = "the added fields `environment` and `working_directory` in StartJob"
    LISTING = "the added rpc ListJobs"
    PAGES = "pages in ListJobs (the added field `page_size`)"
    DELETION = "the added rpc DeleteJob"
    GRACE = "a grace period in StopJob (the added field `grace_period_ms`)"
    RETENTION = "a flag for log retention"
    OUTPUT_MEMORY = "a flag for the maximum memory of all jobs' output"
    JOB_TTL = "a flag for the time after which an ended job is forgotten"
    STREAM_CAP = "a flag for the maximum number of concurrent streams"
    UNARY_THREADS = "a flag for the number of threads for calls other than streams"
    METRICS = "a flag for the address of metrics for Prometheus"
    KEEPALIVE = "a flag for the keepalive interval"
    HANDSHAKE_TIMEOUT = "a flag for the TLS handshake timeout"
    CALLS_A_CONNECTION = "a flag for the maximum number of concurrent calls per connection"
    DENY_LIST = "a flag for a deny list of certificates"
    NATIVE = "a native processor (an emulated one is too slow, or its speed would be judged)"


# Why a check leaves the server's memory, threads and descriptors unjudged.
PROCESS_UNSEEN: Final = "the harness did not launch the server"


class Scale(StrEnum):
    """The size of loads: an emulated processor is some twenty times slower."""

    FULL = "full"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Extent:
    """How long the checks that work in rounds go on.

    Attributes:
        rounds: how many rounds they work; 0: as many as they do by themselves.
        lasting_s: for how long they work instead; 0: for their rounds.
    """

    rounds: int = 0
    lasting_s: float = 0.0


ITS_OWN: Final = Extent()


@dataclass(frozen=True, slots=True)
class Check:
    """One guarantee, how to test it, and how to judge the records of the test.

    Attributes:
        name: `area.subject`; the area is the part before the dot.
        guarantee: the promise, as a sentence.
        run: drives the server and records; raises when it cannot continue.
        judge: returns findings, from the records alone.
        needs: what the target must have; if it lacks one, the check is SKIPPED.
        cites: the case numbers and requirement ids that it covers.
        time_limit_s: for the run; beyond it the check is BROKEN.
        round_limit_s: what each round of `Extent` adds to that; 0: it does not work in rounds.
        alone: whether no other check may run at the same time, since it measures time or memory.
        ours: whether the promise is this project's own, beyond what each job worker promises. With
            a dialect the check is SKIPPED, unless the key `promises` names it.
    """

    name: str
    guarantee: str
    run: Callable[["Stage"], None]
    judge: Callable[[History], Iterable[Finding]]
    needs: frozenset[Need] = frozenset()
    cites: tuple[str, ...] = ()
    time_limit_s: float = 120.0
    round_limit_s: float = 0.0
    alone: bool = False
    ours: bool = False

    @property
    def area(self) -> str:
        """The folder of checks that it belongs to."""
        return self.name.partition(".")[0]

    def limit_s(self, extent: Extent) -> float:
        """Return the time limit of a run of this extent."""
        if not self.round_limit_s:
            return self.time_limit_s
        return self.time_limit_s + self.round_limit_s * extent.rounds + extent.lasting_s


class Stage:
    """What a check's run works with: the target, its server, clients, and the recorder.

    `target_has` returns whether the target has something that the check does not strictly need;
    `note` shows the user a line.
    """

    def __init__(
        self,
        target: Target,
        server: RunningServer,
        recorder: Recorder,
        *,
        scale: Scale,
        seed: str,
        has: Callable[[Need], bool],
        extent: Extent = ITS_OWN,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.extent = extent
        self.note = note
        self.target = target
        self.server = server
        self.recorder = recorder
        self.scale = scale
        self.target_has = has
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def pick[Value](self, *, full: Value, small: Value) -> Value:
        """Return the size of a load for this target: `small` if its processor is emulated."""
        return full if self.scale is Scale.FULL else small

    def patience(self, seconds: float) -> float:
        """Return a timeout for this target: longer than `seconds` if its processor is emulated."""
        return self.pick(full=seconds, small=seconds * SLOW_FACTOR)

    @property
    def join_timeout_s(self) -> float:
        """Timeout, in seconds, for readers to receive their first bytes."""
        return self.patience(30.0)

    @property
    def host(self) -> Host:
        """The server's machine.

        Raises:
            UnsupportedError: the harness has no access to it.
        """
        if self.target.host is None:
            raise UnsupportedError(Need.HOST)
        return self.target.host

    @property
    def dialect(self) -> Dialect:
        """How the target's servers are spoken to."""
        return self.target.dialect

    @contextmanager
    def client(
        self, identity: str = "admin", server: RunningServer | None = None
    ) -> Iterator[Client]:
        """Connect to a server, by default as an admin to the one that the checks share."""
        files = self.target.identities.files(identity)
        with self.client_of(files, server) as client:
            yield client

    @contextmanager
    def client_of(self, files: CertFiles, server: RunningServer | None = None) -> Iterator[Client]:
        """Connect with a certificate to a server, by default to the one that the checks share."""
        address = (server or self.server).address
        with Client(
            address,
            files,
            self.recorder,
            dialect=self.dialect,
            slow=self.scale is Scale.SMALL,
        ) as client:
            yield client

    @contextmanager
    def fresh_server(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        wrapper: Sequence[str] = (),
    ) -> Iterator[RunningServer]:
        """Start a server for this check alone; for the arguments see `Target.launch`.

        Raises:
            UnsupportedError: the target has no launch command, or no flag for a setting.
        """
        with self.target.launch(
            variant, files=files, descriptors=descriptors, wrapper=wrapper
        ) as server:
            yield server

    def record(self, observation: Observation) -> None:
        """Record an observation of this check."""
        self.recorder.add(observation)

    def nonce(self) -> str:
        """Return a word that is unique within the run, the same for the same seed."""
        return f"{self.random.getrandbits(64):016x}"
