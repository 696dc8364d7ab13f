"""Dialects: which types of field each key takes, and what a server's odd values become."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from harness.dialects.job_state import conclude
from harness.dialects.load import load_dialect
from harness.dialects.schema import UnfitValueError, compiled
from harness.dialects.stub import GrpcTransport
from harness.dialects.translation import Translation
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

PROTO = """\
syntax = "proto3";
import "google/protobuf/timestamp.proto";
service Server {
  rpc Start(StartRequest) returns (Id);
  rpc Stop(StopRequest) returns (Id);
  rpc Query(Id) returns (Job);
  rpc Stream(StreamRequest) returns (stream Chunk);
  rpc List(Id) returns (Jobs);
}
message Part { string text = 1; }
message Wrapper { int32 value = 1; }
message Id { string id = 1; bytes raw = 2; Part part = 3; oneof either { string a = 4; } }
message StartRequest {
  string program = 1; repeated string args = 2; string line = 3; int32 number = 4;
  map<string, string> environment = 5; double real = 6; string memory = 7;
}
message StopRequest { string id = 1; int32 seconds = 2; }
message Job {
  string id = 1; string state = 2; int32 code = 3; optional int32 set_code = 4; int64 big = 5;
  Wrapper wrapped = 6; string text = 7; google.protobuf.Timestamp time = 8; double memory = 9;
  repeated string args = 10; Part part = 11; Job job = 12;
}
message StreamRequest { string id = 1; bool only = 2; uint64 offset = 3; }
message Chunk {
  bytes data = 1; repeated string lines = 2; int64 offset = 3; string place = 4;
  oneof either { bytes a = 5; }
}
message Jobs { repeated Job jobs = 1; }
"""
TABLES: dict[str, str] = {
    "protocol": 'descriptor_set = "server.binpb"\nservice = "Server"',
    "start": 'rpc = "Start"\nid = "id"\nprogram = "program"\narguments = "args"',
    "stop": 'rpc = "Stop"\nid = "id"',
    "query": 'rpc = "Query"\nid = "id"',
    "query.job": 'state = "state"\nrunning = ["running"]\nended = ["ended"]\nexit_code = "code"',
    "stream": 'rpc = "Stream"\nid = "id"\noutput = "data"',
}
STOP = 'rpc = "Stop"\nid = "id"\n'
PROTOCOL = 'service = "Server"\n'
START = 'rpc = "Start"\nid = "id"\n'
STREAM = 'rpc = "Stream"\nid = "id"\n'
LIST = 'rpc = "List"\njobs = "jobs"\nid = "id"\n'
STATE = 'state = "state"\nrunning = ["running"]\nended = ["ended"]\n'


@functools.cache
def described() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "server.proto"
        file.write_text(PROTO)
        return compiled(file)


def load(directory: Path, **tables: str) -> dict[str, Translation]:
    """Return the rpcs of a dialect with some tables in place of the right ones; `__` is a dot."""
    (directory / "server.binpb").write_bytes(described())
    merged = TABLES | {name.replace("__", "."): table for name, table in tables.items()}
    lines = ['name = "server"']
    for name, table in merged.items():
        lines += [f"[{name}]", table]
    file = directory / "dialect.toml"
    file.write_text("\n".join(lines))
    transport = load_dialect(str(file)).transport
    assert isinstance(transport, GrpcTransport)
    assert transport._bound is not None
    return transport._bound


@pytest.mark.parametrize(
    ("table", "text", "says"),
    [
        ("start", START + 'command = "line"\narguments = "args"', "start: name either `command`"),
        ("start", START + 'program = "program"', "start: name either `command`"),
        (
            "start",
            START + 'command = "number"',
            "start.command: 'number' is a int32; it must be: s",
        ),
        ("start", START + 'command = "line"\nenvironment = "args"', "start.environment: "),
        (
            "start",
            START.replace('"id"', '"raw"') + 'command = "line"',
            "start.id: 'raw' is a bytes",
        ),
        (
            "start",
            START.replace('"id"', '"part"') + 'command = "line"',
            "start.id: 'part' is a Part",
        ),
        (
            "start",
            START.replace('"id"', '"either"') + 'command = "line"',
            "is a oneof; it must be: s",
        ),
        (
            "start",
            START + 'command = "line"\nlimits.memory_bytes = "memory"',
            "start.limits: 'memory'",
        ),
        (
            "start",
            START + 'command = "line"\nlimits = { cpu = "number", cpu_unit = "cores" }',
            "start.limits: 'number' is a int32; it must be: float",
        ),
        (
            "stop",
            'rpc = "Stop"\nid = "id"\ngrace_s = "id"',
            "stop.grace_s: 'id' is a string; it mus",
        ),
        (
            "query.job",
            'exit_code = "code"',
            "query.job.exit_code: 'code' is 0 in running jobs, too",
        ),
        ("query.job", 'exit_code = "job.code"', "is 0 in running jobs, too; name state"),
        ("query.job", 'pid = "code"', "query.job: name state, or an exit_code that is unset in ru"),
        ("query.job", 'signal = "text"', "query.job: name state, or an exit_code that is unset in"),
        (
            "query.job",
            'running = ["x"]\nexit_code = "set_code"',
            "query.job.running: a meaning of no ",
        ),
        (
            "query.job",
            'state = "state"',
            "query.job: no meaning of 'state'; give lists of its values",
        ),
        (
            "query.job",
            STATE + 'started_at = "big"',
            "it must be: google.protobuf.Timestamp or string",
        ),
        (
            "query.job",
            STATE + 'signal = "part"',
            "query.job.signal: 'part' is a Part; it must be: i",
        ),
        (
            "query.job",
            STATE + 'limits.memory_bytes = "text"',
            "query.job.limits: 'text' is a string",
        ),
        (
            "stream",
            STREAM + 'output = "lines"',
            "stream.output: 'lines' is a repeated string; it mu",
        ),
        (
            "stream",
            STREAM + 'output = "either"',
            "stream.output: 'either' is a oneof; it must be: b",
        ),
        (
            "stream",
            STREAM + 'output = "data"\noffset = "place"',
            "stream.offset: 'place' is a string",
        ),
        (
            "stream",
            STREAM + 'output = "data"\nno_follow = "offset"',
            "stream.no_follow: 'offset' is a",
        ),
        (
            "list",
            LIST + 'arguments = "text"',
            "list.arguments: 'text' is a string; it must be: repe",
        ),
        ("stop", STOP + "constants.seconds = inf", "'seconds' is a int32 and cannot be inf: "),
        ("stop", STOP + "constants.seconds = 1.5", "cannot be 1.5: not a whole number"),
        ("stop", STOP.replace('"Stop"', "3"), "stop.rpc: got a number; it must be a text"),
        ("query.job", 'exit_code = { field = "text" }', "no key 'pattern', which is required"),
        ("identities", 'roles = "ou"', "identities.roles: got 'ou'; it must be one of extension, "),
        ("identities", 'user.may = ["x"]', "identities.user.may[0]: got 'x'; it must be one of s"),
        ("status", 'unknown_job = "A"', "status.unknown_job: got a text; it must be a list"),
        ("status", 'unknown_job = ["NOTFOUND"]', "status: unknown_job = ['NOTFOUND']; give at le"),
        ("status", "bad_command = []", "status: bad_command = []; give at least one of ABORTED, A"),
        ("status", 'bad_id = ["OK"]', "status: bad_id = ['OK']; give at least one of ABORTED, AL"),
        ("protocol", PROTOCOL + 'proto = "a\\u0000b"', "protocol.proto: "),
        ("protocol", PROTOCOL + 'descriptor_set = "a\\u0000b"', "'a\\x00b': no path"),
        (
            "protocol",
            PROTOCOL + 'proto = "dialect.toml"\nimports = ["nowhere"]',
            "nowhere' is not a directory",
        ),
    ],
)
def test_a_wrong_value_is_one_line_when_the_dialect_is_loaded(
    table: str, text: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokenError) as caught:
        load(tmp_path, **{table: text})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ['"set_code"', '"wrapped.value"', "{field='text', pattern='.+'}"])
def test_without_a_state_a_job_runs_until_it_has_an_exit_code(code: str, tmp_path: Path) -> None:
    query = load(tmp_path, query__job=f"exit_code = {code}")["QueryJob"]
    running: Any = query.response(query.response_class())
    assert running.status == "running"
    ended = query.response_class(set_code=3, wrapped={"value": 3}, text="3")
    job: Any = query.response(ended)
    assert (job.status, job.exit_code) == ("exited", 3)


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        (0, 0, "exited"),
        (3, 0, "exited"),
        (137, 0, "exited"),
        (-1, 0, "signaled"),
        (None, 9, "signaled"),
        (0, 9, "signaled"),
        (None, 0, "ended"),
    ],
)
def test_an_end_is_of_the_kind_that_the_exit_code_and_the_signal_show(
    code: int | None, number: int, status: str
) -> None:
    assert conclude(code, number) == status


@pytest.mark.parametrize(
    ("code", "shown"), [(-1, 0), (137, 0), (3, 3), (0, 0), (2**40, 0), (-(2**40), 0)]
)
def test_a_signaled_job_keeps_an_exit_code_that_no_signal_means(
    code: int, shown: int, tmp_path: Path
) -> None:
    state = STATE.replace("ended", "signaled") + 'exit_code = "big"\npid = "big"'
    query = load(tmp_path, query__job=state)["QueryJob"]
    job: Any = query.response(query.response_class(state="signaled", big=code))
    assert (job.status, job.exit_code) == ("signaled", shown)


@pytest.mark.parametrize("reported", [0, -1, float("inf"), float("nan"), 2.0**80])
def test_a_limit_that_is_none_is_not_reported(reported: float, tmp_path: Path) -> None:
    state = STATE + 'limits.memory_bytes = "memory"'
    query = load(tmp_path, query__job=state)["QueryJob"]
    job: Any = query.response(query.response_class(memory=reported))
    assert not job.limits.HasField("memory_max_bytes")
    job = query.response(query.response_class(memory=5e9))
    assert job.limits.memory_max_bytes == 5_000_000_000


def test_a_negative_offset_is_none(tmp_path: Path) -> None:
    stream = load(tmp_path, stream=STREAM + 'output = "data"\noffset = "offset"')["StreamLogs"]
    chunk: Any = stream.response(stream.response_class(data=b"x", offset=-1))
    assert not chunk.HasField("offset")
    chunk = stream.response(stream.response_class(data=b"x", offset=7))
    assert chunk.offset == 7


def test_a_list_without_a_state_shows_none(tmp_path: Path) -> None:
    jobs = load(tmp_path, list=LIST + 'arguments = "args"')["ListJobs"]
    answer: Any = jobs.response(jobs.response_class(jobs=[{"id": "1", "args": ["a b"]}]))
    assert [(job.status, list(job.command_args)) for job in answer.jobs] == [("", ["a b"])]


@pytest.mark.parametrize(
    ("unit", "millicores", "sent"),
    [("millicores", 5, 5), ("percent", 290, 29), ("percent", 5, None)],
)
def test_an_integer_field_gets_a_whole_number_or_nothing(
    unit: str, millicores: int, sent: int | None, tmp_path: Path
) -> None:
    table = f'{TABLES["start"]}\nlimits = {{ cpu = "number", cpu_unit = "{unit}" }}'
    start = load(tmp_path, start=table)["StartJob"]
    limits = pb.ResourceLimits(cpu_millicores=millicores)
    request = pb.StartJobRequest(command_name="true", limits=limits)
    if sent is not None:
        made: Any = start.request(request)
        assert made.number == sent
        return
    with pytest.raises(UnfitValueError, match=r"0\.5: not a whole number"):
        start.request(request)


def test_half_a_second_of_grace_is_not_sent_as_none(tmp_path: Path) -> None:
    stop = load(tmp_path, stop='rpc = "Stop"\nid = "id"\ngrace_s = "seconds"')["StopJob"]
    made: Any = stop.request(pb.StopJobRequest(job_id="1", grace_period_ms=3000))
    assert made.seconds == 3
    with pytest.raises(UnfitValueError, match=r"0\.5: not a whole number"):
        stop.request(pb.StopJobRequest(job_id="1", grace_period_ms=500))
