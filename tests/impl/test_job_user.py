"""Jobs of another user: ids, groups, privileges, variables, and servers that cannot have them."""

import os
import pwd
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from worker_service.errors import CannotExecuteError, ConfigurationError
from worker_service.job_user import JobUser
from worker_service.spawn import Command, ExitStatus, require_job_user, spawn

NOBODY: Final = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")


def run_as(user: JobUser, *words: str, **variables: str) -> tuple[str, ExitStatus]:
    """Run a command as a user; return its output and how it ended."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read_fd, encoding="utf-8") as output:
        try:
            child = spawn(Command(words[0], words[1:], variables, "/"), write_fd, None, user)
        finally:
            os.close(write_fd)
        text = output.read()
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    ended = child.peek_exit()
    child.reap()
    assert ended is not None
    return text, ended


@needs_root
@pytest.mark.parametrize("variables", [{}, {"A": "b"}])
def test_job_has_the_users_ids_groups_and_home_and_no_privileges(
    variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/root")
    before = os.getgroups()
    os.setgroups([*before, 61236])
    script = (
        'id -u; id -g; id -G; echo "$HOME $0"; grep -E "Cap(Inh|Prm|Eff|Amb)|NoNew" /proc/$$/status'
    )
    try:
        text, ended = run_as(JobUser.find("nobody"), "sh", "-c", script, **variables)
    finally:
        os.setgroups(before)
    lines = text.splitlines()
    groups = sorted(set(os.getgrouplist("nobody", NOBODY.pw_gid)))
    assert lines[:2] == [str(NOBODY.pw_uid), str(NOBODY.pw_gid)]
    assert sorted(map(int, lines[2].split())) == groups
    assert lines[3] == f"{NOBODY.pw_dir} sh"
    assert [line.split()[1].strip("0") for line in lines[4:]] == ["", "", "", "", "1"]
    assert ended == ExitStatus(0, 0)


@needs_root
def test_numbers_without_an_entry_are_users_too() -> None:
    assert run_as(JobUser.find("61234:61235"), "sh", "-c", "id -u; id -G; echo $HOME") == (
        "61234\n61235\n/\n", ExitStatus(0, 0),
    )  # fmt: skip


@needs_root
def test_job_gets_exactly_the_words_and_variables_of_its_request() -> None:
    words = ("--", "-x", "a b", "", "A=b", "ü")
    user = JobUser.find("nobody")
    assert run_as(user, "printf", "%s|", *words)[0] == "".join(f"{word}|" for word in words)
    variables = {"-u": "x", "EMPTY": "", "LINES": "1\n2", "PATH": "/usr/bin:/bin"}
    text, _ = run_as(user, "env", "-0", **variables)
    got = dict(line.split("=", 1) for line in text.split("\0") if line)
    assert {key: got[key] for key in variables} == variables
    assert set(got) - set(variables) <= {"HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}


@needs_root
def test_no_requested_variable_reaches_a_program_with_the_servers_rights(tmp_path: Path) -> None:
    # The dynamic linker names what it cannot preload, in each program that sees the variable.
    text, _ = run_as(JobUser.find("nobody"), "true", LD_PRELOAD="/no/such.so")
    assert text.count("LD_PRELOAD") == 1, "only the job's program sees it"
    trace = tmp_path / "trace"
    run_as(JobUser.find("nobody"), "true", LD_DEBUG="files", LD_DEBUG_OUTPUT=str(trace))
    assert not list(tmp_path.glob("trace*")), "a program with root's rights wrote the trace"


@needs_root
def test_job_can_open_its_standard_output_again() -> None:
    script = "echo one >/dev/stdout; echo two >/dev/stderr"
    assert run_as(JobUser.find("nobody"), "sh", "-c", script)[0] == "one\ntwo\n"


@needs_root
def test_program_that_the_user_may_not_execute_ends_with_126(tmp_path: Path) -> None:
    program = tmp_path / "private"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    text, ended = run_as(JobUser.find("nobody"), str(program))
    assert "Permission denied" in text
    assert ended == ExitStatus(126, 0)


def test_name_with_an_equals_sign_is_refused() -> None:
    with pytest.raises(CannotExecuteError, match=r"'a=b'.* '='"):
        JobUser("u", 1, 2, (2, 3)).wrap([b"a=b"], {})


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("no-such", "the user"), ("61234", "the group"), ("nobody:no-such", "the group"),
        ("no-such:1", "the user"), (f"{2**32 - 1}:1", "the user"), ("²:1", "the user"),
        pytest.param("9" * 5000 + ":1", "the user", id="more digits than Python converts"),
    ],
)  # fmt: skip
def test_unknown_users_are_refused(text: str, lacks: str) -> None:
    with pytest.raises(ConfigurationError, match=f"does not know {lacks}"):
        JobUser.find(text)


def test_missing_setpriv_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="setpriv, which is not in PATH"):
        JobUser.find("nobody")


@needs_root
def test_server_can_have_a_user_that_it_may_become_and_signal() -> None:
    require_job_user(JobUser.find("nobody"))  # raises unless it may; the next test shows that


@needs_root
def test_server_that_may_not_become_the_user_is_told_so(tmp_path: Path) -> None:
    setpriv = tmp_path / "setpriv"
    setpriv.write_text("#!/bin/sh\necho 'setpriv: setresuid failed'; exit 1\n")
    setpriv.chmod(0o755)
    user = JobUser("nobody", 1, 1, (1,), setpriv=os.fsencode(setpriv))
    with pytest.raises(
        ConfigurationError, match=r"nobody: setpriv: setresuid failed; .*CAP_SETUID"
    ):
        require_job_user(user)


def test_server_that_may_not_signal_the_user_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setpriv = tmp_path / "setpriv"
    setpriv.write_text("#!/bin/sh\n")
    setpriv.chmod(0o755)

    def forbidden(_pidfd: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(signal, "pidfd_send_signal", forbidden)
    with pytest.raises(ConfigurationError, match=r"cannot be signalled.*CAP_KILL"):
        require_job_user(JobUser("nobody", 1, 1, (1,), setpriv=os.fsencode(setpriv)))
