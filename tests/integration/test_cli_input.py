"""Bad values, interrupts and proxies: one line and an exit code, and no call is made."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from jobworker.v1 import jobworker_pb2 as pb
from tests.support.command import Run, command_environment, failed, runner, succeeded
from tests.support.service import COMMAND, Certificates
from tests.support.stand_in_server import JOB_ID, StandIn, stand_in_server
from worker_service import cli

NOT_UTF8 = b"caf\xe9"


@pytest.fixture
def answers() -> StandIn:
    return StandIn(job=pb.QueryJobResponse(status="running"))


@pytest.fixture
def environment(answers: StandIn, certificates: Certificates) -> Iterator[dict[str, str]]:
    with stand_in_server(certificates, answers) as address:
        yield command_environment(address, certificates)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    return runner(environment)


@pytest.fixture
def run_here(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Run the command in this process, which has its modules already; it must not call."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("stdout", "stderr"):  # which the command replaces
        monkeypatch.setattr(sys, name, getattr(sys, name))

    def command(*words: str | bytes, **variables: str) -> "subprocess.CompletedProcess[str]":
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", [COMMAND, *map(os.fsdecode, words)])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return command


@pytest.mark.parametrize(
    "words",
    [
        ["start", "--cpu", "inf", "true"],
        ["start", "--cpu=-1", "true"],
        ["start", "--io-weight", "-5", "true"],
        ["start", "--pids", "99999999999", "true"],
        ["stop", "--grace", "2000h", JOB_ID],
        ["stream", "--tail", "99999999999999999999", JOB_ID],
        ["stream", "--from-offset", "99999999999999999999", JOB_ID],
        ["query", "--timeout", "9e18", JOB_ID],
        ["query", "--timeout", "nan", JOB_ID],
        ["query", "--timeout", "0", JOB_ID],
        ["start", "echo", NOT_UTF8],
        ["start", "--command", NOT_UTF8],
        ["start", "--env", b"KEY=" + NOT_UTF8, "true"],
        ["start", "--cwd", NOT_UTF8, "true"],
        ["query", NOT_UTF8],
        ["list", "--server", NOT_UTF8],
        ["list", "--server-name", NOT_UTF8],
        ["list", "--status", NOT_UTF8],
        [NOT_UTF8],
    ],
    ids=repr,
)
def test_value_out_of_range_makes_no_call(
    words: list[str | bytes], answers: StandIn, run_here: Run
) -> None:
    assert failed(run_here(*words), 2)
    assert answers.calls == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--tail", "1", "--tail-bytes", "1"), "give only one of --from-offset, --tail and"),
        (("--from-offset", "0", "--tail", "1"), "give only one of --from-offset, --tail and"),
        (("--exit-status", "--no-follow"), "leave out --no-follow"),
    ],
)
def test_contradicting_flags_of_a_stream_make_no_call(
    words: tuple[str, ...], why: str, answers: StandIn, run_here: Run
) -> None:
    assert failed(run_here("stream", *words, JOB_ID), 2, why)
    assert answers.calls == []


def test_help_names_the_variable_of_every_option_that_has_one() -> None:
    options = [
        option
        for command in cli.main.commands.values()
        for option in command.params
        if isinstance(option, click.Option) and option.envvar
    ]
    assert len(options) > 10
    assert [option.name for option in options if not option.show_envvar] == []


def test_variable_out_of_range_makes_no_call(answers: StandIn, run_here: Run) -> None:
    assert failed(run_here("list", JOBWORKER_TIMEOUT="inf"), 2, "--timeout")
    assert answers.calls == []


SLOW_IMPORT = """
import signal
print("importing", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(("ignored", "exit_code"), [(False, 130), (True, 0)])
def test_ctrl_c_while_importing(
    ignored: bool, exit_code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "grpc.py").write_text(SLOW_IMPORT if not ignored else IGNORING_IMPORT)
    trap = "trap '' INT; " if ignored else ""
    with subprocess.Popen(
        ["sh", "-c", trap + 'exec "$0" "$@"', COMMAND, "--version"],
        env={**environment, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (exit_code, "")


IGNORING_IMPORT = """
import os, signal
print("importing", flush=True)
os.kill(os.getpid(), signal.SIGINT)
os._exit(0)
"""

IGNORES_INTERRUPTS = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from worker_service.cli import exit_on_interrupt
exit_on_interrupt()
signal.raise_signal(signal.SIGINT)
print("goes on")
"""


def test_interrupt_that_was_ignored_at_the_start_stays_ignored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IGNORES_INTERRUPTS],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


@contextmanager
def calling(certificates: Certificates, trap: str = "") -> "Iterator[subprocess.Popen[str]]":
    """Run a client that waits for a silent server; yield it once it is connected."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = command_environment(f"127.0.0.1:{silent.getsockname()[1]}", certificates)
        words = ["sh", "-c", f'{trap} ulimit -c 0; exec "$0" "$@"', COMMAND, "stream", JOB_ID]
        with subprocess.Popen(
            [*words, "--timeout", "10min"], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            connection, _ = silent.accept()
            with connection:
                yield process


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), *((each, -each) for each in (signal.SIGTERM, signal.SIGHUP,
                                                        signal.SIGQUIT))],
)  # fmt: skip
def test_signal_ends_a_client_without_a_word(
    number: signal.Signals, exit_code: int, certificates: Certificates
) -> None:
    with calling(certificates) as process:
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == exit_code


def test_signals_that_were_ignored_at_the_start_of_a_client_stay_ignored(
    certificates: Certificates,
) -> None:
    with calling(certificates, "trap '' HUP INT QUIT;") as process:
        # The kernel delivers the lowest pending signal first, and SIGTERM is the highest.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -signal.SIGTERM


@contextmanager
def refusing_proxy() -> Iterator[tuple[str, list[bytes]]]:
    """Run a proxy that refuses all; yield its URL, with a password, and the requests received."""
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # shut down at the end
                return
            with connection:
                requests.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://name:secret@127.0.0.1:{listener.getsockname()[1]}", requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy", "all_proxy"])
def test_loopback_is_not_called_through_a_proxy(variable: str, run: Run) -> None:
    with refusing_proxy() as (url, requests):
        assert succeeded(
            run("query", JOB_ID, **{variable: url}), f"job with id {JOB_ID} is running.\n"
        )
        assert requests == []


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_failure_through_a_proxy_names_its_variable(variable: str, run: Run) -> None:
    with refusing_proxy() as (url, requests):
        # The proxy resolves the name, which exists nowhere.
        done = run("list", "--server", "example.invalid:50051", **{variable: url})
        assert failed(done, 5, f"the proxy of the variable {variable}, unless no_proxy")
        assert "secret" not in done.stderr
        assert requests[0].startswith(b"CONNECT example.invalid:50051 ")


def test_server_that_does_not_answer_is_unreachable_within_the_timeout(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "127.0.0.1:" + str(silent.getsockname()[1])
        assert failed(
            run("stop", "--server", address, "--timeout", "1s", JOB_ID), 5, "cannot be reached"
        )
