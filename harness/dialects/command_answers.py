"""What a program printed, as a canonical message: by regular expressions, or by paths in JSON.

A field of the message is named as in `jobworker.v1`, with dots for a nested one. What was not found
stays unset.
"""

import datetime as dt
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from harness.dialects.job_state import conclude, exit_code_of
from harness.dialects.signals import signal_number
from harness.record.terms import ENDED
from jobworker.v1 import jobworker_pb2 as pb

# Regular expressions with named groups, or canonical field -> path in JSON.
Answer = Sequence[str] | Mapping[str, str]

_INTEGERS: Final = frozenset(
    {
        FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
    }
)  # fmt: skip
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_SHOWN_CHARACTERS: Final = 200


class MismatchError(Exception):
    """The output is not what the dialect says; has one line with what was printed."""


def require_answer(
    answer: Answer,
    kind: Any,  # noqa: ANN401 - a message's descriptor, whose types differ
    where: str,
) -> None:
    """Return if an answer's fields exist.

    Raises:
        ValueError: names the field or the pattern, and the fields that exist.
    """
    if isinstance(answer, Mapping):
        names = list(answer)
    else:
        names = []
        for pattern in answer:
            try:
                names += re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"{where}: {pattern!r} is invalid: {error}") from None
    for name in names:
        if not _exists(kind, name.split(".")):
            fields = ", ".join(each.name for each in kind.fields)
            raise ValueError(f"{where}: {kind.name} has no field {name!r}; it has {fields}")


def _exists(kind: Any, path: list[str]) -> bool:  # noqa: ANN401 - as above
    repeated = False
    for name in path:
        if repeated or kind is None or name not in kind.fields_by_name:
            return False
        field = kind.fields_by_name[name]
        kind, repeated = field.message_type, field.is_repeated
    return True


def fill(
    message: Message, answer: Answer, output: str, errors: str, states: Mapping[str, str]
) -> None:
    """Set the fields of a message from what a program printed.

    Args:
        message: to fill.
        answer: how its fields are found.
        output: the program's standard output.
        errors: its standard error, in which patterns are searched, too.
        states: text of the program -> one of `job_state.MEANINGS`.

    Raises:
        MismatchError: the output is not JSON, or a value does not fit its field.
    """
    if isinstance(answer, Mapping):
        found = _by_paths(answer, parse_json(output))
    else:
        found = _by_patterns(answer, f"{output}\n{errors}")
    for name, value in found.items():
        _set(message, name, value, states)
    _conclude_state(message, found)


def fill_jobs(
    message: pb.ListJobsResponse, answer: Answer, output: str, states: Mapping[str, str]
) -> None:
    """Add a job for each line that a pattern matches, or for each element of JSON.

    Raises:
        MismatchError: see `fill`.
    """
    found: Iterator[Mapping[str, Any]]
    if isinstance(answer, Mapping):
        found = (_by_paths(answer, each) for each in _elements(output))
    else:
        lines = (_by_patterns(answer, line) for line in output.splitlines())
        found = (line for line in lines if line.get("job_id"))
    for values in found:
        job = message.jobs.add()
        for name, value in values.items():
            _set(job, name, value, states)
        _conclude_state(job, values)


def parse_json(output: str) -> Any:  # noqa: ANN401 - any JSON
    """Return a value in JSON.

    Raises:
        MismatchError: it is not JSON.
    """
    try:
        value = json.loads(output)
        json.dumps(value, ensure_ascii=False).encode()  # no text with half a character
    except (ValueError, RecursionError):
        raise MismatchError(f"printed {shown(output)}, which is not JSON") from None
    return value


def shown(text: str) -> str:
    """Return the beginning of a text in quotes, on one line."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return repr(short)


def _elements(output: str) -> list[Any]:
    """Return the elements of one JSON array, or of one JSON value on each line."""
    if not output.lstrip().startswith("["):
        return [parse_json(line) for line in output.splitlines() if line.strip()]
    return list(parse_json(output))


def _by_patterns(patterns: Sequence[str], text: str) -> dict[str, Any]:
    """Return the named groups; the first pattern that has one matched decides."""
    found: dict[str, Any] = {}
    for pattern in patterns:
        if (match := re.search(pattern, text, re.MULTILINE)) is not None:
            for name, value in match.groupdict().items():
                if value is not None:
                    found.setdefault(name, value)
    return found


def _by_paths(paths: Mapping[str, str], value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    found = {name: _at(value, path) for name, path in paths.items()}
    return {name: each for name, each in found.items() if each not in (None, "")}


def _at(value: Any, path: str) -> Any:  # noqa: ANN401 - any JSON
    """Return what is at a path such as `jobs.0.id` or `words.1:`; None if it is not there."""
    for name in filter(None, path.split(".")):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, list) and name[:-1].isdecimal() and name.endswith(":"):
            value = value[int(name[:-1]) :]
        else:
            return None
    return value


def _set(message: Any, path: str, value: Any, states: Mapping[str, str]) -> None:  # noqa: ANN401 - any message
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    kind = message.DESCRIPTOR.fields_by_name[name]
    try:
        if name == "status":
            message.status = states.get(str(value), str(value))
        elif name == "signal":
            message.signal = _signal(value)
        elif kind.type in _INTEGERS:
            setattr(message, name, int(value))
        elif kind.message_type is not None and kind.message_type.full_name == _TIMESTAMP:
            getattr(message, name).FromDatetime(_moment(value))
        elif kind.message_type is not None or kind.is_repeated:
            ParseDict({name: _without_nulls(value)}, message, ignore_unknown_fields=True)
        elif kind.type == FieldDescriptor.TYPE_BOOL:
            setattr(message, name, str(value).lower() not in _FALSE)
        else:
            setattr(message, name, str(value))
    except (ValueError, TypeError, OSError, OverflowError, ParseError) as error:
        raise MismatchError(f"printed {shown(str(value))} for {path}: {error}") from None


_FALSE: Final = frozenset({"false", "no", "0"})


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _moment(value: Any) -> dt.datetime:  # noqa: ANN401 - any JSON
    """Return a time from seconds since 1970, or from ISO 8601."""
    try:
        return dt.datetime.fromtimestamp(float(value), dt.UTC)
    except ValueError:
        moment = dt.datetime.fromisoformat(str(value))
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _signal(value: object) -> int:
    """Return a signal's number.

    Raises:
        ValueError: no signal has this name.
    """
    number = signal_number(value)
    if not number and str(value) not in {"0", "False"}:
        raise ValueError("no signal has this name")
    return number


def _conclude_state(message: Any, found: Container[str]) -> None:  # noqa: ANN401 - any message
    if "status" not in message.DESCRIPTOR.fields_by_name:
        return
    code = message.exit_code if "exit_code" in found else None
    if message.status == ENDED:
        message.status = conclude(code, message.signal)
    message.exit_code = exit_code_of(message.status, code)
