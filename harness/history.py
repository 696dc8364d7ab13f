"""What happened in a run: frozen records, written as one JSON line each, and read back.

A check's run only records; its judge sees nothing but these records. So a saved run can be judged
again, by a better judge, without a server.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from harness.verdict import BrokenError

type Json = str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None


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


@dataclass(frozen=True, slots=True)
class Fact:
    """Something else that was seen: a measurement, a file of the kernel's, what was asked."""

    label: str
    value: Json


Record = Call | Stream | Fact
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
    kind = next(kind for kind, each in _KINDS.items() if isinstance(record, each))
    return json.dumps({"kind": kind, **dataclasses.asdict(record)}, ensure_ascii=True)


def from_json(line: str) -> Record:
    """Return the record of a line.

    Raises:
        BrokenError: it is none.
    """
    try:
        values = json.loads(line)
        kind = _KINDS[values.pop("kind")]
        if "outcome" in values:
            values["outcome"] = Outcome(values["outcome"])
        if "timeline" in values:
            values["timeline"] = tuple((at_s, size) for at_s, size in values["timeline"])
        return kind(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"no record of a run: {line[:200]!r} ({error})") from error


def save(history: History, path: Path) -> None:
    """Write a history; the file is complete or not there."""
    half = path.with_suffix(".half")
    half.write_text("".join(to_json(record) + "\n" for record in history.records))
    half.rename(path)


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
