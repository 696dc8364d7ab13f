"""The tables of a dialect's file that say how a server is called by gRPC.

A field is named by its path in the message: `job.spec.command`. A response's field may also be a
table, whose pattern takes a part of a text.
"""

from typing import Any, Final, Literal

import grpc
import msgspec


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of a dialect's file: keys that it does not have are errors."""


class Part(Table, frozen=True, kw_only=True):
    """A part of a response's text: the first group of a regular expression that is found in it."""

    field: str
    pattern: str


Source = str | Part
# Statuses of calls that a server refuses.
REFUSALS: Final = frozenset(code.name for code in grpc.StatusCode) - {"OK"}


class ProtocolTable(Table, frozen=True, kw_only=True):
    """Where the messages are described: one of a .proto file, a descriptor set, or reflection."""

    service: str
    proto: str = ""
    imports: list[str] = []
    descriptor_set: str = ""
    reflection: bool = False


class LimitsTable(Table, frozen=True, kw_only=True):
    """Paths of limits."""

    cpu: str = ""
    cpu_unit: Literal["millicores", "cores", "percent"] = "millicores"
    memory_bytes: str = ""
    io_weight: str = ""
    pids_max: str = ""


class RpcTable(Table, frozen=True, kw_only=True):
    """An rpc: its name, and values that each of its requests has."""

    rpc: str
    constants: dict[str, Any] = {}


class StartTable(RpcTable, frozen=True, kw_only=True):
    """Paths of a start's request, and of the id in its response.

    `command` is the program with its arguments: a repeated field, or one string that is quoted for
    a shell. Otherwise `program` and `arguments` stand apart.
    """

    id: str | list[str]
    command: str = ""
    program: str = ""
    arguments: str = ""
    environment: str = ""
    working_directory: str = ""
    limits: LimitsTable = LimitsTable()


class StopTable(RpcTable, frozen=True, kw_only=True):
    """Paths of a stop's request."""

    id: str | list[str]
    grace_ms: str = ""
    grace_s: str = ""


class StateTable(Table, frozen=True, kw_only=True):
    """Paths of a job's state in a response; what each state means, as regular expressions."""

    state: Source = ""
    running: list[str] = []
    exited: list[str] = []
    signaled: list[str] = []
    ended: list[str] = []
    exit_code: Source = ""
    signal: Source = ""
    pid: str = ""
    started_at: str = ""
    ended_at: str = ""
    message: str = ""
    limits: LimitsTable = LimitsTable()


class QueryTable(RpcTable, frozen=True, kw_only=True):
    """Paths of a query's request, and of the job in its response."""

    id: str | list[str]
    job: StateTable


class StreamTable(RpcTable, frozen=True, kw_only=True):
    """Paths of a stream's request, and of the output in its messages: one field, or several."""

    id: str | list[str]
    output: str | list[str]
    offset: str = ""
    missed_bytes: str = ""
    from_offset: str = ""
    tail_bytes: str = ""
    tail_lines: str = ""
    no_follow: str = ""
    skip_first: bool = False


class ListTable(RpcTable, frozen=True, kw_only=True):
    """Path of the jobs in a list's response; the other paths begin at one of them."""

    jobs: str
    id: str | list[str]
    program: str = ""
    arguments: str = ""
    job: StateTable = StateTable()


class DeleteTable(RpcTable, frozen=True, kw_only=True):
    """Path of the id in a deletion's request."""

    id: str | list[str]


class StatusTable(Table, frozen=True, kw_only=True):
    """The statuses that the server documents, where they are not the usual ones.

    Raises:
        ValueError: a name is of no status, or a list is empty.
    """

    unknown_job: tuple[str, ...] = ("NOT_FOUND",)
    bad_id: tuple[str, ...] = ("INVALID_ARGUMENT", "NOT_FOUND")
    bad_command: tuple[str, ...] = (
        "NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "INTERNAL", "ABORTED",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            names = getattr(self, key)
            if not names or not REFUSALS.issuperset(names):
                rule = f"give at least one of {', '.join(sorted(REFUSALS))}"
                raise ValueError(f"{key} = {list(names)}; {rule}")


class GrpcTables(Table, frozen=True, kw_only=True):
    """All tables about gRPC."""

    protocol: ProtocolTable
    start: StartTable
    stop: StopTable
    query: QueryTable
    stream: StreamTable
    list: ListTable | None = None
    delete: DeleteTable | None = None
