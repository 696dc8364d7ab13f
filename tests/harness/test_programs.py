"""Programs that a call runs: deadlines, bounds, and that a closed connection leaves none."""

import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from harness.dialects.command_line import CommandTransport
from harness.dialects.command_table import CommandTable
from harness.dialects.dialect import Connection
from harness.dialects.programs import (
    OUTPUT_MAX_BYTES,
    CancelledError,
    LateError,
    Program,
    TooLongError,
)
from harness.host.cert_files import CertFiles
from harness.host.clock import poll_until
from jobworker.v1 import jobworker_pb2 as pb


def shell(script: str) -> Program:
    return Program(["sh", "-c", script], os.environ)


def test_a_deadline_is_kept_while_there_is_output() -> None:
    with shell("exec yes") as program:
        due_s = time.monotonic() + 0.3
        with pytest.raises(LateError):
            deque(iter(lambda: program.read(due_s), b""), maxlen=0)


def test_a_deadline_is_kept_while_there_are_errors() -> None:
    with shell("exec yes >&2") as program, pytest.raises(LateError):
        program.read(time.monotonic() + 0.3)


def test_an_answer_has_a_largest_size() -> None:
    with shell("exec yes") as program, pytest.raises(TooLongError, match=f"{OUTPUT_MAX_BYTES}"):
        program.read_all(time.monotonic() + 60)


def test_only_the_end_of_many_errors_is_kept() -> None:
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with shell("head -c 60000000 /dev/zero >&2; echo the end >&2; echo done") as program:
        assert program.read_all(time.monotonic() + 60) == b"done\n"
        errors = program.errors()

    assert errors.endswith("\0the end\n")
    assert len(errors) <= 128 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 30_000


def test_a_program_that_opens_its_errors_again_keeps_what_it_printed_before() -> None:
    with shell("echo one >&2; echo two > /dev/stderr") as program:
        program.read_all(time.monotonic() + 20)

        assert program.errors() == "one\ntwo\n"


def test_a_program_is_closed_while_another_thread_reads() -> None:
    failures: list[type[BaseException]] = []

    def read() -> None:
        try:
            program.read_all(None)
        except CancelledError as error:
            failures.append(type(error))

    with shell("echo begun; exec sleep 60") as program:
        assert program.read(time.monotonic() + 20) == b"begun\n"
        reader = threading.Thread(target=read)
        reader.start()
        program.close()
        reader.join(10)

    assert failures == [CancelledError]


STAYS = ["sh", "-c", "echo $$ >> {folder}/pids; exec sleep 60"]
TABLE: dict[str, Any] = {
    "start": ["echo", "1"], "query": STAYS, "stream": STAYS,
    "answers": {"start": ["(?P<job_id>.+)"], "query": ["(?P<status>.+)"]},
}  # fmt: skip


@pytest.fixture
def connect(tmp_path: Path) -> Callable[..., Connection]:
    files = CertFiles(*(tmp_path / name for name in ("ca.crt", "admin.crt", "admin.key")))

    def opened(**changes: object) -> Connection:
        converted = msgspec.convert({**TABLE, **changes}, CommandTable)
        return CommandTransport(converted, tmp_path).connect("127.0.0.1:9", files)

    return opened


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def query(connection: Connection) -> Any:
    return connection.stub.QueryJob(pb.QueryJobRequest(job_id="1"), timeout=30)


def stream(connection: Connection) -> Any:
    return connection.stub.StreamLogs(pb.StreamLogsRequest(job_id="1"), timeout=30)


def test_a_closed_connection_ends_the_calls_that_others_wait_for(
    tmp_path: Path, connect: Callable[..., Connection]
) -> None:
    codes: list[str] = []

    def call() -> None:
        try:
            query(connection)
        except grpc.RpcError as error:
            codes.append(error.code().name)

    connection = connect()
    caller = threading.Thread(target=call)
    caller.start()
    [pid] = poll_until(lambda: pids(tmp_path) or None, 20, "the program's start")
    connection.close()
    caller.join(10)

    assert codes == ["CANCELLED"]
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("call", [query, stream])
def test_a_closed_connection_starts_no_program_that_stays(
    tmp_path: Path, connect: Callable[..., Connection], call: Callable[[Connection], Any]
) -> None:
    connection = connect()
    connection.close()

    with pytest.raises(grpc.RpcError) as caught:
        call(connection)

    assert caught.value.code().name == "CANCELLED"
    assert not [pid for pid in pids(tmp_path) if Path(f"/proc/{pid}").exists()]


def test_an_answer_that_is_too_long_is_a_status(connect: Callable[..., Connection]) -> None:
    with connect(query=["yes"]) as connection, pytest.raises(grpc.RpcError) as caught:
        query(connection)

    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    assert caught.value.details() == f"the program printed more than {OUTPUT_MAX_BYTES} bytes"


def test_a_stream_goes_on_while_its_job_waits_to_be_started(
    tmp_path: Path, connect: Callable[..., Connection]
) -> None:
    (tmp_path / "state").write_text("PENDING")
    follows = ["sh", "-c", "sleep 3; echo late; echo DONE > {folder}/state; exec sleep 60"]
    with connect(
        query=["cat", "{folder}/state"], stream=follows, stream_end="query",
        states={"DONE": "exited"},
    ) as connection:  # fmt: skip
        assert b"".join(each.message for each in stream(connection)) == b"late\n"
