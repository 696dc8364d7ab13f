"""The command line as a program: the original's words to the letter, and the additions."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Run, command_environment, failed, runner, succeeded
from tests.support.service import COMMAND, Certificates, launched_server, wait_until
from worker_service.server import Server


@pytest.fixture
def environment(server: Server, certificates: Certificates) -> dict[str, str]:
    return command_environment(server.address, certificates)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    return runner(environment)


def streaming(environment: dict[str, str], job_id: str) -> "subprocess.Popen[str]":
    """Start to stream a job."""
    return subprocess.Popen(
        [COMMAND, "stream", job_id],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def job(run: Run) -> Iterator[str]:
    """A running job with some output."""
    started = run("start", "-command", "sh", "--", "-c", "'echo ready; exec sleep 100'")
    job_id = started.stdout.split()[3]
    yield job_id
    run("stop", "--grace", "0", job_id)


def test_original_commands_print_the_documented_lines(run: Run, tmp_path: Path) -> None:
    unsorted = tmp_path / "largefile.txt"
    unsorted.write_text("b\na\n")
    result = tmp_path / "sortedfile.txt"
    started = run("start", "-command", "sort", f"{unsorted} -o {result}")
    found = re.fullmatch(r"job with id (\S+) started\.\n", started.stdout)
    assert found, started
    job_id = found[1]
    assert uuid.UUID(job_id).version == 4
    assert succeeded(run("stream", job_id), "")
    assert result.read_text() == "a\nb\n"
    assert succeeded(run("query", job_id), f"job with id {job_id} has stopped.\n")
    assert succeeded(run("stop", job_id), f"Success! job with id {job_id} stopped.\n")


def test_query_and_stop_print_the_state_of_a_running_job(run: Run, job: str) -> None:
    assert succeeded(run("query", job), f"job with id {job} is running.\n")
    assert succeeded(run("stop", job), f"Success! job with id {job} stopped.\n")
    assert succeeded(run("query", job), f"job with id {job} has stopped.\n")


def test_arguments_are_split_like_a_shell_without_running_one(run: Run) -> None:
    started = run("start", "--stream", "-command", "printf", "'%s|'", '"a  b" c\\ d', "$HOME *")
    assert started.stdout == "a  b|c d|$HOME|*|"
    assert started.stderr.startswith("job with id ")


def test_stream_writes_binary_output_unchanged(run: Run, environment: dict[str, str]) -> None:
    started = run("start", "--json", "head", "-c", "300000", "/dev/urandom")
    job_id = json.loads(started.stdout)["job_id"]
    first, second = (
        subprocess.run(
            [COMMAND, "stream", job_id],
            env=environment,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert len(first) == 300_000
    assert first == second


def test_stream_exit_status_is_the_jobs(run: Run) -> None:
    for script, exit_code in (("exit 7", 7), ("kill -9 $$", 137), ("true", 0)):
        job_id = run("start", "sh", "-c", f"'{script}'").stdout.split()[3]
        assert run("stream", "--exit-status", job_id).returncode == exit_code


def test_json_and_verbose_output_have_all_details(run: Run, job: str) -> None:
    queried = json.loads(run("query", "--json", job).stdout)
    assert queried["job_id"] == job
    assert queried["status"] == "running"
    assert queried["pid"] > 1
    assert queried["started_at"].endswith("+00:00")
    assert queried["limits"] is None
    lines = run("list", "--json").stdout.splitlines()
    [listed] = [entry for entry in map(json.loads, lines) if entry["job_id"] == job]
    assert listed["command"] == ["sh", "-c", "echo ready; exec sleep 100"]
    assert f"{job}  running" in run("list").stdout
    assert "  status: running\n" in run("query", "-v", job).stdout


def test_stream_starts_at_tail_or_offset_and_ends_without_follow(run: Run, job: str) -> None:
    wait_until(lambda: run("stream", "--no-follow", job).stdout == "ready\n", "the job's output")
    assert succeeded(run("stream", "--no-follow", "--from-offset", "3", job), "dy\n")
    assert succeeded(run("stream", "--no-follow", "--tail", "1", job), "ready\n")
    assert succeeded(run("stream", "--no-follow", "--tail-bytes", "2", job), "y\n")
    assert failed(run("stream", "--from-offset", "99", job), 1, "OUT_OF_RANGE", "ends at 6")


def test_errors_are_one_line_with_an_exit_code_by_cause(run: Run, job: str) -> None:
    assert failed(run("query", str(uuid.uuid4())), 3, "no job has the id", "NOT_FOUND")
    assert failed(run("query", "nonsense"), 1, "must be a UUID", "INVALID_ARGUMENT")
    assert failed(run("stop", "--as", "user", job), 4, "role user is not allowed to call StopJob")
    assert failed(run("start", "no-such-program"), 3, "no-such-program", "PATH=")
    assert failed(run("start", "--memory", "1GB", "true"), 1, "--no-limits")
    assert failed(run("list", "--server", "127.0.0.1:1"), 5, "cannot be reached")
    assert failed(run("list", "--certs", "/nowhere"), 1, "/nowhere", "make certs")
    assert failed(run("start"), 2, "name a program")
    assert failed(run("start", "-command", "ls", "-l"), 2, "put -- before")
    assert failed(run("start", "--memory", "lots", "true"), 2, "'lots' is invalid")
    assert failed(run("nonsense"), 2, "No such command")
    assert failed(run("start", "-command", "sh", "'"), 2, "cannot be split")


def test_ctrl_c_ends_a_stream_without_an_error(environment: dict[str, str], job: str) -> None:
    with streaming(environment, job) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (130, "")


SWALLOWS_INTERRUPTS = """
import time
from worker_service.cli import exit_on_interrupt
exit_on_interrupt()
words = ["ready"]
while True:
    try:
        while words:
            print(words.pop(), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


def test_ctrl_c_ends_a_client_even_if_a_library_swallows_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SWALLOWS_INTERRUPTS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_closed_pipe_ends_a_stream_without_an_error(environment: dict[str, str], run: Run) -> None:
    job_id = run("start", "sh", "-c", "'yes | head -c 50000000; exec sleep 100'").stdout.split()[3]
    with streaming(environment, job_id) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == "y\n"
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
    run("stop", "--grace", "0", job_id)


def test_broken_stream_reports_the_offset_to_resume_at(
    certificates: Certificates, environment: dict[str, str]
) -> None:
    with launched_server(certificates) as (server, address):
        there = {**environment, "JOBWORKER_SERVER": address}
        run = runner(there)
        job_id = run("start", "sh", "-c", "'echo 12345; exec sleep 20'").stdout.split()[3]
        with streaming(there, job_id) as stream:
            assert stream.stdout is not None
            assert stream.stdout.readline() == "12345\n"
            pid = json.loads(run("query", "--json", job_id).stdout)["pid"]
            server.kill()
            _, errors = stream.communicate(timeout=30)
        os.kill(pid, signal.SIGKILL)  # without cgroups, a job outlives a killed server
        assert stream.returncode == 5
        assert "--from-offset 6" in errors
        assert errors.count("\n") == 1


def test_help_has_the_originals_example_and_every_setting(run: Run) -> None:
    assert 'start -command "sort" "largefile.txt -o sortedfile.txt"' in run("--help").stdout
    served = run("serve", "--help").stdout
    for setting in ("--keepalive-time", "--max-streams", "--flush-interval", "--log-retention"):
        assert setting in served
    affected = re.findall(
        r"Affects what (the server|clients?) (sends?|receives?)", " ".join(served.split())
    )
    assert len(affected) >= 5


def test_flag_overrides_environment_which_overrides_file(
    certificates: Certificates, tmp_path: Path
) -> None:
    config = tmp_path / "server.toml"
    config.write_text('max-streams = 0\nflush-interval = "20ms"\n')
    files = certificates.server
    command = [COMMAND, "serve", "--config", str(config), "--no-limits"]
    command += ["--ca", str(files.ca), "--cert", str(files.cert), "--key", str(files.key)]

    def error(environment: dict[str, str], *flags: str) -> str:
        return subprocess.run(
            [*command, *flags],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True, text=True, timeout=30, check=False,
        ).stderr  # fmt: skip

    assert f"max-streams in {config} is 0; it must be a whole number from 1 to" in error({})
    assert "JOBWORKER_MAX_STREAMS is '-1';" in error({"JOBWORKER_MAX_STREAMS": "-1"})
    assert "--max-streams is '-2';" in error({"JOBWORKER_MAX_STREAMS": "-1"}, "--max-streams=-2")
    assert "--listen is 'nonsense'" in error({}, "--max-streams=1", "--listen=nonsense")
    config.write_text("max-stream = 1\n")
    assert "unknown settings ['max-stream'];" in error({})
