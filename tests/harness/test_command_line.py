"""A job worker that is called by programs: what its calls return, and that no program stays."""

import os
import re
import stat
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from harness.dialects.command_line import CommandTransport, is_local
from harness.dialects.command_table import CommandTable
from harness.dialects.dialect import Connection, Dialect
from harness.dialects.launch_recipe import LaunchTable
from harness.dialects.load import load_dialect
from harness.drive.reachability import require_job_worker
from harness.host.cert_files import CertFiles
from harness.host.clock import poll_until
from harness.host.repository import ROOT
from harness.record.terms import ADDED, NOT_SENT
from harness.record.verdict import BrokenError
from jobworker.v1 import jobworker_pb2 as pb

# A job worker's client, as a script: a job is what its id says.
CLIENT = """\
#!/bin/sh
echo "$$" >> "$HERE/pids"
case "$1 $2" in
"run fails") echo "error: no such program (NotFound)" >&2; exit 4;;
"run silent") exit 0;;
run*) shift; printf '%s\\n' "$@" > "$HERE/words"; echo "Started job 17 with pid 5" >&2;;
"state running") echo "state=ACTIVE code=-";;
"state exited") echo "state=DONE code=3";;
"state killed") echo "state=DONE code=- by SIGKILL";;
"state shell") echo "state=DONE code=137 by SIGKILL";;
"state negative") echo "state=DONE code=-1";;
"state over") echo "state=DONE code=-";;
"state unknown") echo "no such job"; exit 0;;
"state slow") exec sleep 60;;
"state odd") echo "state=DONE code=- by SIGODD";;
"logs bytes") printf 'a\\000\\377b'; exit 0;;
"logs live") echo one; exec sleep 60;;
"logs deaf") trap '' TERM; echo one; while :; do sleep 0.1; done;;
"logs child") sleep 60 & echo one; exit 0;;
"logs fails") echo part; echo "error: lost (Unavailable)" >&2; exit 4;;
"logs never") echo all; exec sleep 60;;
ls*) echo "17 ACTIVE sleep"; echo "a line of another kind"; echo "18 DONE true";;
"kill 17") exit 0;;
*) echo "usage: client COMMAND" >&2; exit 64;;
esac
"""

TABLE: dict[str, Any] = {
    "start": ["{folder}/client", "run", "{command}", ["--dir", "{working_directory}"],
              ["--env", "{environment...}"], "--", "{args...}"],
    "query": ["{folder}/client", "state", "{id}"],
    "stream": ["{folder}/client", "logs", "{id}"],
    "stop": ["{folder}/client", "kill", "{id}", ["--grace", "{grace_s}"]],
    "list": ["{folder}/client", "ls"],
    "environment": {"HERE": "{folder}", "CERT": "{cert}"},
    "startup_s": 5.0,
    "answers": {
        "start": [r"^Started job (?P<job_id>\S+)"],
        "query": [r"^state=(?P<status>\w+) code=(?P<exit_code>-?\d+)?", r"by (?P<signal>\w+)$"],
        "list": [r"^(?P<job_id>\d+) (?P<status>\w+) (?P<command_name>\w+)$"],
    },
    "states": {"ACTIVE": "running", "DONE": "ended"},
    "errors": [
        {"pattern": r"^error: (?P<details>.*) \(NotFound\)$", "code": "NOT_FOUND"},
        {"pattern": "^no such job$", "exit": 0, "code": "NOT_FOUND", "calls": ["query"]},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program = tmp_path / "client"
    program.write_text(CLIENT)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name in ("ca.crt", "admin.crt", "admin.key"):
        (tmp_path / name).write_text(f"PEM {name}")
    return tmp_path


def connect(folder: Path, **changes: object) -> Connection:
    table = msgspec.convert({**TABLE, **changes}, CommandTable)
    files = CertFiles(folder / "ca.crt", folder / "admin.crt", folder / "admin.key")
    return CommandTransport(table, folder).connect("127.0.0.1:9", files)


@pytest.fixture
def connection(folder: Path) -> Iterator[Connection]:
    with connect(folder) as opened:
        yield opened


def assert_no_program_is_left(folder: Path) -> None:
    """Orphans that were killed are reaped by init, which takes a moment."""
    sessions = set(map(int, (folder / "pids").read_text().split()))
    poll_until(lambda: not sessions & live_sessions() or None, 5.0, "the programs' end")


def live_sessions() -> set[int]:
    """Return the sessions of all processes that are no zombies."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                found.add(int(session))
    return found


def query(connection: Connection, job_id: str, timeout_s: float = 10.0) -> Any:
    return connection.stub.QueryJob(pb.QueryJobRequest(job_id=job_id), timeout=timeout_s)


def stream(connection: Connection, job_id: str, timeout_s: float = 20.0) -> Any:
    return connection.stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id), timeout=timeout_s)


def status_of(error: grpc.RpcError) -> tuple[str, str | None]:
    return error.code().name, error.details()


def test_a_start_passes_each_argument_as_a_word_and_takes_the_id_from_what_was_printed(
    connection: Connection, folder: Path
) -> None:
    request = pb.StartJobRequest(
        command_name="echo",
        command_args=["a b", "", "$HOME", "--", "{id}"],
        environment={"A": "1 2"},
        working_directory="/tmp",  # noqa: S108 - a word only
    )

    assert connection.stub.StartJob(request, timeout=10).job_id == "17"

    words = (folder / "words").read_text().splitlines()
    assert words == [
        "echo", "--dir", "/tmp", "--env", "A=1 2", "--", "a b", "", "$HOME", "--", "{id}"  # noqa: S108
    ]  # fmt: skip


def test_an_option_without_a_value_is_left_out(connection: Connection, folder: Path) -> None:
    connection.stub.StartJob(pb.StartJobRequest(command_name="true"), timeout=10)

    assert (folder / "words").read_text().splitlines() == ["true", "--"]


@pytest.mark.parametrize(
    ("job_id", "expected"),
    [
        ("running", ("running", 0, 0)),
        ("exited", ("exited", 3, 0)),
        ("killed", ("signaled", 0, 9)),
        ("shell", ("signaled", 0, 9)),
        ("negative", ("signaled", 0, 0)),
        ("over", ("ended", 0, 0)),
    ],
)
def test_a_query_returns_the_canonical_state(
    connection: Connection, job_id: str, expected: tuple[str, int, int]
) -> None:
    job = query(connection, job_id)

    assert (job.status, job.exit_code, job.signal) == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("start fails", ("NOT_FOUND", "no such program")),
        ("query unknown", ("NOT_FOUND", "no such job")),
        ("query nonsense", ("UNKNOWN", "client exited with 64: usage: client COMMAND")),
        ("query odd", ("UNKNOWN", "query printed 'SIGODD' for signal: no signal has this name")),
        ("start silent", ("UNKNOWN", "start printed '', in which no job_id was found")),
    ],
)
def test_a_program_that_fails_is_a_status_with_its_words(
    connection: Connection, call: str, expected: tuple[str, str]
) -> None:
    rpc, _, job = call.partition(" ")

    def make() -> None:
        if rpc == "start":
            connection.stub.StartJob(pb.StartJobRequest(command_name=job), timeout=10)
        else:
            query(connection, job)

    with pytest.raises(grpc.RpcError) as caught:
        make()

    assert status_of(caught.value) == expected


def test_a_call_that_the_dialect_lacks_is_unimplemented(connection: Connection) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        connection.stub.DeleteJob(pb.DeleteJobRequest(job_id="17"), timeout=10)

    assert status_of(caught.value)[0] == "UNIMPLEMENTED"


def test_a_list_has_the_lines_that_match(connection: Connection) -> None:
    jobs = connection.stub.ListJobs(pb.ListJobsRequest(), timeout=10).jobs

    assert [(job.job_id, job.status) for job in jobs] == [("17", "running"), ("18", "ended")]


def test_a_stream_is_the_programs_output_byte_for_byte(connection: Connection) -> None:
    assert b"".join(each.message for each in stream(connection, "bytes")) == b"a\x00\xffb"


def test_a_stream_that_fails_ends_with_a_status_after_its_output(connection: Connection) -> None:
    received = iter(stream(connection, "fails"))
    assert next(received).message == b"part\n"

    with pytest.raises(grpc.RpcError) as caught:
        next(received)

    assert status_of(caught.value) == ("UNKNOWN", "client exited with 4: error: lost (Unavailable)")


def test_a_deadline_counts_the_time_that_a_program_may_take_to_start(folder: Path) -> None:
    with connect(folder, startup_s=0.5) as connection:
        started_s = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            query(connection, "slow", 0.2)
        took_s = time.monotonic() - started_s

    assert status_of(caught.value) == ("DEADLINE_EXCEEDED", "the program did not end")
    assert 0.7 <= took_s < 5
    assert_no_program_is_left(folder)


@pytest.mark.parametrize("job_id", ["live", "deaf"])
def test_a_cancelled_stream_ends_its_program_also_one_that_ignores_sigterm(
    connection: Connection, folder: Path, job_id: str
) -> None:
    call = stream(connection, job_id)
    received = iter(call)
    assert next(received).message == b"one\n"

    threading.Thread(target=call.cancel).start()
    with pytest.raises(grpc.RpcError) as caught:
        next(received)

    assert status_of(caught.value)[0] == "CANCELLED"
    assert_no_program_is_left(folder)


def test_a_reader_that_stops_reading_leaves_no_program(
    connection: Connection, folder: Path
) -> None:
    for _ in stream(connection, "live"):
        break

    assert_no_program_is_left(folder)


def test_a_closed_connection_ends_streams_that_no_thread_reads(folder: Path) -> None:
    with connect(folder) as connection:
        stream(connection, "deaf")
        poll_until(lambda: (folder / "pids").exists() or None, 10, "the program's start")

    assert_no_program_is_left(folder)


def test_what_a_program_leaves_behind_is_ended_and_not_waited_for(
    connection: Connection, folder: Path
) -> None:
    started_s = time.monotonic()

    assert [each.message for each in stream(connection, "child")] == [b"one\n"]

    assert time.monotonic() - started_s < 10
    assert_no_program_is_left(folder)


def test_a_program_that_never_exits_is_ended_after_its_job(folder: Path) -> None:
    query_exited = ["{folder}/client", "state", "exited"]
    with connect(folder, stream_end="query", query=query_exited) as connection:
        assert [each.message for each in stream(connection, "never")] == [b"all\n"]

    assert_no_program_is_left(folder)


def test_a_stream_of_a_job_that_goes_on_is_followed_to_its_deadline(folder: Path) -> None:
    query_running = ["{folder}/client", "state", "running"]
    with connect(folder, stream_end="query", query=query_running, startup_s=0.0) as connection:
        call = stream(connection, "never", 3.0)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)

    assert status_of(caught.value)[0] == "DEADLINE_EXCEEDED"
    assert_no_program_is_left(folder)


def test_many_streams_need_no_threads(connection: Connection, folder: Path) -> None:
    before = threading.active_count()
    calls = [iter(stream(connection, "live")) for _ in range(40)]

    assert [next(call).message for call in calls] == [b"one\n"] * 40
    assert threading.active_count() == before

    connection.close()
    for call in calls:
        call.close()
    assert_no_program_is_left(folder)


def test_descriptors_are_closed_with_the_calls(connection: Connection) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number counts

    query(connection, "running")
    before = descriptors()
    for _ in range(5):
        query(connection, "running")
        list(stream(connection, "bytes"))

    assert descriptors() == before


@pytest.mark.parametrize("argument", ["a\0b", "x" * 200_000])
def test_what_a_command_line_cannot_pass_is_not_sent(connection: Connection, argument: str) -> None:
    request = pb.StartJobRequest(command_name="echo", command_args=[argument])

    with pytest.raises(grpc.RpcError) as caught:
        connection.stub.StartJob(request, timeout=10)

    code, details = status_of(caught.value)
    assert code == "INVALID_ARGUMENT"
    assert str(details).startswith(f"{NOT_SENT}a command line cannot pass")


def test_certificates_are_put_where_the_program_wants_them(folder: Path) -> None:
    answers = {**TABLE["answers"], "query": ["(?P<status>.+)"]}
    shows = ["cat", "{work}/tls/me.key"]
    with connect(folder, files={"tls/me.key": "{key}"}, query=shows, answers=answers) as connection:
        assert query(connection, "1").status == "PEM admin.key"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"start": ["echo", "a banner"]},
            "start of `true`: UNKNOWN: start printed 'a banner', in which no job_id was found",
        ),
        (
            {"query": ["sh", "-c", "echo no route to host >&2; exit 7"]},
            "query of that job: UNKNOWN: sh exited with 7: no route to host",
        ),
    ],
)
def test_programs_that_answer_otherwise_are_one_set_up_error(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    table = msgspec.convert({**TABLE, **changes}, CommandTable)
    dialect = Dialect("client", "", "", CommandTransport(table, folder))
    files = CertFiles(folder / "ca.crt", folder / "admin.crt", folder / "admin.key")

    with pytest.raises(BrokenError, match=f"cannot be judged: {re.escape(message)}; start the"):
        require_job_worker("127.0.0.1:9", files, dialect, 10.0)


def test_programs_that_start_and_query_a_job_can_be_judged(folder: Path) -> None:
    query = ["{folder}/client", "state", "exited"]
    table = msgspec.convert({**TABLE, "query": query}, CommandTable)
    files = CertFiles(folder / "ca.crt", folder / "admin.crt", folder / "admin.key")

    dialect = Dialect("client", "", "", CommandTransport(table, folder))
    require_job_worker("127.0.0.1:9", files, dialect, 10.0)

    assert (folder / "words").read_text() == "true\n--\n"


def test_a_program_that_is_not_installed_is_named(folder: Path) -> None:
    with pytest.raises(BrokenError, match="the program 'no-such-client' of stop is not installed"):
        connect(folder, stop=["no-such-client", "{id}"])


def test_what_no_program_takes_is_lacking() -> None:
    words = {"stop": ["x", ["{grace_s}"]], "list": [], "delete": ["x", "{id}"]}

    lacks = msgspec.convert({**TABLE, **words}, CommandTable).lacks()

    has = {"environment", "working_directory", "DeleteJob", "grace_period_ms"}
    assert lacks == tuple(name for name in ADDED if name not in has)


def test_the_examples_of_the_page_are_valid() -> None:
    page = (ROOT / "docs" / "judging-command-lines.md").read_text()
    command, launch = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)

    table = msgspec.convert(tomllib.loads(command)["command"], CommandTable)
    recipe = msgspec.convert(tomllib.loads(launch)["launch"], LaunchTable).recipe(ROOT)

    assert table.names("query") == {"status", "exit_code", "signal"}
    assert recipe.fixed_port == 8080


@pytest.mark.parametrize("name", ["systemd", "worker-service"])
def test_a_built_in_command_line_is_loaded_by_its_name(name: str) -> None:
    dialect = load_dialect(name)

    assert not dialect.is_grpc
    assert is_local(dialect.transport) == (name == "systemd")
