"""Real children: what they inherit, how they end, and why some cannot start."""

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.descriptors import open_descriptors
from worker_service import spawn as spawn_module
from worker_service.errors import (
    CannotExecuteError,
    CommandNotFoundError,
    InvalidRequestError,
    JobWorkerError,
)
from worker_service.spawn import ARGUMENT_MAX_BYTES, Child, Command, ExitStatus, spawn

REPORT = """
import json, os, signal
blocked = [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
ignored = [int(n) for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]
print(json.dumps({
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    "blocked": blocked, "ignored": ignored, "environment": dict(os.environ),
    "pid": os.getpid(), "session": os.getsid(0), "group": os.getpgid(0), "cwd": os.getcwd(),
    "input": os.readlink("/proc/self/fd/0"),
}))
"""


def run(command: Command) -> tuple[bytes, ExitStatus]:
    """Run a command to its end; return its output and how it ended."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = spawn(command, write_fd, None)
        finally:
            os.close(write_fd)
        output = b""
        while data := os.read(read_fd, 65536):
            output += data
    finally:
        os.close(read_fd)
    return output, wait(child)


def wait(child: Child) -> ExitStatus:
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    status = child.peek_exit()
    child.reap()
    assert status is not None
    return status


def shell(script: str) -> Command:
    return Command("sh", ("-c", script))


def test_child_inherits_only_its_three_descriptors_and_the_given_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    inheritable = os.dup(2)
    os.set_inheritable(inheritable, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    ignored_before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        # Python itself ignores SIGPIPE and SIGXFSZ.
        output, _ = run(Command(sys.executable, ("-I", "-S", "-c", REPORT), {"COLOUR": "blue"}))
    finally:
        signal.signal(signal.SIGHUP, ignored_before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})
        os.close(inheritable)
    child = json.loads(output)
    assert [fd for fd in child["fds"] if fd > 2] == [3]  # the listing's own
    assert child["blocked"] == []
    assert set(child["ignored"]) <= {signal.SIGPIPE, signal.SIGXFSZ}
    assert child["environment"]["COLOUR"] == "blue"
    assert "SECRET" not in child["environment"]
    assert child["pid"] == child["session"] == child["group"]
    assert child["input"] == "/dev/null"


def test_child_has_the_path_home_and_locale_of_the_server_and_a_default_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {"HOME": "/nowhere", "LANG": "C", "LC_ALL": "C", "LC_CTYPE": "C", "TZ": "UTC"}
    for name in (*os.environ, "PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**kept, "USER": "root"}.items():
        monkeypatch.setenv(name, value)
    output, _ = run(Command("env"))
    default = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert dict(line.split("=", 1) for line in output.decode().splitlines()) == {
        "PATH": default,
        **kept,
    }
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(Command("printenv", ("PATH",)))[0] == b"/usr/bin:/bin\n"


def test_child_has_no_blocked_or_ignored_signals() -> None:
    # Python ignores SIGPIPE; a child that inherited that would not be ended by a broken pipe.
    output, _ = run(shell("grep -E '^Sig(Blk|Ign)' /proc/self/status"))
    masks = [int(line.split(b":")[1], 16) for line in output.splitlines()]
    assert masks == [0, 0]


def test_output_and_errors_keep_their_order() -> None:
    output, _ = run(shell("for i in 1 2 3; do echo out $i; echo err $i >&2; done"))
    assert output == b"out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"


def test_relative_program_is_found_in_the_working_directory(tmp_path: Path) -> None:
    executable(tmp_path / "hello", "#!/bin/sh\npwd\n")
    output, _ = run(Command("./hello", working_directory=str(tmp_path)))
    assert output.decode().strip() == str(tmp_path)


def test_program_is_searched_in_the_jobs_own_path(tmp_path: Path) -> None:
    executable(tmp_path / "greet", "#!/bin/sh\necho hi\n")
    assert run(Command("greet", environment={"PATH": str(tmp_path)}))[0] == b"hi\n"


@pytest.mark.parametrize("path", ["tools", ""])
def test_relative_path_starts_at_the_jobs_working_directory(path: str, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for directory in (tmp_path, tmp_path / "tools"):
        executable(directory / "greet", "#!/bin/sh\necho hi\n")
    command = Command("greet", environment={"PATH": path}, working_directory=str(tmp_path))
    assert run(command)[0] == b"hi\n"
    with pytest.raises(CommandNotFoundError):
        run(Command("greet", environment={"PATH": path}, working_directory="/"))


def test_arguments_are_passed_literally() -> None:
    words = ("$HOME", "a  b", "*", ";ls", "`id`", "", "ünï", "\n")
    output, _ = run(Command("printf", ("%s|", *words)))
    assert output.decode() == "".join(f"{word}|" for word in words)


@pytest.mark.parametrize("code", [0, 1, 2, 42, 127, 128, 254, 255])
def test_exit_code_is_reported_exactly(code: int) -> None:
    assert run(shell(f"exit {code}"))[1] == ExitStatus(code, 0)


DEADLY = sorted(
    {int(number) for number in signal.valid_signals()}
    - {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    - {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
)


def test_every_deadly_signal_is_reported() -> None:
    script = "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))"
    limits = "ulimit -c 0; "  # no core files

    def end_by(number: int) -> ExitStatus:
        return run(shell(f"{limits}exec {sys.executable} -I -S -c '{script}' {number}"))[1]

    survivable = {signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ}  # Python handles or ignores these
    numbers = [number for number in DEADLY if number not in survivable]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(end_by, numbers)) == [ExitStatus(0, number) for number in numbers]


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def plain(path: Path) -> str:
    path.write_text("not executable")
    path.chmod(0o644)
    return str(path)


BAD_COMMANDS: list[tuple[Callable[[Path], Command], type[JobWorkerError], str]] = [
    (lambda _: Command("/no/such"), CommandNotFoundError, "errno 2"),
    (lambda _: Command("no-such"), CommandNotFoundError, "in PATH="),
    (lambda _: Command("./no-such", working_directory="/usr"), CommandNotFoundError, "errno 2"),
    (lambda d: Command(plain(d / "x")), CannotExecuteError, "errno 13"),
    (lambda _: Command("/usr"), CannotExecuteError, "errno 21"),
    (lambda d: Command(executable(d / "x", "echo no hash bang")), CannotExecuteError, "'#!'"),
    (lambda d: Command(executable(d / "x", "#!/no/such\n")), CannotExecuteError, "interpreter"),
    (lambda _: Command("true", working_directory="/no/such"), CannotExecuteError, "working_dir"),
    (lambda d: Command("true", working_directory=plain(d / "x")), CannotExecuteError, "errno 20"),
    (lambda _: Command("true", working_directory="usr"), InvalidRequestError, "absolute"),
    (lambda _: Command(""), InvalidRequestError, "empty"),
    (lambda _: Command("true", ("a\0b",)), InvalidRequestError, r"command_args\[0\].*NUL"),
    (lambda _: Command("tr\0ue"), InvalidRequestError, "command_name.*NUL"),
    (lambda _: Command("true", ("x" * (ARGUMENT_MAX_BYTES + 1),)), InvalidRequestError, "131071"),
    (lambda _: Command("true", ("x" * 100_000,) * 21), InvalidRequestError, "2000000"),
    (lambda _: Command("true", environment={"": "x"}), InvalidRequestError, "environment key"),
    (lambda _: Command("true", environment={"a=b": "x"}), InvalidRequestError, "environment key"),
    (lambda _: Command("true", environment={"a": "x\0"}), InvalidRequestError, "NUL"),
]


def test_error_of_a_seccomp_filter_as_container_engines_have_it_names_the_filter() -> None:
    # glibc's, for clone3 with a cgroup that ends with ENOSYS.
    error = spawn_module._spawn_error(errno.EOPNOTSUPP, b"/bin/true", Command("true"), None)
    assert isinstance(error, CannotExecuteError)
    assert "clone3, which limits need, is refused by seccomp" in str(error)


@pytest.mark.parametrize(("make", "error", "text"), BAD_COMMANDS)
def test_spawn_rejects_a_command_with_its_cause_and_leaves_no_descriptor(
    make: Callable[[Path], Command], error: type[JobWorkerError], text: str, tmp_path: Path
) -> None:
    before = open_descriptors()
    with pytest.raises(error, match=text):
        run(make(tmp_path))
    assert open_descriptors() == before


def test_largest_allowed_argument_is_passed() -> None:
    output, _ = run(Command("printf", ("%s", "x" * ARGUMENT_MAX_BYTES)))
    assert len(output) == ARGUMENT_MAX_BYTES


def test_concurrent_spawns_all_succeed() -> None:
    def start(number: int) -> bytes:
        return run(Command("echo", (str(number),)))[0]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(start, range(64))) == [b"%d\n" % number for number in range(64)]


def test_signal_reaches_the_group_of_an_ended_leader_that_is_not_reaped() -> None:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    child = spawn(shell("sleep 100 & echo $!; exit 0"), write_fd, None)
    os.close(write_fd)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    grandchild = int(os.read(read_fd, 100))
    assert Path(f"/proc/{grandchild}").exists()
    child.signal_group(signal.SIGKILL)
    assert os.read(read_fd, 1) == b""  # the end of output: its last writer is gone
    os.close(read_fd)
    child.reap()


def test_spawn_succeeds_in_a_parent_with_many_threads() -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(50)]
    for thread in threads:
        thread.start()
    try:
        assert run(Command("echo", ("ok",)))[0] == b"ok\n"
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def test_error_for_a_key_with_a_value_does_not_show_the_value() -> None:
    with pytest.raises(InvalidRequestError, match="key 'TOKEN'") as no:
        Command("true", environment={"TOKEN=hunter2": ""}).validate()
    assert "hunter2" not in str(no.value)
