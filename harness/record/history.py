"""What happened in a run: frozen records, written as one JSON line each, and read back.

A check's run only records; its judge sees nothing but these records. So a saved run can be judged
again, by a better judge, without a server.

Calls and streams are recorded by the client. What else a check sees, it records as an `Observation`
of its own: a frozen dataclass with typed fields. How a run was interrupted is an `Interruption`.
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from harness.record.verdict import BrokenError, Finding
from harness.record.whole_file import write_whole

# A value as JSON has it. (msgspec, which reads records back, knows no recursive type.)
type Json = Any


class Outcome(StrEnum):
    """How a call ended. UNKNOWN: no answer in time, so the server may or may not have done it."""

    OK = "OK"
    ERROR = "ERROR"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call. Times are seconds on the run's own clock; `label` is the judge's handle."""

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
    """One stream of a job's output, as its reader saw it.

    Attributes:
        label: the judge's handle.
        job_id: the job.
        outcome, code, detail: how it ended; `CANCELLED` when the reader itself left.
        start_offset: where its first byte stands in the job's output.
        received_bytes: how many it received.
        missed_bytes: how many the server said that it dropped.
        wrong_at: offset of the first byte that is not what the job wrote; None when all were right,
            or when nobody knows what the job wrote.
        gap: what was wrong with the offsets that the server told; empty when nothing was.
        offsets_told: whether it told any.
        sha256: of all received bytes.
        text: the received bytes as Latin-1, as far as the check asked to keep them.
        started_s, first_byte_s, last_byte_s, ended_s: on the run's own clock.
        timeline: some (seconds, bytes received by then).
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
    start_offset: int = 0
    missed_bytes: int = 0
    wrong_at: int | None = None
    gap: str = ""
    offsets_told: bool = False
    text: str = ""
    first_byte_s: float | None = None
    last_byte_s: float | None = None
    timeline: tuple[tuple[float, int], ...] = ()


class Observation:
    """Base of what a check records beside calls and streams; subclasses are frozen dataclasses.

    A subclass's fields are numbers, strings, booleans, enums, tuples, mappings and other frozen
    dataclasses, so that a record becomes JSON and comes back as the same value. Its name is the
    record's kind in the file, so it is unique among all checks.
    """

    __slots__ = ()
    kinds: ClassVar[dict[str, type["Observation"]]] = {}

    def __init_subclass__(cls) -> None:
        """Register the kind. `slots=True` makes each class twice; the second one counts."""
        known = Observation.kinds.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"{cls.__module__} and {known.__module__} both have an observation "
                f"{cls.__name__}; rename one: the name is the record's kind"
            )
        Observation.kinds[cls.__name__] = cls


class Cause(StrEnum):
    """Why a run was interrupted, or says less than it was to."""

    SKIPPED = "the target lacks a need"
    BROKEN = "the harness failed"
    PROMISE_BROKEN = "a promise was broken on the way"
    SERVER_DIED = "the server died"
    MACHINE_DIED = "the server's machine died or does not answer"


@dataclass(frozen=True, slots=True)
class Interruption(Observation):
    """What kept a check's run from its end, or happened to its server meanwhile.

    Attributes:
        cause: which of the five.
        detail: the reason, for people.
        finding: the broken promise; only with PROMISE_BROKEN.
    """

    cause: Cause
    detail: str
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class UsageCurve(Observation):
    """A job's measured use of something over time, for the report's pictures.

    Attributes:
        title: what was used, and by what.
        unit: of the values: "bytes" is shown in KiB, MiB, GiB; another as it is.
        limit: the job's limit, in the unit; None: it has none.
        samples: (seconds on the run's own clock, value).
    """

    title: str
    unit: str
    limit: float | None
    samples: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something else that was seen. To be replaced by observations: see `Observation`."""

    label: str
    value: Json


Record = Call | Stream | Fact | Observation
_KINDS: Final[dict[str, type[Record]]] = {"call": Call, "stream": Stream, "fact": Fact}


class History:
    """The records of one check, in the order in which they were made."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(records)

    def calls(self, label: str = "") -> list[Call]:
        """Return the calls whose label begins so."""
        return [r for r in self.records if isinstance(r, Call) and r.label.startswith(label)]

    def streams(self, label: str = "") -> list[Stream]:
        """Return the streams whose label begins so."""
        return [r for r in self.records if isinstance(r, Stream) and r.label.startswith(label)]

    def facts(self, label: str = "") -> list[Fact]:
        """Return the facts whose label begins so."""
        return [r for r in self.records if isinstance(r, Fact) and r.label.startswith(label)]

    def all[Kind: Observation](self, kind: type[Kind]) -> list[Kind]:
        """Return the observations of a kind, in the order in which they were recorded."""
        return [record for record in self.records if isinstance(record, kind)]

    def the[Kind: Observation](self, kind: type[Kind]) -> Kind:
        """Return the one observation of a kind.

        Raises:
            BrokenError: there is none, or more than one.
        """
        return _only(kind.__name__, self.all(kind))

    def call(self, label: str) -> Call:
        """Return the one call of this label.

        Raises:
            BrokenError: there is none, or more than one.
        """
        return _only(label, [call for call in self.calls(label) if call.label == label])

    def stream(self, label: str) -> Stream:
        """Return the one stream of this label.

        Raises:
            BrokenError: there is none, or more than one.
        """
        return _only(label, [each for each in self.streams(label) if each.label == label])

    def fact(self, label: str) -> Json:
        """Return the value of the one fact of this label.

        Raises:
            BrokenError: there is none, or more than one.
        """
        return _only(label, [fact for fact in self.facts(label) if fact.label == label]).value

    def number(self, label: str) -> float:
        """Return a fact that is a number.

        Raises:
            BrokenError: there is none.
        """
        value = self.fact(label)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BrokenError(f"fact {label!r} is {value!r}, no number")
        return value


def _only[Each](label: str, found: list[Each]) -> Each:
    if len(found) != 1:
        raise BrokenError(f"the run has {len(found)} records {label!r} where it must have one")
    return found[0]


class Recorder:
    """Takes records from any number of threads. Shared state and its guard: `_records`, `_lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self.zero_s = time.monotonic()

    def now_s(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self.zero_s

    def add(self, record: Record) -> None:
        """Take a record."""
        with self._lock:
            self._records.append(record)

    def fact(self, label: str, value: Json) -> None:
        """Take a fact."""
        self.add(Fact(label, value))

    def history(self) -> History:
        """Return what was taken so far."""
        with self._lock:
            return History(self._records)


def to_json(record: Record) -> str:
    """Return a record as one line of JSON."""
    kinds = (kind for kind, each in _KINDS.items() if isinstance(record, each))
    kind = next(kinds, type(record).__name__)
    return json.dumps({"kind": kind, **msgspec.to_builtins(record)}, ensure_ascii=True)


def from_json(line: str) -> Record:
    """Return the record of a line.

    Raises:
        BrokenError: it is none.
    """
    try:
        values = json.loads(line)
        kind = values.pop("kind")
        return msgspec.convert(values, type=_KINDS.get(kind) or Observation.kinds[kind])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(f"not a record of a run: {line[:200]!r} ({error})") from error


def save(history: History, path: Path) -> None:
    """Write a history; the file is complete or not there."""
    write_whole(path, "".join(to_json(record) + "\n" for record in history.records))


def load(path: Path) -> History:
    """Read a history.

    Raises:
        BrokenError: it is not there, or no history.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenError(f"no history at {path}: {error}") from error
    return History(_lines(text))


def _lines(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        yield from_json(line)
