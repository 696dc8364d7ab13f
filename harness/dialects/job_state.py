"""A job's state, as a server reports it: its status, its end, its times and its limits.

All paths are resolved when a dialect is bound to its schema, as those of requests are.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from harness.dialects.schema import FieldPath
from harness.dialects.signals import signal_number
from harness.dialects.tables import LimitsTable, Part, Source, StateTable
from harness.record.terms import ENDED
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

RUNNING, EXITED, SIGNALED = "running", "exited", "signaled"
MEANINGS: Final = (RUNNING, EXITED, SIGNALED, ENDED)

_TIMESTAMP: Final = Timestamp.DESCRIPTOR.full_name
_PER_MILLICORE: Final = {
    "millicores": Fraction(1),
    "cores": Fraction(1, 1000),
    "percent": Fraction(1, 10),
}
_INT32_LIMIT: Final = 2**31
_SHELL_SIGNAL: Final = 128


def conclude(code: int | None, number: int) -> str:
    """Return which kind of end a job had of which only the end is known.

    Args:
        code: the reported exit code; None: none is reported.
        number: the reported signal; 0: none.
    """
    if number or (code is not None and code < 0):
        return SIGNALED
    return ENDED if code is None else EXITED


def exit_code_of(status: str, code: int | None) -> int:
    """Return the exit code to report: 0 for none.

    Of a process that a signal ended, Go has -1 and a shell 128+N; neither is an exit code.
    """
    if code is None or (status == SIGNALED and (code < 0 or code > _SHELL_SIGNAL)):
        return 0
    return code


def limit_paths(
    descriptor: Descriptor, table: LimitsTable, where: str
) -> Iterator[tuple[Any, FieldPath, Fraction]]:
    """Yield each named limit: its canonical field, its path, and the server's units in one.

    Raises:
        BrokenError: a path is none, or not of a number.
    """
    for name, text, per_unit in (
        ("cpu_millicores", table.cpu, _PER_MILLICORE[table.cpu_unit]),
        ("memory_max_bytes", table.memory_bytes, Fraction(1)),
        ("io_weight", table.io_weight, Fraction(1)),
        ("pids_max", table.pids_max, Fraction(1)),
    ):
        if text:
            # Limits are parts of a core, which no whole number of cores can be.
            parts = per_unit == _PER_MILLICORE["cores"]
            kinds = ("float",) if parts else ("integer", "float")
            yield name, FieldPath(descriptor, text, where).require(*kinds), per_unit


class JobState:
    """Reads a job's state from a response.

    Args:
        descriptor: of the message that the paths begin at.
        table: the paths.
        where: the table's name, for errors.
        is_required: whether the table must say whether a job runs.

    Raises:
        BrokenError: a path is none, or of a wrong type, or a job's state stays unknown.
    """

    def __init__(
        self, descriptor: Descriptor, table: StateTable, where: str, *, is_required: bool = True
    ) -> None:
        def read(key: str, *kinds: str) -> Callable[[Message], Any] | None:
            return reader(descriptor, getattr(table, key), f"{where}.{key}", *kinds)

        self._state = read("state", "enum", "string", "bool", "oneof", "integer")
        self._exit_code = read("exit_code", "integer", "string")
        self._signal = read("signal", "integer", "string", "enum")
        self._pid = read("pid", "integer", "string")
        self._message = read("message", "string", "enum", "integer")
        self._times = {key: read(key, _TIMESTAMP, "string") for key in ("started_at", "ended_at")}
        self._limits = list(limit_paths(descriptor, table.limits, f"{where}.limits"))
        self._meanings = [
            (pattern_of(text, f"{where}.{meaning}"), meaning)
            for meaning in MEANINGS
            for text in getattr(table, meaning)
        ]
        if table.state:
            self._require_values(descriptor, table.state, where)
        else:
            self._require_exit_code(descriptor, table, where, is_required=is_required)

    def _require_values(self, descriptor: Descriptor, state: Source, where: str) -> None:
        if not self._meanings:
            raise BrokenError(
                f"{where}: no meaning of {state!r}; give lists of its values: {', '.join(MEANINGS)}"
            )
        values = FieldPath(descriptor, state, where).values() if isinstance(state, str) else []
        for pattern, meaning in self._meanings if values else ():
            if not any(pattern.fullmatch(value) for value in values):
                raise BrokenError(
                    f"{where}.{meaning}: {pattern.pattern!r} is not a value of {state!r}; its "
                    f"values are {', '.join(values)}"
                )

    def _require_exit_code(
        self, descriptor: Descriptor, table: StateTable, where: str, *, is_required: bool
    ) -> None:
        if self._meanings:
            raise BrokenError(f"{where}.{self._meanings[0][1]}: a meaning of no state; name state")
        code = table.exit_code
        if not code and (is_required or table.signal):
            raise BrokenError(f"{where}: name state, or an exit_code that is unset in running jobs")
        if code and isinstance(code, str) and not FieldPath(descriptor, code, where).can_be_unset:
            raise BrokenError(f"{where}.exit_code: {code!r} is 0 in running jobs, too; name state")

    def fill(self, job: pb.QueryJobResponse | pb.JobSummary, response: Message) -> None:
        """Write the state into a canonical message."""
        number = signal_number(self._read(self._signal, response))
        code = _whole(self._read(self._exit_code, response))
        job.status = self._status(response, code, number)
        job.exit_code = exit_code_of(job.status, code)
        job.signal = number if job.status != RUNNING else 0
        job.pid = _whole(self._read(self._pid, response)) or 0
        if isinstance(job, pb.QueryJobResponse):
            job.message = str(self._read(self._message, response) or "")
        for name, read in self._times.items():
            if (time := _timestamp(self._read(read, response))) is not None:
                getattr(job, name).CopyFrom(time)

    def _status(self, response: Message, code: int | None, number: int) -> str:
        """Return what the reported state means; a state that the dialect does not name as it is."""
        if self._state is None:
            if self._exit_code is None:
                return ""
            return RUNNING if code is None and not number else conclude(code, number)
        value = self._read(self._state, response)
        text = "" if value is None else str(value)
        found = (each for pattern, each in self._meanings if pattern.fullmatch(text))
        meaning = next(found, text)
        return conclude(code, number) if meaning == ENDED else meaning

    @staticmethod
    def _read(read: Callable[[Message], Any] | None, response: Message) -> Any:  # noqa: ANN401
        return None if read is None else read(response)

    def fill_limits(self, limits: pb.ResourceLimits, response: Message) -> None:
        """Write the reported limits into a canonical message, but those that are none, as -1."""
        for name, path, per_unit in self._limits:
            value = path.get(response)
            with suppress(ValueError, OverflowError):
                if value and value > 0:
                    setattr(limits, name, round(Fraction(value) / per_unit))


def reader(
    descriptor: Descriptor, source: Source, where: str, *kinds: str
) -> Callable[[Message], Any] | None:
    """Return a function that reads a value, or a part of it; None if no field is named.

    Raises:
        BrokenError: the field does not exist, or is of none of the kinds.
    """
    if not source:
        return None
    if not isinstance(source, Part):
        return FieldPath(descriptor, source, where).require(*kinds).get
    path = FieldPath(descriptor, source.field, where).require("string", "enum")
    pattern = pattern_of(source.pattern, where)

    def read(message: Message) -> str | None:
        found = pattern.search(str(path.get(message) or ""))
        if found is None:
            return None
        return found[1] if pattern.groups else found[0]

    return read


def pattern_of(text: str, where: str) -> re.Pattern[str]:
    """Return a regular expression.

    Raises:
        BrokenError: it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise BrokenError(f"{where}: invalid regular expression {text!r}: {error}") from error


def _whole(value: object) -> int | None:
    """Return a reported number of 32 bits; None if it is absent or no such number."""
    try:
        number = None if value is None else int(str(value))
    except ValueError:
        return None
    return number if number is not None and -_INT32_LIMIT <= number < _INT32_LIMIT else None


def _timestamp(value: object) -> Timestamp | None:
    """Return a reported time: a Timestamp, or a text of RFC 3339; None if it is neither."""
    time = Timestamp()
    if isinstance(value, Message):
        time.MergeFromString(value.SerializeToString())
        return time
    try:
        time.FromJsonString(str(value or ""))
    except ValueError:
        return None
    return time
