"""The command lines of the harness and the load tests: every option's bad values, output, signals.

Each kind of value that an option can have is in `BAD`, with what must be refused; an option of
another kind, whose values any text or file may be, is in `FREE`.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import psutil
import pytest
from click.testing import CliRunner

from harness.__main__ import main as harness
from harness.cli import dialect
from harness.cli.selection import complete
from harness.cli.selftest import SHARE
from harness.drive.identities import IdentityStore
from harness.host.stop_signals import STOP_SIGNALS
from harness.program import arguments, streams
from harness.record.verdict import BrokenError
from harness.run.choice import Choice
from loadtests.__main__ import main as loadtests
from tests.test_tidy import ROOT

NO_NUMBERS = ["inf", "-inf", "nan", "1e400", "9" * 40, "-1" + "0" * 20, "", "lots", "\u0663", "1_0"]
BAD = {
    "number": NO_NUMBERS,
    "regex": ["(", "*", "a{99999999999}", "(" * 300],
    "command": ["'", "{foo}", "{", "{listen.x}", "{0}", "'' x"],
    "target": ["", "here", "host", "host:", ":1", "host:0", "host:65536", "a b:1", "h:\u0663"],
    "host": [
        "",
        "\xfc.example",
        "a b",
        ".",
        "a..b",
        "a/b",
        "a\n",
        "[::1]",
        "1:2",
        "a" * 64,
        "a." * 150 + "a",
    ],
    "server": ["", "here", "host:0", "ours {foo}", "ours '", "x {listen} {foo}"],
    "share": ["", "1", "0/1", "2/1", "1/0", "-1/2", "1/" + "9" * 5000, "\u0661/\u0662", "a/b"],
    "choice": ["", "nonsense"],
}
# click's own kinds that refuse nothing, or nothing that could not be meant.
FREE = {"text", "boolean", "path", "file", "directory"}
# Texts that a command checks itself, before it starts anything: names and patterns of tables.
CHECKED = [
    (["check", "--area", "nowhere"], "the areas are abuse, identity, lifecycle"),
    (["check", "-k", "nothing-has-this-name"], "no check matches"),
    (["check", "--launch-flag", "x=y"], "max_streams"),
    (["check", "--launch", "x", "--target", "vm"], "requires --target local"),
    (["check", "--target", "localhost:1", "-k", "literal"], "python -m harness identities DIR"),
    (["check", "--identities", "nowhere"], "does not exist"),
    (["check", "--dialect", "nowhere"], "give a TOML file, or one of: jobworker.v1, "),
    (["dialect", "nowhere"], "give a TOML file, or one of: jobworker.v1, "),
    (["dialect", "--address", "localhost:1", "--identities", "impl"], "name the DIALECT"),
    (["dialect", "", "--address", "localhost:1"], "name the DIALECT"),
    (["dialect", "nixpig", "--address", "localhost:1", "--identities", "impl"], "--scheme nixpig"),
    (["dialect", "nixpig", "--address", "localhost:1"], "give both, or none"),
    (["check", "--out", "/dev/null/x"], "choose another with --out"),
    (["check", "--out", "/proc/1"], "choose another with --out"),
    (["recheck", "impl"], "no results of a run"),
    (["selftest", "-k", "nothing-has-this-name"], "no mutant matches"),
    (["races", "explore", "-k", "nothing-has-this-name"], "no scenario's name contains"),
    (["races", "prove", "-k", "nothing-has-this-name"], "no planted race's name contains"),
    (["races", "server", "--plant", "nothing"], "unknown planted race"),
    (["races", "replay", "impl/nothing"], "does not exist"),
    (["security", "impl"], "no results of a run"),
    (["vm", "boot", "UPPER"], "invalid VM name"),
    (["vm", "run", "--in", "nowhere", "true"], "nowhere"),
    (["vm", "down", "nowhere"], "nowhere"),
]
LOADS = [
    (["run", "nothing"], "unknown profile 'nothing'; known are steady-lines"),
    (["run", "--profiles", "/dev/null/x"], "profiles in"),
    (["run", "--limit", "latency_p99_ms=nan"], "it must be a number from 0 to"),
    (["run", "--limit", "latency_p99_ms=inf"], "it must be a number from 0 to"),
    (["run", "--limit", "latency_p99_ms"], "write FIGURE=NUMBER"),
    (["run", "--limit", "speed=1"], "known are"),
    (["run", "--limit", "server_fds_peak=1"], "unknown figure 'server_fds_peak'; known are"),
    (["run", "--limit", "fairness=much"], "write FIGURE=NUMBER"),
    (["run", "--client", "grpc.x=99999999999"], "from -2147483648 to 2147483647"),
    (["run", "--client", "grpc.x"], "write NAME=VALUE"),
    (["run", "--target", "localhost:1", "flood"], "python -m harness identities"),
    (["run", "--dialect", "nowhere", "flood"], "give a TOML file, or one of: jobworker.v1, "),
    (["run", "--dialect", "nixpig", "flood"], "Give --launch COMMAND or --target"),
    (["run", "--dialect", "systemd", "flood"], "called by gRPC, not by programs"),
    (["run", "--out", "/dev/null/x", "flood"], "choose another with --out"),
    (["sweep", "nothing"], "unknown sweep"),
    (["sweep"], "give a sweep"),
    (["sweep", "--over", "speed=1", "--profile", "flood"], "unknown axis"),
    (["sweep", "--over", "streamers=inf", "--profile", "flood"], "it must be a whole number"),
    (["compare", "ours", "ours", "--figure", "speed"], "unknown figure"),
    (["compare", "ours", "ours", "--profile", "nothing"], "unknown profile"),
    (["report", "impl"], "impl"),
]


def commands(
    program: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, program
    if isinstance(program, click.Group):
        for name, command in program.commands.items():
            yield from commands(command, (*words, name))


EVERY = [
    (f"{' '.join(words)} {parameter.name}", command, parameter)
    for name, program in (("harness", harness), ("loadtests", loadtests))
    for words, command in commands(program, (name,))
    for parameter in command.params
]


def converted(command: click.Command, parameter: click.Parameter, value: str) -> object:
    given: str | tuple[str, ...] = (value,) if parameter.multiple or parameter.nargs < 0 else value
    with click.Context(command) as context:
        return parameter.type_cast_value(context, given)


@pytest.mark.parametrize(
    ("command", "parameter"), [row[1:] for row in EVERY], ids=[row[0] for row in EVERY]
)
def test_every_option_refuses_the_bad_values_of_its_kind(
    command: click.Command, parameter: click.Parameter
) -> None:
    kind = parameter.type.name
    assert kind in {*BAD, *FREE}, "give it a type of harness.program.arguments"
    for value in BAD.get(kind, ()):
        with pytest.raises(click.BadParameter) as refused:
            converted(command, parameter, value)
        assert "\n" not in refused.value.message


@pytest.mark.parametrize("program", [harness, loadtests])
def test_every_command_has_the_name_that_it_is_listed_by(program: click.Group) -> None:
    assert [command.name for command in program.commands.values()] == list(program.commands)


def test_usage_error_imports_no_command() -> None:
    text = (
        "import sys, {0}.__main__ as program\n"
        "try: program.main(['nonsense'], standalone_mode=False)\n"
        "except Exception as error: print(error)\n"
        "print(*(name for name in sys.modules if 'grpc' in name or 'numpy' in name))\n"
    )
    for program in PROGRAMS:
        done = subprocess.run(
            [sys.executable, "-c", text.format(program)], cwd=ROOT, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert done.stdout == "No such command 'nonsense'.\n\n"


def test_the_rows_are_of_all_options_and_kinds() -> None:
    kinds = {parameter.type.name for _, _, parameter in EVERY}
    assert set(BAD) <= kinds
    assert len(EVERY) > 80


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (arguments.whole(0, 10), "10", 10),
        (arguments.whole(-5, 10), "-5", -5),
        (arguments.number(0, 10), "0.5", 0.5),
        (arguments.number(0, 10), "1e1", 10.0),
        (arguments.PATTERN, "^a|b$", "^a|b$"),
        (arguments.LAUNCH, "x '{listen}' {{}}", "x '{listen}' {{}}"),
        (arguments.LAUNCH, "", ""),
        (arguments.target(("local",)), "local", "local"),
        (arguments.target(()), "[::1]:50051", "[::1]:50051"),
        (arguments.SERVER, "ours --message-size 64KiB", "ours --message-size 64KiB"),
        (arguments.SERVER, "x {listen} {ca}", "x {listen} {ca}"),
        (arguments.HOST, "::1", "::1"),
        (arguments.HOST, "*.my_host-1.example", "*.my_host-1.example"),
        (SHARE, "2/3", (1, 3)),
    ],
)
def test_good_values_are_converted(kind: arguments.Argument, text: str, expected: object) -> None:
    assert kind.convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("program", "words", "text"),
    [(harness, *row) for row in CHECKED] + [(loadtests, *row) for row in LOADS],
)
def test_other_bad_input_is_refused_before_anything_starts(
    program: click.Group,
    words: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("impl", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((BrokenError, click.ClickException)) as refused:
        program.main(words, standalone_mode=False)
    error = refused.value
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    assert text in message
    assert message.count("\n") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"impl", "tests"}


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["", ""], "the answers are those of a job worker"),
        (["", "OK"], "1 answer is not that of a job worker"),
        (["OK", "OK"], "2 answers are not those of a job worker"),
    ],
)
def test_dialect_counts_the_answers_that_are_wrong(
    faults: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [SimpleNamespace(what="start", got="x", fault=fault) for fault in faults]
    monkeypatch.setattr(dialect, "first_round", lambda *_: steps)
    monkeypatch.setattr(IdentityStore, "files", lambda *_: None)
    monkeypatch.setattr(IdentityStore, "require_scheme", lambda *_: None)
    words = ["dialect", "nixpig", "--address", "localhost:1", "--identities", "."]
    done = CliRunner().invoke(harness, words)
    assert done.output.splitlines()[-1] == said
    assert done.exit_code == any(faults)


@pytest.mark.parametrize(
    ("program", "words"),
    [(harness, ["check", "-k", "literal"]), (loadtests, ["run", "flood"])],
)
def test_run_where_nothing_can_be_written_names_the_option_to_use(
    program: click.Group, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/proc")  # not even by root
    with pytest.raises(BrokenError, match="choose another with --out"):
        program.main(words, standalone_mode=False)


def started(program: str, words: Sequence[str | bytes], **options: Any) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", program, *words], cwd=ROOT, text=True, **pipes)


def run(program: str, *words: str | bytes, **options: Any) -> tuple[int, str, str]:
    with started(program, words, **options) as process:
        out, errors = process.communicate(timeout=100)
    return process.returncode, out or "", errors


PROGRAMS = ["harness", "loadtests"]


def test_missing_certificates_are_one_line_that_says_so(tmp_path: Path) -> None:
    words = ["dialect", "jobworker.v1", "--address", "localhost:1", "--identities", str(tmp_path)]
    exit_code, _, errors = run("harness", *words)
    assert exit_code == 2
    assert errors == (
        f"BROKEN: missing: the certificate {tmp_path}/ca.crt (python -m harness identities DIR "
        "makes it)\n"
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_usage_is_one_line_with_the_help_to_read(program: str) -> None:
    expected = f"Error: No such command 'caf\xe9'. (try python -m {program} --help)\n"
    assert run(program, "caf\xe9") == (
        2, "", expected
    )  # fmt: skip
    assert run(program, b"caf\xe9") == (2, "", "Error: 'caf\\udce9' is invalid; it must be UTF-8\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_2(program: str) -> None:
    with Path("/dev/full").open("w") as full:
        assert run(program, "--help", stdout=full) == (
            2, "", "BROKEN: cannot write to standard output: No space left on device\n"
        )  # fmt: skip
    closed = ["sh", "-c", 'exec "$0" -m "$1" --help >&-', sys.executable, program]
    done = subprocess.run(closed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2, "BROKEN: cannot write to standard output: Bad file descriptor\n"
    )  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_output_without_a_reader_is_exit_code_141(program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(program, "--help", stdout=writer) == (141, "", "")
    finally:
        os.close(writer)


def test_output_waits_for_room_in_a_non_blocking_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = []

    class Room:
        """Stands in for a poll object: the reader makes room while the writer waits."""

        def register(self, descriptor: int, events: int) -> None:
            assert (descriptor, events) == (writer, select.POLLOUT)

        def poll(self) -> None:
            received.append(os.read(reader, 2**20))

    monkeypatch.setattr(select, "poll", Room)
    text = "0123456789" * 50_000  # more than a pipe holds
    with os.fdopen(reader, "rb") as pipe:
        with os.fdopen(writer, "wb", 0):
            streams.text_stream(writer, None).write(text)
        assert (b"".join(received) + pipe.read()).decode() == text
    assert len(received) > 1


def waiting(program: str, fifo: Path) -> list[str]:
    """Return words of a command that reads a file, which a FIFO never ends."""
    if program == "loadtests":
        return ["run", "--profiles", str(fifo)]
    return ["vulncheck", "--requirements", str(fifo)]


@pytest.mark.parametrize(
    ("program", "number"),
    [("loadtests", signal.SIGTERM), *(("harness", number) for number in STOP_SIGNALS)],
)
def test_signal_ends_a_program_with_128_and_its_number(
    program: str, number: signal.Signals, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with started(program, waiting(program, fifo)) as process, fifo.open("w"):
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("program", PROGRAMS)
def test_signals_that_were_ignored_at_the_start_stay_ignored(program: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = [sys.executable, "-m", program, *waiting(program, fifo)]
    with (
        subprocess.Popen(["sh", "-c", "trap '' HUP INT QUIT; exec \"$0\" \"$@\"", *words],
                         cwd=ROOT) as process,
        fifo.open("w"),
    ):  # fmt: skip
        # Of several pending signals Python handles the lowest first, and SIGTERM is the highest.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            process.send_signal(number)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_stopped_run_leaves_no_process_and_no_key(tmp_path: Path) -> None:
    fifo, keys = tmp_path / "fifo", tmp_path / "keys"
    os.mkfifo(fifo)
    keys.mkdir()
    server = shlex.join(["sh", "-c", f"echo $$ >{fifo}; exec sleep 1000"])
    words = ["check", "--launch", server, "-k", "literal", "--out", str(tmp_path / "out")]
    with started("harness", words, env={**os.environ, "TMPDIR": str(keys)}) as process:
        pid = int(fifo.read_text())
        assert list(keys.iterdir())
        process.terminate()
        process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert not psutil.pid_exists(pid)
    assert not list(keys.iterdir())
    assert "BROKEN" in (tmp_path / "out" / "results.json").read_text()


def test_target_that_is_named_twice_is_judged_once() -> None:
    choice = complete(Choice(targets=("local", "vm", "local")))
    assert choice.targets == ("local", "vm")
