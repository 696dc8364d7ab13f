"""Dialects: files that are wrong, paths in messages, and what a translation makes of them."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from harness.checks import ALL
from harness.dialects import tables as tables_module
from harness.dialects.dialect import CANONICAL, RPCS, Dialect
from harness.dialects.load import BUILTIN, DialectFile, builtin_names, load_dialect
from harness.dialects.schema import FieldPath, Schema, UnfitValueError, compiled, message_class
from harness.dialects.stub import DialectError, GrpcTransport
from harness.dialects.translation import Translation
from harness.record.history import History
from harness.record.terms import OWN_TERMS, UNKNOWN_ID, Terms, terms_of
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

DIALECTS = Path(__file__).parents[1] / "dialects"
UNITS = (DIALECTS / "units.toml").read_text()
# A replacement in a dialect that is right, and what the error then says.
WRONG = {
    'rpc = "Launch"': ('rpc = "Lunch"', "start.rpc: units.v1.Units has no rpc 'Lunch'; it has: La"),
    'program = "program"': (
        'program = "programme"',
        "start.program: message units.v1.LaunchRequest has no field 'programme'; it has: program,",
    ),
    "[stop]": ("[halt]", "top level: unknown key 'halt'; it may have: name, "),
    'state = "state"': ('sate = "state"', "table [query.job]: unknown key 'sate'; it may have: st"),
    '["STATE_RUNNING"]': (
        '["RUNNING"]',
        "query.job.running: 'RUNNING' is not a value of 'state'; its values are STATE_UNKNOWN, ",
    ),
    'exit_code = "exit_code"': ("exit_code = 3", "job.exit_code: got a number; it must be a text"),
    'signal = "signal"': (
        'signal = { field = "signal", pattern = "(" }', "invalid regular expression '('",
    ),
    'proto = "units.proto"': ('proto = "other.proto"', "other.proto' is not a file"),
    'service = "units.v1.Units"': ('service = "Units"', "the schema has: units.v1.Units"),
    'output = "output"': ('output = "output.data"', "'output' in 'output.data' is a bytes, not a"),
    'arguments = "args"': (
        'arguments = "args"\nconstants = { args = 3 }',
        "start.constants: 'args' is a repeated string and cannot be 3",
    ),
    'name = "units"': ('name = "units', "no TOML: "),
    "name = ": ('unknown_id = ""\nname = ', "unknown_id = '': give a well-formed id of a job that"),
    'ids = "uuid4"': ('ids = "uuid5"', "uuid5"),
    "promises = ": ("stop_grace_s = 61\npromises = ", "stop_grace_s = 61; it must be 0 to 60"),
    "[protocol]": ('[command]\nstart = ["x"]\n[protocol]', "command: no key 'query', which is r"),
    'roles = "OU"': ('roles = "tokens"', "unsupported"),
}  # fmt: skip


PAGE = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text()


def test_the_example_of_the_page_is_a_dialect(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert load_dialect(written(example, tmp_path)).terms.uuids


def test_the_page_has_each_key_each_own_promise_and_each_built_in_dialect() -> None:
    tables = (
        tables_module.ProtocolTable, tables_module.StartTable, tables_module.StopTable,
        tables_module.StateTable, tables_module.QueryTable, tables_module.StreamTable,
        tables_module.ListTable, tables_module.LimitsTable, tables_module.StatusTable,
    )  # fmt: skip
    keys = {key for table in tables for key in table.__struct_fields__} | set(
        DialectFile.__struct_fields__
    )
    assert not {key for key in keys if f"`{key}`" not in PAGE and f"[{key}]" not in PAGE
                and f".{key}]" not in PAGE}  # fmt: skip
    own = re.search(r"\| check \| promise \|\n.*?\n(.*?)\n\n", PAGE, flags=re.DOTALL)
    assert own is not None
    rows = [f"| `{check.name}` | {check.guarantee} |" for check in ALL if check.ours]
    assert own[1].splitlines() == rows
    for name in builtin_names():
        assert f"| `{name}` |" in PAGE


def test_each_check_speaks_by_the_dialect_of_its_target() -> None:
    silent = []
    for path in (Path(__file__).parents[2] / "harness" / "checks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "Client", "ConcurrentReaders", "JobHost"
            }:  # fmt: skip
                names = {keyword.arg for keyword in node.keywords}
                silent += [] if "dialect" in names else [f"{path.name}:{node.lineno}"]
    assert not silent, "give dialect=stage.dialect"


def written(text: str, directory: Path) -> str:
    for path in DIALECTS.glob("*.proto"):
        (directory / path.name).write_text(path.read_text())
    file = directory / "dialect.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("right", WRONG)
def test_an_error_names_the_file_the_key_and_what_is_allowed(right: str, tmp_path: Path) -> None:
    wrong, says = WRONG[right]
    assert UNITS.count(right) >= 1
    source = written(UNITS.replace(right, wrong, 1), tmp_path)
    with pytest.raises(BrokenError) as caught:
        load_dialect(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["no-such-dialect", "/", "/dev/null", __file__, "a\0b"])
def test_what_is_no_dialect_is_one_line(source: str) -> None:
    with pytest.raises(BrokenError) as caught:
        load_dialect(source)
    assert "UTF-8" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no key 'name', which is required"),
        ("name = 3", "name: got a number; it must be a text"),
        ('name = "x"', "neither [protocol] (gRPC) nor [command]: how is the server called?"),
        ("name = \udcff", "not UTF-8"),
        ("a = " + "[" * 3000 + "]" * 3000, "no TOML: its lists or tables are nested too deep"),
        ("a = " + "9" * 5000, "no TOML: "),
        ('name = "x"\n[command]\nstart = ["x"]', "command: no key 'query', which is required"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "dialect.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BrokenError) as caught:
        load_dialect(str(file))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


GRPC_TABLES = {
    "protocol": 'service = "x"',
    "start": 'rpc = "x"\nid = "x"',
    "query": 'rpc = "x"\nid = "x"\njob = {}',
    "list": 'rpc = "x"\nid = "x"\njobs = "x"',
}


@pytest.mark.parametrize("name", GRPC_TABLES)
def test_a_dialect_of_programs_has_no_table_of_grpc(name: str, tmp_path: Path) -> None:
    programs = (BUILTIN / "systemd.toml").read_text()
    source = written(f"{programs}\n[{name}]\n{GRPC_TABLES[name]}", tmp_path)
    with pytest.raises(BrokenError, match=rf"\[{name}\] is for gRPC, and \[command\] for programs"):
        load_dialect(source)


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_dialect_is_valid_and_can_be_loaded_again_by_its_source(name: str) -> None:
    dialect = load_dialect(name)
    assert load_dialect(dialect.source).terms == dialect.terms
    assert dialect.terms.own == (name == CANONICAL.name)


def test_a_descriptor_set_serves_as_its_proto_does(tmp_path: Path) -> None:
    (tmp_path / "units.binpb").write_bytes(compiled(DIALECTS / "units.proto"))
    text = UNITS.replace('proto = "units.proto"', 'descriptor_set = "units.binpb"')
    request = pb.StartJobRequest(command_name="echo", command_args=["a"])
    ours = load_dialect(written(text, tmp_path)).raw(request)
    assert ours == load_dialect(str(DIALECTS / "units.toml")).raw(request)
    (tmp_path / "units.binpb").write_bytes(b"\x0a\x05nonsense")
    with pytest.raises(BrokenError, match="cannot be read"):
        load_dialect(written(text, tmp_path))


def bound(dialect: Dialect) -> dict[str, Translation]:
    assert isinstance(dialect.transport, GrpcTransport)
    found = dialect.transport._bound
    assert found is not None
    return found


@pytest.fixture(scope="module")
def nested() -> dict[str, Translation]:
    return bound(load_dialect(str(DIALECTS / "nested.toml")))


@pytest.fixture(scope="module")
def required() -> Schema:
    return Schema(compiled(DIALECTS / "required.proto"), "required.Required")


def test_a_command_is_one_list_and_an_id_of_two_parts_returns_unchanged(
    nested: dict[str, Translation],
) -> None:
    request: Any = nested["StartJob"].request(
        pb.StartJobRequest(command_name="echo", command_args=["a b", ""])
    )
    assert list(request.job.command) == ["echo", "a b", ""]
    response: Any = nested["StartJob"].response_class()
    response.job.id.prefix, response.job.id.suffix = "job_1", "part_2"
    started: Any = nested["StartJob"].response(response)
    stop: Any = nested["StopJob"].request(pb.StopJobRequest(job_id=started.job_id))
    assert (stop.id.prefix, stop.id.suffix) == ("job_1", "part_2")


@pytest.mark.parametrize(
    ("state", "status", "exit_code"),
    [
        ({"running": {}}, "running", 0),
        ({"ended": {"exit_code": 3}}, "exited", 3),
        ({"ended": {"exit_code": 0}}, "exited", 0),
        ({"ended": {"exit_code": -1}}, "signaled", 0),
        ({}, "", 0),
    ],
)
def test_a_oneof_is_a_state_and_a_negative_exit_code_a_signal(
    state: dict[str, Any], status: str, exit_code: int, nested: dict[str, Translation]
) -> None:
    query = nested["QueryJob"]
    job: Any = query.response(query.response_class(job={"pid": 7, **state}))
    assert (job.status, job.exit_code, job.pid) == (status, exit_code, 7)


def test_outputs_that_stand_apart_are_joined_and_constants_are_sent(
    nested: dict[str, Translation],
) -> None:
    stream = nested["StreamLogs"]
    request: Any = stream.request(pb.StreamLogsRequest(job_id="job_1", from_offset=7))
    assert request.from_beginning
    chunk: Any = stream.response(stream.response_class(stdout=b"out", stderr=b"err"))
    assert chunk.message == b"outerr"
    assert not chunk.HasField("offset")


@pytest.mark.parametrize(
    ("text", "status", "exit_code", "number"),
    [
        ("running", "running", 0, 0),
        ("exit status 3", "exited", 3, 0),
        ("signal: killed", "signaled", 0, 9),
        ("signal: user defined signal 1", "signaled", 0, 10),
        ("lost", "lost", 0, 0),
    ],
)
def test_state_exit_code_and_signal_are_parts_of_one_text(
    text: str, status: str, exit_code: int, number: int, tmp_path: Path
) -> None:
    source = (DIALECTS / "required.toml").read_text()
    source = source.replace("reflection = true", 'proto = "required.proto"')
    query = bound(load_dialect(written(source, tmp_path)))["QueryJob"]
    job: Any = query.response(query.response_class(status=text))
    assert (job.status, job.exit_code, job.signal) == (status, exit_code, number)


def test_a_value_that_a_field_cannot_have_is_not_sent(tmp_path: Path) -> None:
    source = (DIALECTS / "required.toml").read_text()
    source = source.replace("reflection = true", 'proto = "required.proto"')
    dialect = load_dialect(written(source, tmp_path))
    with pytest.raises(UnfitValueError, match="'id' is a uint64 and cannot be 'x'"):
        bound(dialect)["QueryJob"].request(pb.QueryJobRequest(job_id="x"))


def path_of(schema: Schema, message: str, text: str) -> tuple[FieldPath, Message]:
    descriptor = schema.service.file.message_types_by_name[message]
    return FieldPath(descriptor, text, "here"), message_class(descriptor)()


@pytest.mark.parametrize(
    ("message", "text", "value"),
    [
        ("StartRequest", "cpu", 0.5),
        ("StartRequest", "memory_bytes", 7),
        ("StartRequest", "command_line", "x"),
        ("TailResponse", "content", b"x"),
    ],
)
def test_a_path_returns_what_was_set(
    message: str, text: str, value: object, required: Schema
) -> None:
    path, empty = path_of(required, message, text)
    path.set(empty, value)
    assert path.get(empty) == value
    path.clear(empty)
    assert not path.get(empty)


def test_limits_replace_constants_in_the_unit_of_the_server(tmp_path: Path) -> None:
    source = (DIALECTS / "required.toml").read_text()
    source = source.replace("reflection = true", 'proto = "required.proto"').replace(
        "[stop]",
        '[start.limits]\ncpu = "cpu"\ncpu_unit = "cores"\nmemory_bytes = "memory_bytes"\n[stop]',
    )
    start = bound(load_dialect(written(source, tmp_path)))["StartJob"]
    plain: Any = start.request(pb.StartJobRequest(command_name="true"))
    assert (plain.cpu, plain.memory_bytes) == (0.5, 100_000_000)
    limits = pb.ResourceLimits(cpu_millicores=1500, memory_max_bytes=7)
    limited: Any = start.request(pb.StartJobRequest(command_name="a b", limits=limits))
    assert (limited.cpu, limited.memory_bytes) == (1.5, 7)
    assert limited.command_line == "'a b'"


def test_an_rpc_that_the_dialect_lacks_is_unimplemented() -> None:
    dialect = load_dialect(str(DIALECTS / "units.toml"))
    lacking = [rpc for rpc in RPCS if not dialect.transport.path(rpc)]
    assert lacking == ["ListJobs", "DeleteJob"]
    error = DialectError(grpc.StatusCode.UNIMPLEMENTED, "why")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "why")


def test_a_dialect_promises_only_what_its_file_names() -> None:
    terms = load_dialect(str(DIALECTS / "units.toml")).terms
    assert terms.has_promised("lifecycle.last-words")
    assert not terms.has_promised("lifecycle.shutdown")
    assert OWN_TERMS.has_promised("lifecycle.shutdown")
    assert terms.is_status("ended", "signaled")
    assert not OWN_TERMS.is_status("ended", "signaled")
    assert terms_of(History([terms])) is terms
    assert terms_of(History([])) is OWN_TERMS


@pytest.mark.parametrize(
    ("terms", "admitted"),
    [
        (OWN_TERMS, {"NOT_FOUND"}),
        (Terms(own=False), {"NOT_FOUND", "UNKNOWN", "OK", "INTERNAL"}),
    ],
)
def test_a_caller_was_admitted_if_it_was_not_refused(terms: Terms, admitted: Iterable[str]) -> None:
    codes = ("NOT_FOUND", "UNKNOWN", "OK", "INTERNAL", "PERMISSION_DENIED", "UNAVAILABLE", "")
    assert {code for code in codes if terms.is_admitted(code)} == set(admitted)


def test_the_id_that_no_job_has_is_a_uuid_by_default() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f-]{17,}", UNKNOWN_ID)
