"""What a check is: data, a run that records, and a judge that looks at nothing but the records."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from harness.drive.client import SLOW_FACTOR, Client
from harness.drive.identities import CertFiles
from harness.record.history import History, Json, Observation, Recorder
from harness.record.verdict import Finding, UnsupportedError
from harness.targets.target import DEFAULT, Host, RunningServer, Target, Variant


class Need(StrEnum):
    """What a check may need of a target. The texts complete the sentence 'the target lacks ...'."""

    LAUNCH = "a launch command, so that the harness can start and kill it"
    HOST = "a machine that the harness can look into"
    GUEST = "a virtual machine that was made to be verified in"
    DISK = "an empty disk, for the checks alone"
    IDENTITIES = "the harness's own certificates (harness identities DIR)"
    PYTHON = "python3 on its machine, which this check's job is written in"
    CGROUPS = "a cgroup v2 for each job"
    LIMIT_FIELDS = "limits in StartJob (the added field `limits`)"
    OFFSETS = "offsets in StreamLogs (the added fields `from_offset` and `offset`)"
    SURROUNDINGS = "the added fields `environment` and `working_directory` in StartJob"
    LISTING = "the added rpc ListJobs"
    GRACE = "a grace period in StopJob (the added field `grace_period_ms`)"
    RETENTION = "a flag for log retention"
    STREAM_CAP = "a flag for the maximum of concurrent streams"
    KEEPALIVE = "a flag for the keepalive time"
    HANDSHAKE_TIMEOUT = "a flag for the time that a TLS handshake may take"
    CALLS_A_CONNECTION = "a flag for the maximum of calls on one connection"
    DENY_LIST = "a flag for a list of certificates that are refused"
    NATIVE = "a processor of its own speed (an emulated one shows the emulation's)"


# Why a check that can do without it says nothing of the server's memory, threads and descriptors.
PROCESS_UNSEEN: Final = "the harness did not launch the server"


class Scale(StrEnum):
    """How much load a target can take: an emulated processor is some twenty times slower."""

    FULL = "full"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Check:
    """One guarantee, how to put it to the test, and how to judge what came of it.

    Attributes:
        name: `area.what`; the area is what stands before the dot.
        guarantee: the promise, as a sentence.
        run: drives the server and records; raises for what keeps it from going on.
        judge: findings from the records alone.
        needs: what the target must have; lacking one, the check is SKIPPED.
        cites: case numbers and requirement ids that it covers.
        time_limit_s: of the run; beyond it the check is BROKEN.
        alone: whether it must not share the machine with other checks: it measures time or memory.
    """

    name: str
    guarantee: str
    run: Callable[["Stage"], None]
    judge: Callable[[History], Iterable[Finding]]
    needs: frozenset[Need] = frozenset()
    cites: tuple[str, ...] = ()
    time_limit_s: float = 120.0
    alone: bool = False

    @property
    def area(self) -> str:
        """What it belongs to."""
        return self.name.partition(".")[0]


class Stage:
    """What a check's run works with.

    `target_has` tells whether the target has something that the check can do without.
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
    ) -> None:
        self.target = target
        self.server = server
        self.recorder = recorder
        self.scale = scale
        self.target_has = has
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def pick[Value](self, *, full: Value, small: Value) -> Value:
        """Return one of two sizes of a load."""
        return full if self.scale is Scale.FULL else small

    def patience(self, seconds: float) -> float:
        """Return how long to wait for what takes so long on an ordinary machine."""
        return self.pick(full=seconds, small=seconds * SLOW_FACTOR)

    @property
    def join_timeout_s(self) -> float:
        """How long to wait for readers to have their first bytes."""
        return self.patience(30.0)

    @property
    def host(self) -> Host:
        """The server's machine.

        Raises:
            UnsupportedError: nobody can look into it.
        """
        if self.target.host is None:
            raise UnsupportedError(Need.HOST)
        return self.target.host

    @contextmanager
    def client(
        self, identity: str = "admin", server: RunningServer | None = None
    ) -> Iterator[Client]:
        """Connect, by default as an admin to the server that the checks share."""
        files = self.target.identities.files(identity)
        with self.client_of(files, server) as client:
            yield client

    @contextmanager
    def client_of(self, files: CertFiles, server: RunningServer | None = None) -> Iterator[Client]:
        """Connect with a certificate, by default to the server that the checks share."""
        address = (server or self.server).address
        with Client(address, files, self.recorder, slow=self.scale is Scale.SMALL) as client:
            yield client

    @contextmanager
    def fresh_server(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
    ) -> Iterator[RunningServer]:
        """Start a server of this check's own, with some things changed; see `Target.launched`.

        Raises:
            UnsupportedError: the target has no launch command, or no flag for a setting.
        """
        with self.target.launched(variant, files=files, descriptors=descriptors) as server:
            yield server

    def record(self, observation: Observation) -> None:
        """Record something that this check saw."""
        self.recorder.add(observation)

    def fact(self, label: str, value: Json) -> None:
        """Record something that was seen."""
        self.recorder.fact(label, value)

    def nonce(self) -> str:
        """Return a word that nobody else uses, the same for the same seed."""
        return f"{self.random.getrandbits(64):016x}"
