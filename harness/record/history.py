"""The records of a check's run: frozen values, written as JSON Lines and read back.

A check's `run` only records; its `judge` sees only these records. So a saved run can be judged
again, by an improved judge, without a server.

The client records calls and streams. For everything else a check defines its own `Observation`, a
frozen dataclass with typed fields. An `Interruption` records why a run ended early.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final

from harness.record.typed_json import from_values, to_values
from harness.record.verdict import BrokenError, Finding
from harness.record.whole_file import write_whole

_OTHER_VERSION: Final = (
    "if another version of the harness wrote it, read this run with that version, or run the check "
    "again"
)
# A JSON value. (msgspec, which reads records back, does not support recursive types.)
type Json = Any


class Outcome(StrEnum):
    """How a call ended. UNKNOWN: it timed out; the server might have executed it."""

    OK = "OK"
    ERROR = "ERROR"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call. Times are seconds since the run began; the judge finds it by its `label`."""

    label: str
    rpc: str
    outcome: Outcome
    code: str
    detail: str
    started_s: float
    ended_s: float
    response: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of a job's output, as its reader received it.

    Attributes:
        label: by which the judge finds it.
        job_id: the job.
        outcome, code, detail: how it ended; `CANCELLED` if the reader cancelled it.
        start_offset: the offset of its first byte in the job's output.
        received_bytes: the number of bytes received.
        largest_message_bytes: the most output that one message had.
        missed_bytes: the number of bytes that the server reported as dropped.
        wrong_at: offset of the first byte that differs from what the job wrote; None if all are
            right, or if the reader does not know what the job wrote.
        unended: whether the reader cancelled it, since its job had ended and nothing more came; its
            outcome and code are those of an end.
        gap: the inconsistency in the offsets that the server reported; empty if none.
        offsets_reported: whether the server reported offsets.
        sha256: of all received bytes.
        text: the received bytes as Latin-1, as many as the check keeps.
        started_s, first_byte_s, last_byte_s, ended_s: seconds since the run began.
        timeline: samples of (seconds, bytes received by then).
    """

    label: str
    job_id: str
    outcome: Outcome
    code: str
    detail: str
    received_bytes: int
    sha256: str
    started_s: float
    ended_s: float
    largest_message_bytes: int = 0
    start_offset: int = 0
    missed_bytes: int = 0
    wrong_at: int | None = None
    gap: str = ""
    offsets_reported: bool = False
    unended: bool = False
    text: str = ""
    first_byte_s: float | None = None
    last_byte_s: float | None = None
    timeline: tuple[tuple[float, int], ...] = ()


class Observation:
    """Base class of what a check records besides calls and streams.

    Subclasses are frozen dataclasses. Their fields are numbers, strings, booleans, enums, tuples,
    mappings and other frozen dataclasses, so that a record survives the round trip through JSON.
    The class's name is the record's kind in the file and therefore unique among all checks.
    """

    __slots__ = ()
    kinds: ClassVar[dict[str, type["Observation"]]] = {}

    def __init_subclass__(cls) -> None:
        """Register the kind. `slots=True` creates each class twice; the second one counts.

        Raises:
            TypeError: another module has an observation of that name.
        """
        known = Observation.kinds.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"{cls.__module__} and {known.__module__} both have an observation "
                f"{cls.__name__}; rename one: the name is the record's kind"
            )
        Observation.kinds[cls.__name__] = cls


class Cause(StrEnum):
    """What ended a check's run early, or decides its verdict by itself."""

    NEED_MISSING = "need-missing"
    HARNESS_FAILED = "harness-failed"
    PROMISE_BROKEN = "promise-broken"  # on the way to what the check is about
    SERVER_DIED = "server-died"
    SERVER_SILENT = "server-silent"  # it runs and answers no call
    MACHINE_DIED = "machine-died"  # or does not answer


@dataclass(frozen=True, slots=True)
class Interruption(Observation):
    """An event that ended a check's run early, or decides its verdict by itself.

    Attributes:
        cause: the kind of event.
        detail: the reason, for people.
        finding: the broken promise; only with PROMISE_BROKEN.
    """

    cause: Cause
    detail: str
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class UsageCurve(Observation):
    """A job's measured resource usage over time, for the report's charts.

    Attributes:
        title: the resource and its user.
        unit: of the values; "bytes" is shown as KiB, MiB or GiB, any other as it is.
        limit: the job's limit in that unit; None if unlimited.
        samples: (seconds since the run began, value).
    """

    title: str
    unit: str
    limit: float | None
    samples: tuple[tuple[float, float], ...]


CALLS_BY_HAND_MAX: Final = 4  # of each rpc, in a check
# In the words of a start by hand: an id that the caller chooses. No command line has a NUL.
NEW_ID: Final = "\0new id\0"


@dataclass(frozen=True, slots=True)
class CallByHand(Observation):
    """A call as a person makes it, with another client than the harness; for reports.

    Attributes:
        label: of the record of the call or stream.
        rpc: the canonical rpc.
        words: the command; may have `NEW_ID`.
        address: the server's, as in the words.
        certificates: the directory of the certificates in the words.
        setup: commands to run once, before the first call.
    """

    label: str
    rpc: str
    words: tuple[str, ...]
    address: str
    certificates: str
    setup: tuple[tuple[str, ...], ...] = ()


Record = Call | Stream | Observation
_KINDS: Final[dict[str, type[Record]]] = {"call": Call, "stream": Stream}


class History:
    """The records of one check's run, in the order in which they were added."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(records)

    def calls(self, label: str = "") -> list[Call]:
        """Return the calls whose label has this prefix."""
        return [r for r in self.records if isinstance(r, Call) and r.label.startswith(label)]

    def streams(self, label: str = "") -> list[Stream]:
        """Return the streams whose label has this prefix."""
        return [r for r in self.records if isinstance(r, Stream) and r.label.startswith(label)]

    def all[Kind: Observation](self, kind: type[Kind]) -> list[Kind]:
        """Return the observations of a kind, in the order in which they were recorded."""
        return [record for record in self.records if isinstance(record, kind)]

    def the[Kind: Observation](self, kind: type[Kind]) -> Kind:
        """Return the one observation of a kind.

        Raises:
            BrokenError: it is missing, or not the only one.
        """
        return _only(kind.__name__, self.all(kind))

    def call(self, label: str) -> Call:
        """Return the one call of this label.

        Raises:
            BrokenError: it is missing, or not the only one.
        """
        return _only(label, [call for call in self.calls(label) if call.label == label])

    def stream(self, label: str) -> Stream:
        """Return the one stream of this label.

        Raises:
            BrokenError: it is missing, or not the only one.
        """
        return _only(label, [each for each in self.streams(label) if each.label == label])


def _only[Each](label: str, found: list[Each]) -> Each:
    if len(found) != 1:
        raise BrokenError(f"the run has {len(found)} records {label!r} and must have one")
    return found[0]


class Recorder:
    """Collects records from any thread.

    Shared state and its guard: `_records`, `_by_hand` under `_lock`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._by_hand: Counter[str] = Counter()
        self.zero_s = time.monotonic()

    def now_s(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self.zero_s

    def add(self, record: Record) -> None:
        """Add a record."""
        with self._lock:
            self._records.append(record)

    def add_by_hand(self, rpc: str, make: Callable[[], CallByHand | None]) -> None:
        """Add how a person makes a call; only the first few of each rpc are made and kept."""
        with self._lock:
            if self._by_hand[rpc] >= CALLS_BY_HAND_MAX:
                return
            self._by_hand[rpc] += 1
        if (record := make()) is not None:
            self.add(record)

    def history(self) -> History:
        """Return the records added so far."""
        with self._lock:
            return History(self._records)


def to_json(record: Record) -> str:
    """Return a record as one line of JSON."""
    kinds = (kind for kind, each in _KINDS.items() if isinstance(record, each))
    kind = next(kinds, type(record).__name__)
    return json.dumps({"kind": kind, **to_values(record)}, ensure_ascii=True)


def from_json(line: str) -> Record:
    """Return the record of a line.

    Raises:
        BrokenError: the line is not a record, or its kind is unknown.
    """
    try:
        values = json.loads(line)
        kind: str = values.pop("kind")
        known = _KINDS.get(kind) or Observation.kinds.get(kind)
        if known is not None:
            return from_values(values, known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(
            f"not a record of a run: {line[:200]!r} ({error}); {_OTHER_VERSION}"
        ) from error
    raise BrokenError(f"unknown kind of record {kind!r}; {_OTHER_VERSION}")


def save(history: History, path: Path) -> None:
    """Write a history; the file is complete or does not exist."""
    write_whole(path, "".join(to_json(record) + "\n" for record in history.records))


def load(path: Path) -> History:
    """Read a history.

    Raises:
        BrokenError: it is missing, or is not a history.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenError(f"no history at {path}: {error}") from error
    return History(_lines(text))


def _lines(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        yield from_json(line)
