"""Loads a dialect: from a TOML file, or a built-in one by its name.

Keys that a table does not have, values of a wrong type and paths that a message does not have are
errors, which name the file, the table, the key, what was received and what is allowed.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from harness.dialects.command_line import CommandTransport
from harness.dialects.command_table import CommandTable
from harness.dialects.dialect import CANONICAL, Dialect, Transport
from harness.dialects.identity_scheme import WITHOUT_ROLES, Scheme
from harness.dialects.launch_recipe import LaunchTable
from harness.dialects.schema import compiled
from harness.dialects.stub import GrpcTransport
from harness.dialects.tables import (
    DeleteTable,
    GrpcTables,
    LimitsTable,
    ListTable,
    ProtocolTable,
    QueryTable,
    StartTable,
    StatusTable,
    StopTable,
    StreamTable,
    Table,
)
from harness.record.terms import ADDED, REPORTED, STOP_GRACE_S, UNKNOWN_ID, Terms
from harness.record.verdict import BrokenError

BUILTIN: Final = Path(__file__).parent / "builtin"
# The keys of [stream] that together are the added fields of StreamLogs.
_OFFSETS: Final = (
    "offset", "missed_bytes", "from_offset", "tail_bytes", "tail_lines", "no_follow",
)  # fmt: skip
_GRACE_MAX_S: Final = 60.0  # the checks' time limits allow no longer one
_REQUIRED: Final = ("start", "stop", "query", "stream")
# The words of msgspec's errors.
_WORDS: Final = {
    "array": "a list", "object": "a table", "str": "a text", "int": "a number",
    "float": "a number", "bool": "true or false",
}  # fmt: skip
_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$\.?(?P<at>[^`]+)`$")
_MISSING: Final = re.compile(r"Object missing required field `(?P<key>[^`]*)`")
_WRONG_TYPE: Final = re.compile(r"Expected `(?P<allowed>[^`]*)`, got `(?P<got>[^`]*)`")
_WRONG_CHOICE: Final = re.compile(r"Invalid enum value (?P<got>.*)")
_UNKNOWN_KEY: Final = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<at>[^`]*)`)?")


class DialectFile(Table, frozen=True, kw_only=True):
    """A whole file."""

    name: str
    description: str = ""
    ids: Literal["uuid4", "text"] = "text"
    unknown_id: str = UNKNOWN_ID
    stop_grace_s: float = STOP_GRACE_S
    promises: tuple[str, ...] = ()
    status: StatusTable = StatusTable()
    identities: Scheme = WITHOUT_ROLES
    launch: LaunchTable | None = None
    command: CommandTable | None = None
    protocol: ProtocolTable | None = None
    start: StartTable | None = None
    stop: StopTable | None = None
    query: QueryTable | None = None
    stream: StreamTable | None = None
    delete: DeleteTable | None = None
    list: ListTable | None = None


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in dialects."""
    return (CANONICAL.name, *sorted(path.stem for path in BUILTIN.glob("*.toml")))


def load_dialect(source: str) -> Dialect:
    """Return a dialect: a built-in one by its name, or that of a TOML file.

    Raises:
        BrokenError: it cannot be read, or is wrong; says what to change.
    """
    if source == CANONICAL.name:
        return CANONICAL
    builtin = BUILTIN / f"{source}.toml"
    path = builtin if source in builtin_names() else Path(source)
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else None
        reason = reason or getattr(error, "strerror", None) or "no path"
        known = ", ".join(builtin_names())
        raise BrokenError(
            f"dialect {source!r}: {reason}; give a TOML file, or one of: {known}"
        ) from error
    try:
        file = msgspec.convert(_parsed(text), DialectFile)
        return _dialect(file, source if path is builtin else str(path.absolute()), path.parent)
    except msgspec.ValidationError as error:
        raise BrokenError(f"{path}: {_explained(str(error))}") from error
    except BrokenError as error:
        raise BrokenError(f"{path}: {error}") from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also a number of too many digits
        raise BrokenError(f"no TOML: {error}") from error
    except RecursionError as error:
        raise BrokenError("no TOML: its lists or tables are nested too deep") from error


def _explained(text: str) -> str:
    """Return msgspec's message in the file's words: where, what was received, what is allowed."""
    found = _UNKNOWN_KEY.search(text)
    if found is not None:
        parts = _parts(found["at"] or "")
        fields = msgspec.structs.fields(_struct(_kind_at(parts)))
        known = ", ".join(field.encode_name for field in fields)
        where = f"table [{'.'.join(parts)}]" if parts else "top level"
        return f"{where}: unknown key {found['key']!r}; it may have: {known}"
    place = _PLACE.search(text)
    at = place["at"] if place is not None else ""
    words = text.removesuffix(place[0]) if place is not None else text
    if missing := _MISSING.fullmatch(words):
        words = f"no key {missing['key']!r}, which is required"
    elif wrong := _WRONG_TYPE.fullmatch(words):
        allowed = " or ".join(_WORDS.get(each, each) for each in wrong["allowed"].split(" | "))
        words = f"got {_WORDS.get(wrong['got'], wrong['got'])}; it must be {allowed}"
    elif wrong := _WRONG_CHOICE.fullmatch(words):
        choices = map(str, _choices(_kind_at(_parts(at))))
        words = f"got {wrong['got']}; it must be one of {', '.join(choices)}"
    return f"{at}: {words}" if at else words


def _parts(at: str) -> list[str]:
    return [part for part in at.split(".") if part]


def _kind_at(at: list[str]) -> object:
    """Return the type at a path in the file, as msgspec writes paths: `command.query[0]`."""
    kind: object = DialectFile
    for name in at:
        fields = {field.name: field.type for field in msgspec.structs.fields(_struct(kind))}
        kind = fields.get(name.partition("[")[0], kind)
    return kind


def _choices(kind: object) -> tuple[object, ...]:
    """Return the values of the `Literal` in a type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for each in get_args(kind) for choice in _choices(each))


def _struct(kind: object) -> type[msgspec.Struct]:
    """Return the struct in a type such as `Struct | None`."""
    for each in (kind, *get_args(kind)):
        if isinstance(each, type) and issubclass(each, msgspec.Struct):
            return each
    return DialectFile


def _dialect(file: DialectFile, source: str, directory: Path) -> Dialect:
    if not 0 <= file.stop_grace_s <= _GRACE_MAX_S:
        raise BrokenError(f"stop_grace_s = {file.stop_grace_s:g}; it must be 0 to {_GRACE_MAX_S:g}")
    if not file.unknown_id:
        raise BrokenError("unknown_id = '': give a well-formed id of a job that no server has")
    transport, reports = _transport(file, directory)
    terms = Terms(
        dialect=file.name,
        own=False,
        uuids=file.ids == "uuid4",
        unknown_id=file.unknown_id,
        reports=reports,
        unknown_job=file.status.unknown_job,
        bad_id=file.status.bad_id,
        bad_command=file.status.bad_command,
        stop_grace_s=file.stop_grace_s,
        promises=file.promises,
        lacks=_lacks(file),
        one_output=file.stream is None or isinstance(file.stream.output, str),
    )
    launch = file.launch.recipe(directory) if file.launch is not None else None
    return Dialect(file.name, source, file.description, transport, terms, file.identities, launch)


def _lacks(file: DialectFile) -> tuple[str, ...]:
    """Return what a dialect does not name, of `ADDED`."""
    start, stop, stream = file.start, file.stop, file.stream
    if file.protocol is None or start is None or stop is None or stream is None:
        return file.command.lacks() if file.command is not None else ()
    limits = (start.limits, file.query.job.limits if file.query is not None else LimitsTable())
    named = {
        "limits": all(
            all((each.cpu, each.memory_bytes, each.io_weight, each.pids_max)) for each in limits
        ),
        "offset": all(getattr(stream, key) for key in _OFFSETS),
        "environment": start.environment,
        "working_directory": start.working_directory,
        "ListJobs": file.list is not None,
        "DeleteJob": file.delete is not None,
        "grace_period_ms": stop.grace_ms or stop.grace_s,
    }
    return tuple(name for name in ADDED if not named.get(name))


def _transport(file: DialectFile, directory: Path) -> tuple[Transport, tuple[str, ...]]:
    """Return how calls reach the server, and which fields of a query it reports."""
    if file.command is not None:
        both = [name for name in GrpcTables.__struct_fields__ if getattr(file, name) is not None]
        if both:
            raise BrokenError(f"[{both[0]}] is for gRPC, and [command] for programs: give one")
        names = file.command.names("query")
        return CommandTransport(file.command, directory), tuple(n for n in REPORTED if n in names)
    if file.protocol is None:
        raise BrokenError("neither [protocol] (gRPC) nor [command]: how is the server called?")
    missing = [name for name in _REQUIRED if getattr(file, name) is None]
    if missing:
        raise BrokenError(f"no table [{missing[0]}]; required are {', '.join(_REQUIRED)}")
    tables = msgspec.convert(
        {name: getattr(file, name) for name in GrpcTables.__struct_fields__},
        GrpcTables,
        from_attributes=True,
    )
    transport = GrpcTransport(
        tables, _descriptors(file.protocol, directory), file.name, file.unknown_id, directory
    )
    job = tables.query.job
    named = {"status": True, **{name: bool(getattr(job, name)) for name in REPORTED[1:]}}
    return transport, tuple(name for name in REPORTED if named[name])


def _descriptors(table: ProtocolTable, directory: Path) -> bytes | None:
    """Return the descriptor set; None: the server describes itself."""
    given = [bool(table.proto), bool(table.descriptor_set), table.reflection]
    if sum(given) != 1:
        raise BrokenError("protocol: give one of proto, descriptor_set and reflection = true")
    if table.proto:
        imports = [directory / each for each in table.imports]
        return compiled(directory / table.proto, imports)
    if table.descriptor_set:
        try:
            return (directory / table.descriptor_set).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no path"
            raise BrokenError(
                f"protocol.descriptor_set: {table.descriptor_set!r}: {reason}"
            ) from error
    return None
