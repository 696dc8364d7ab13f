"""Translates requests and responses between `jobworker.v1` and a server's own messages.

All paths are resolved when a dialect is bound to its schema, so that a wrong one is an error
before the first call.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from harness.dialects.job_state import JobState, limit_paths, reader
from harness.dialects.schema import FieldPath, Schema, UnfitValueError, message_class
from harness.dialects.tables import (
    DeleteTable,
    GrpcTables,
    ListTable,
    QueryTable,
    RpcTable,
    StartTable,
    StopTable,
    StreamTable,
)
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

# A character that ids do not have, so that an id can be split into its parts again.
ID_SEPARATOR: Final = "|"


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
    """A job's id: one field, or several whose values are joined by `ID_SEPARATOR`."""

    def __init__(self, descriptor: Descriptor, paths: str | list[str], where: str) -> None:
        texts = [paths] if isinstance(paths, str) else paths
        if not texts or not all(texts):
            raise BrokenError(f"{where}: got {paths!r}; name a field, or a list of fields")
        self._paths = [
            FieldPath(descriptor, text, where).require("string", "integer") for text in texts
        ]

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

    def path(self, text: str, key: str, *kinds: str, can_repeat: bool = False) -> FieldPath | None:
        if not text:
            return None
        path = FieldPath(self.descriptor, text, f"{self.where}.{key}")
        return path.require(*kinds, can_repeat=can_repeat)

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
    given = [bool(text) for text in (table.command, table.program, table.arguments)]
    if given not in ([True, False, False], [False, True, True]):
        raise BrokenError(
            "start: name either `command` (program and arguments in one field) or `program` and "
            "`arguments`"
        )
    command = request.path(table.command, "command", "string", can_repeat=True)
    program = request.path(table.program, "program", "string")
    arguments = request.path(table.arguments, "arguments", "string", can_repeat=True)
    environment = request.path(table.environment, "environment", "map")
    directory = request.path(table.working_directory, "working_directory", "string")
    limits = list(limit_paths(request.descriptor, table.limits, "start.limits"))
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
                value = getattr(canonical.limits, name) * per_unit
                target.set(message, int(value) if value.is_integer() else float(value))
        return message

    return Translation(
        path,
        translate,
        lambda response: pb.StartJobResponse(job_id=job_id.get(response)),
        message_class(method.output_type),
    )


def _stop(schema: Schema, table: StopTable) -> Translation:
    method, request, path = _bound(schema, table, "stop")
    job_id = _Id(request.descriptor, table.id, "stop.id")
    graces = [
        (request.path(table.grace_ms, "grace_ms", "integer", "float"), 1),
        (request.path(table.grace_s, "grace_s", "integer", "float"), 1000),
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
    state = JobState(method.output_type, table.job, "query.job")

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


def _stream(schema: Schema, table: StreamTable) -> Translation:
    method, request, path = _bound(schema, table, "stream", streams=True)
    job_id = _Id(request.descriptor, table.id, "stream.id")
    output = method.output_type
    texts = [table.output] if isinstance(table.output, str) else table.output
    parts = [FieldPath(output, text, "stream.output").require("bytes", "string") for text in texts]
    if not parts:
        raise BrokenError("stream.output: got []; name the field of the output")
    options = {
        name: request.path(getattr(table, name), name, *kinds)
        for name, kinds in (
            ("from_offset", ["integer"]),
            ("tail_bytes", ["integer"]),
            ("tail_lines", ["integer"]),
            ("no_follow", ["bool"]),
        )
    }
    positions = {
        name: reader(output, getattr(table, name), f"stream.{name}", "integer")
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
            if read is not None and (value := read(response)) is not None and value >= 0:
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
    item = jobs.message_type
    if not jobs.is_repeated or item is None:
        raise BrokenError(f"list.jobs: {table.jobs!r} is not a repeated message")
    job_id = _Id(item, table.id, "list.id")
    state = JobState(item, table.job, "list.job", is_required=False)
    program = reader(item, table.program, "list.program", "string")
    arguments = None
    if table.arguments:
        arguments = FieldPath(item, table.arguments, "list.arguments").require_list("string")

    def summary(job: Message) -> pb.JobSummary:
        found = pb.JobSummary(job_id=job_id.get(job))
        state.fill(found, job)
        if program is not None:
            found.command_name = str(program(job) or "")
        if arguments is not None:
            found.command_args.extend(arguments.get(job) or ())
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
