"""Translates requests and responses between `jobworker.v1` and a server's own messages.

All paths are resolved when a dialect is bound to its schema, so that a wrong one is an error
before the first call.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from harness.dialects.schema import FieldPath, Schema, UnfitValueError, message_class
from harness.dialects.signals import signal_number
from harness.dialects.tables import (
    DeleteTable,
    GrpcTables,
    LimitsTable,
    ListTable,
    Part,
    QueryTable,
    RpcTable,
    Source,
    StartTable,
    StateTable,
    StopTable,
    StreamTable,
)
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

RUNNING, EXITED, SIGNALED, ENDED = "running", "exited", "signaled", "ended"
ID_SEPARATOR: Final = "_"
_PER_CORE: Final = {"millicores": 1000.0, "cores": 1.0, "percent": 100.0}
_MILLICORES: Final = 1000


@dataclass(frozen=True, slots=True)
class Translation:
    """One rpc of the dialect.

    Attributes:
        path: its HTTP/2 path.
        request: canonical request -> the server's own.
        response: the server's own -> canonical.
        response_class: of the server's messages.
        skip_first: whether a stream's first message is not output.
    """

    path: str
    request: Callable[[Any], Message]
    response: Callable[[Message], Message]
    response_class: type[Message]
    skip_first: bool = False

    @staticmethod
    def serialize(message: Message) -> bytes:
        """Return a message's bytes."""
        return message.SerializeToString()


def translations(schema: Schema, tables: GrpcTables) -> dict[str, Translation]:
    """Return the rpcs that a dialect has, by their canonical names.

    Raises:
        BrokenError: a table does not fit the schema; names the table and the key.
    """
    found = {
        "StartJob": _start(schema, tables.start),
        "StopJob": _stop(schema, tables.stop),
        "QueryJob": _query(schema, tables.query),
        "StreamLogs": _stream(schema, tables.stream),
    }
    if tables.list is not None:
        found["ListJobs"] = _list(schema, tables.list)
    if tables.delete is not None:
        found["DeleteJob"] = _delete(schema, tables.delete)
    return found


class _Id:
    """A job's id: one field, or several whose values are joined by an underscore."""

    def __init__(self, descriptor: Descriptor, paths: str | list[str], where: str) -> None:
        texts = [paths] if isinstance(paths, str) else paths
        if not texts or not all(texts):
            raise BrokenError(f"{where}: got {paths!r}; name a field, or a list of fields")
        self._paths = [FieldPath(descriptor, text, where) for text in texts]

    def set(self, message: Message, job_id: str) -> None:
        *first, last = self._paths
        values = job_id.rsplit(ID_SEPARATOR, len(first))
        values = [""] * (len(self._paths) - len(values)) + values
        for path, value in zip((*first, last), values, strict=True):
            path.set(message, value)

    def get(self, message: Message) -> str:
        return ID_SEPARATOR.join(str(path.get(message) or "") for path in self._paths)


class _Request:
    """Makes requests of one rpc: the constants, then what the canonical request has."""

    def __init__(self, method: MethodDescriptor, table: RpcTable, where: str) -> None:
        self.descriptor: Descriptor = method.input_type
        self.where = where
        self._class = message_class(self.descriptor)
        self._constants = [
            (FieldPath(self.descriptor, path, f"{where}.constants"), value)
            for path, value in table.constants.items()
        ]
        try:
            self.new()
        except UnfitValueError as error:
            raise BrokenError(str(error)) from error

    def path(self, text: str, key: str) -> FieldPath | None:
        return FieldPath(self.descriptor, text, f"{self.where}.{key}") if text else None

    def new(self) -> Message:
        message = self._class()
        for path, value in self._constants:
            path.set(message, value)
        return message


def _bound(
    schema: Schema,
    table: RpcTable,
    where: str,
    *,
    streams: bool = False,
) -> tuple[MethodDescriptor, _Request, str]:
    method = schema.method(table.rpc, where)
    if method.client_streaming or method.server_streaming != streams:
        kind = "returns a stream" if streams else "takes and returns one message"
        raise BrokenError(f"{where}.rpc: {table.rpc} is not an rpc that {kind}")
    request = _Request(method, table, where)
    return method, request, f"/{schema.service.full_name}/{method.name}"


def _start(schema: Schema, table: StartTable) -> Translation:
    method, request, path = _bound(schema, table, "start")
    command, program = (
        request.path(table.command, "command"),
        request.path(table.program, "program"),
    )
    arguments = request.path(table.arguments, "arguments")
    if (command is None) == (program is None):
        raise BrokenError(
            "start: name either `command` (program and arguments in one field) or `program` and "
            "`arguments`"
        )
    environment = request.path(table.environment, "environment")
    directory = request.path(table.working_directory, "working_directory")
    limits = list(_limit_paths(request.descriptor, table.limits, "start.limits"))
    job_id = _Id(method.output_type, table.id, "start.id")

    def translate(canonical: pb.StartJobRequest) -> Message:
        message = request.new()
        words = [canonical.command_name, *canonical.command_args]
        if command is not None:
            command.set(message, words if command.is_repeated else shlex.join(words))
        if program is not None:
            program.set(message, words[0])
        if arguments is not None and words[1:]:
            whole = words[1:] if arguments.is_repeated else shlex.join(words[1:])
            arguments.set(message, whole)
        if environment is not None and canonical.environment:
            environment.set(message, dict(canonical.environment))
        if directory is not None and canonical.working_directory:
            directory.set(message, canonical.working_directory)
        for name, target, per_unit in limits:
            if canonical.limits.HasField(name):
                target.clear(message)
                target.set(message, getattr(canonical.limits, name) * per_unit)
        return message

    return Translation(
        path,
        translate,
        lambda response: pb.StartJobResponse(job_id=job_id.get(response)),
        message_class(method.output_type),
    )


def _limit_paths(
    descriptor: Descriptor, table: LimitsTable, where: str
) -> Iterator[tuple[Any, FieldPath, float]]:
    """Yield each named limit: its canonical field, its path, and the server's units in one."""
    per_millicore = _PER_CORE[table.cpu_unit] / _MILLICORES
    for name, text, per_unit in (
        ("cpu_millicores", table.cpu, per_millicore),
        ("memory_max_bytes", table.memory_bytes, 1),
        ("io_weight", table.io_weight, 1),
        ("pids_max", table.pids_max, 1),
    ):
        if text:
            yield name, FieldPath(descriptor, text, where), per_unit


def _stop(schema: Schema, table: StopTable) -> Translation:
    method, request, path = _bound(schema, table, "stop")
    job_id = _Id(request.descriptor, table.id, "stop.id")
    graces = [
        (request.path(table.grace_ms, "grace_ms"), 1),
        (request.path(table.grace_s, "grace_s"), 1000),
    ]

    def translate(canonical: pb.StopJobRequest) -> Message:
        message = request.new()
        job_id.set(message, canonical.job_id)
        for grace, unit_ms in graces:
            if grace is not None and canonical.HasField("grace_period_ms"):
                grace.set(message, canonical.grace_period_ms / unit_ms)
        return message

    return Translation(
        path,
        translate,
        lambda _: pb.StopJobResponse(success=True),
        message_class(method.output_type),
    )


def _query(schema: Schema, table: QueryTable) -> Translation:
    method, request, path = _bound(schema, table, "query")
    job_id = _Id(request.descriptor, table.id, "query.id")
    state = _State(method.output_type, table.job, "query.job")

    def translate(canonical: pb.QueryJobRequest) -> Message:
        message = request.new()
        job_id.set(message, canonical.job_id)
        return message

    def answer(response: Message) -> pb.QueryJobResponse:
        job = pb.QueryJobResponse()
        state.fill(job, response)
        state.fill_limits(job.limits, response)
        return job

    return Translation(path, translate, answer, message_class(method.output_type))


class _State:
    """Reads a job's state from a response."""

    def __init__(self, descriptor: Descriptor, table: StateTable, where: str) -> None:
        def read(source: Source, key: str) -> Callable[[Message], Any] | None:
            return _reader(descriptor, source, f"{where}.{key}")

        self._state = read(table.state, "state")
        self._exit_code = read(table.exit_code, "exit_code")
        self._signal = read(table.signal, "signal")
        self._pid = read(table.pid, "pid")
        self._message = read(table.message, "message")
        self._times = {
            "started_at": read(table.started_at, "started_at"),
            "ended_at": read(table.ended_at, "ended_at"),
        }
        self._limits = list(_limit_paths(descriptor, table.limits, f"{where}.limits"))
        self._meanings: list[tuple[re.Pattern[str], str]] = []
        for meaning in (RUNNING, EXITED, SIGNALED, ENDED):
            for text in getattr(table, meaning):
                pattern = _pattern(text, f"{where}.{meaning}")
                self._meanings.append((pattern, meaning))
        if isinstance(table.state, str) and table.state:
            values = FieldPath(descriptor, table.state, where).values()
            for pattern, meaning in self._meanings if values else ():
                if not any(pattern.fullmatch(value) for value in values):
                    raise BrokenError(
                        f"{where}.{meaning}: {pattern.pattern!r} is not a value of "
                        f"{table.state!r}; its values are {', '.join(values)}"
                    )

    def fill(self, job: pb.QueryJobResponse | pb.JobSummary, response: Message) -> None:
        """Write the state into a canonical message."""
        number = signal_number(self._read(self._signal, response))
        code = _whole(self._read(self._exit_code, response))
        job.status = self._status(response, code, number)
        # Go reports -1 as the exit code of a process that a signal ended.
        job.exit_code = code if code is not None and job.status != SIGNALED else 0
        job.signal = number if job.status != RUNNING else 0
        job.pid = _whole(self._read(self._pid, response)) or 0
        if isinstance(job, pb.QueryJobResponse):
            job.message = str(self._read(self._message, response) or "")
        for name, read in self._times.items():
            if (time := _timestamp(self._read(read, response))) is not None:
                getattr(job, name).CopyFrom(time)

    def _status(self, response: Message, code: int | None, number: int) -> str:
        """Return what the reported state means; a state that the dialect does not name as it is."""
        value = self._read(self._state, response)
        if self._state is None:
            meaning = RUNNING if code is None and not number else ENDED
        else:
            text = "" if value is None else str(value)
            found = (each for pattern, each in self._meanings if pattern.fullmatch(text))
            meaning = next(found, text)
        if meaning != ENDED:
            return meaning
        if number or (code is not None and code < 0):
            return SIGNALED
        return EXITED if code is not None else ENDED

    @staticmethod
    def _read(read: Callable[[Message], Any] | None, response: Message) -> Any:  # noqa: ANN401
        return None if read is None else read(response)

    def fill_limits(self, limits: pb.ResourceLimits, response: Message) -> None:
        """Write the reported limits into a canonical message."""
        for name, path, per_unit in self._limits:
            value = path.get(response)
            if value:
                setattr(limits, name, round(value / per_unit))


def _reader(descriptor: Descriptor, source: Source, where: str) -> Callable[[Message], Any] | None:
    """Return a function that reads a value, or a part of it; None if no field is named."""
    if not source:
        return None
    if not isinstance(source, Part):
        return FieldPath(descriptor, source, where).get
    path, pattern = FieldPath(descriptor, source.field, where), _pattern(source.pattern, where)

    def read(message: Message) -> str | None:
        found = pattern.search(str(path.get(message) or ""))
        if found is None:
            return None
        return found[1] if pattern.groups else found[0]

    return read


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise BrokenError(f"{where}: invalid regular expression {text!r}: {error}") from error


def _whole(value: object) -> int | None:
    """Return a reported number; None if it is absent or no number."""
    try:
        return None if value is None else int(str(value))
    except ValueError:
        return None


def _timestamp(value: object) -> Timestamp | None:
    """Return a reported time: a Timestamp, or a text of RFC 3339; None if it is neither."""
    time = Timestamp()
    if isinstance(value, Message) and value.DESCRIPTOR.full_name == Timestamp.DESCRIPTOR.full_name:
        time.MergeFromString(value.SerializeToString())
        return time
    try:
        time.FromJsonString(str(value or ""))
    except ValueError:
        return None
    return time


def _stream(schema: Schema, table: StreamTable) -> Translation:
    method, request, path = _bound(schema, table, "stream", streams=True)
    job_id = _Id(request.descriptor, table.id, "stream.id")
    output = method.output_type
    texts = [table.output] if isinstance(table.output, str) else table.output
    parts = [FieldPath(output, text, "stream.output") for text in texts]
    if not parts:
        raise BrokenError("stream.output: got []; name the field of the output")
    options = {
        name: request.path(getattr(table, name), name)
        for name in ("from_offset", "tail_bytes", "tail_lines", "no_follow")
    }
    positions = {
        name: _reader(output, getattr(table, name), f"stream.{name}")
        for name in ("offset", "missed_bytes")
    }

    def translate(canonical: pb.StreamLogsRequest) -> Message:
        message = request.new()
        job_id.set(message, canonical.job_id)
        for name, target in options.items():
            value = getattr(canonical, name)
            if target is not None and (value or canonical.WhichOneof("start") == name):
                target.clear(message)
                target.set(message, value)
        return message

    def answer(response: Message) -> pb.StreamLogsResponse:
        chunk = pb.StreamLogsResponse(message=_joined(part.get(response) for part in parts))
        for name, read in positions.items():
            if read is not None and (value := read(response)) is not None:
                setattr(chunk, name, value)
        return chunk

    return Translation(path, translate, answer, message_class(output), skip_first=table.skip_first)


def _joined(values: Iterable[bytes | str | None]) -> bytes:
    return b"".join(
        value.encode() if isinstance(value, str) else value for value in values if value
    )


def _list(schema: Schema, table: ListTable) -> Translation:
    method, request, path = _bound(schema, table, "list")
    jobs = FieldPath(method.output_type, table.jobs, "list.jobs")
    if not jobs.is_repeated or (item := jobs.message_type) is None:
        raise BrokenError(f"list.jobs: {table.jobs!r} is not a repeated message")
    job_id = _Id(item, table.id, "list.id")
    state = _State(item, table.job, "list.job")
    program = _reader(item, table.program, "list.program")
    arguments = _reader(item, table.arguments, "list.arguments")

    def summary(job: Message) -> pb.JobSummary:
        found = pb.JobSummary(job_id=job_id.get(job))
        state.fill(found, job)
        if program is not None:
            found.command_name = str(program(job) or "")
        if arguments is not None:
            found.command_args.extend(arguments(job) or ())
        return found

    return Translation(
        path,
        lambda _: request.new(),
        lambda response: pb.ListJobsResponse(jobs=map(summary, jobs.get(response) or ())),
        message_class(method.output_type),
    )


def _delete(schema: Schema, table: DeleteTable) -> Translation:
    method, request, path = _bound(schema, table, "delete")
    job_id = _Id(request.descriptor, table.id, "delete.id")

    def translate(canonical: pb.DeleteJobRequest) -> Message:
        message = request.new()
        job_id.set(message, canonical.job_id)
        return message

    return Translation(
        path, translate, lambda _: pb.DeleteJobResponse(), message_class(method.output_type)
    )
