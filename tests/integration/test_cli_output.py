"""The command's output: every state of standard output, and answers that could harm a terminal."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from jobworker.v1 import jobworker_pb2 as pb
from tests.support.command import Run, command_environment, failed, runner, succeeded
from tests.support.service import COMMAND, Certificates
from tests.support.stand_in_server import JOB_ID, StandIn, stand_in_server

LIMITS = pb.ResourceLimits(
    cpu_millicores=500,
    memory_max_bytes=104_857_600,
    io_weight=500,
    io_max=[pb.IoMax(device="8:0", read_bytes_per_second=1_048_576)],
)
FORGED = "\x1b[31m\nforged\r\x9b"
VISIBLE = r"\x1b[31m\nforged\r\x9b"
OUTPUT = bytes(range(256)) * 8000
COMMANDS = [["stream", JOB_ID], ["list"], ["query", JOB_ID], ["--help"], ["--version"]]


@pytest.fixture
def answers() -> StandIn:
    """A server with limits: a running job, and one more."""
    return StandIn(
        job=pb.QueryJobResponse(
            status="running", pid=7, limits=LIMITS, usage=pb.ResourceUsage(cpu_usage_us=1234)
        ),
        listed=[pb.JobSummary(job_id=JOB_ID, command_name="sort", status="exited")],
        output=OUTPUT,
    )


@pytest.fixture
def environment(answers: StandIn, certificates: Certificates) -> Iterator[dict[str, str]]:
    with stand_in_server(certificates, answers) as address:
        yield command_environment(address, certificates)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    return runner(environment)


def test_query_prints_limits_and_usage_of_a_server_with_limits(run: Run) -> None:
    lines = run("query", "-v", JOB_ID).stdout.splitlines()
    assert lines[0] == f"job with id {JOB_ID} is running."
    assert {
        "  status: running",
        "  limits.cpu_millicores: 500",
        "  limits.memory_max_bytes: 104857600",
        "  limits.io_max[0].device: 8:0",
        "  limits.io_max[0].read_bytes_per_second: 1048576",
        "  usage.cpu_usage_us: 1234",
    } <= set(lines)
    queried = json.loads(run("query", "--json", JOB_ID).stdout)
    assert queried["limits"]["memory_max_bytes"] == 104_857_600
    assert queried["usage"]["cpu_usage_us"] == 1234


@pytest.mark.parametrize(
    ("status", "state"),
    [("exited", "has stopped"), ("signaled", "has stopped"), ("Initialized", "is running")],
)
def test_job_has_stopped_only_if_it_exited_or_was_signaled(
    status: str, state: str, answers: StandIn, run: Run
) -> None:
    answers.job.status = status
    assert succeeded(run("query", JOB_ID), f"job with id {JOB_ID} {state}.\n")


def test_limits_that_the_server_ignores_are_reported(answers: StandIn, run: Run) -> None:
    started = f"job with id {JOB_ID} started.\n"
    assert succeeded(run("start", "true"), started)
    assert succeeded(run("start", "--memory", "1MiB", "true"), started)
    assert answers.calls == ["StartJob", "StartJob", "QueryJob"]
    answers.job.ClearField("limits")
    done = run("start", "--memory", "1MiB", "true")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, started, 1)
    assert "warning: the server does not know limits" in done.stderr


def test_texts_of_a_server_are_escaped(answers: StandIn, run: Run) -> None:
    answers.job = pb.QueryJobResponse(status=FORGED, message=FORGED)
    answers.listed[0].command_args.append(FORGED)
    answers.listed[0].status = FORGED
    queried = run("query", "-v", JOB_ID).stdout
    assert f"  status: {VISIBLE}\n" in queried
    assert f"  message: {VISIBLE}\n" in queried
    listed = run("list").stdout
    assert listed.count(VISIBLE) == 2
    assert listed.count("\n") == 2
    for text in (queried, listed):
        assert text.replace("\n", "").isprintable()
    assert json.loads(run("query", "--json", JOB_ID).stdout)["message"] == FORGED
    answers.error = FORGED
    assert failed(run("query", JOB_ID), 3, r"\x1b[31m forged \x9b [NOT_FOUND]")


def test_what_the_encoding_lacks_is_escaped(answers: StandIn, run: Run) -> None:
    answers.listed[0].command_args.append("caf\u00e9\u2603")
    listed = run("list", PYTHONIOENCODING="ascii")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert r"caf\xe9\u2603" in listed.stdout
    assert json.loads(run("list", "--json", PYTHONIOENCODING="ascii").stdout)["command"] == [
        "sort",
        "caf\u00e9\u2603",
    ]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_full_device_is_one_line(words: list[str], run: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(*words, stdout=full.fileno())
    assert failed(done, 1, "cannot write to standard output: No space left on device")
    assert words[0] != "stream" or "resume with --from-offset 0\n" in done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_closed_standard_output_is_one_line(words: list[str], environment: dict[str, str]) -> None:
    script = 'exec "$0" "$@" >&- <&-'
    done = subprocess.run(
        ["sh", "-c", script, COMMAND, *words],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert failed(done, 1, "cannot write to standard output: Bad file descriptor")


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_standard_output_without_a_reader_is_exit_code_141(words: list[str], run: Run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*words, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_stream_to_a_non_blocking_pipe_loses_nothing(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen(
        [COMMAND, "stream", JOB_ID], env=environment, stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        # More than a pipe holds, so the program waits for this reader, or has failed.
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == OUTPUT
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")


def test_failed_write_reports_the_offset_of_the_next_byte(
    environment: dict[str, str], tmp_path: Path
) -> None:
    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    def stream(file: IO[bytes]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, "stream", JOB_ID],
            # Otherwise Python could write truncated bytecode under this limit.
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=limit_file_size,
            stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip

    with (tmp_path / "output").open("wb") as file:
        done = stream(file)
    assert failed(done, 1, "File too large; resume with --from-offset 1000\n")
    assert (tmp_path / "output").read_bytes() == OUTPUT[:1000]


def test_start_names_the_job_if_its_id_cannot_be_printed(run: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("start", "true", stdout=full.fileno())
    assert failed(done, 1, f"No space left on device; job with id {JOB_ID} started")


def test_start_with_stream_and_json_writes_only_output_to_standard_output(
    answers: StandIn, run: Run
) -> None:
    answers.output = b"output\n"
    done = run("start", "--stream", "--json", "true")
    assert (done.returncode, done.stdout) == (0, "output\n")
    assert json.loads(done.stderr) == {"job_id": JOB_ID}
