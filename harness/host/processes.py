"""Runs other programs: with a time limit, logged ready to paste, never left behind."""

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from harness.host.stop_signals import STOP_SIGNALS
from harness.record.verdict import BrokenError

logger = logging.getLogger(__name__)

_DRAIN_TIMEOUT_S: Final = 2.0
# This process may be killed before the program has requested the signal, which then never comes.
_UNLESS_ORPHANED: Final = '[ "$PPID" = "$0" ] && exec "$@"'
# Its one thread lasts as long as this process; see `start_bound`.
_LAUNCHER: Final = ThreadPoolExecutor(1, thread_name_prefix="launcher")


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a program that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    def require(self, what: str) -> str:
        """Return the output if the program succeeded.

        Raises:
            BrokenError: it failed; has the end of its output.
        """
        if self.exit_code != 0:
            tail = (self.stdout + self.stderr)[-2000:]
            raise BrokenError(f"{what} failed with exit code {self.exit_code}:\n{tail}")
        return self.stdout


def run(
    command: Sequence[str | Path],
    timeout_s: float,
    *,
    stdin: IO[bytes] | None = None,
    text_in: str | None = None,
    stdout: IO[bytes] | None = None,
    environment: dict[str, str] | None = None,
    directory: Path | None = None,
) -> Done:
    """Run a program until it ends.

    Args:
        command: its words.
        timeout_s: after which it and everything that it started in its session is killed.
        stdin: a file for its input.
        text_in: a text for its input.
        stdout: a file for its output; None returns the output.
        environment: of the program; None inherits this process's.
        directory: its working directory; None is this process's.

    Raises:
        BrokenError: it is not installed, or timed out.
    """
    words = [str(word) for word in command]
    logger.debug("$ %s", shlex.join(words))
    interrupts = _HeldInterrupts()
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if text_in is not None else stdin,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
    except BaseException as error:
        interrupts.release()
        if isinstance(error, FileNotFoundError):
            raise BrokenError(f"{words[0]} is not installed") from error
        raise
    with process:
        try:
            interrupts.release()
            out, errors = process.communicate(
                None if text_in is None else text_in.encode(), timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            tail = _end(process)[-1000:].decode("utf-8", "replace")
            raise BrokenError(
                f"{shlex.join(words)} timed out after {timeout_s:g} s\n{tail}"
            ) from error
        except BaseException:
            # Ctrl-C reaches this process only: the program has a session of its own.
            _end(process)
            raise
    output, said = ((each or b"").decode("utf-8", "replace") for each in (out, errors))
    return Done(process.returncode, output, said)


def run_interactively(command: Sequence[str | Path]) -> int:
    """Run a program on this terminal without a time limit, and return its exit code."""
    words = [str(word) for word in command]
    logger.debug("$ %s", shlex.join(words))
    with subprocess.Popen(words) as process:
        return process.wait()


def start_bound(
    command: Sequence[str | Path],
    log: IO[bytes],
    *,
    environment: dict[str, str] | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    directory: Path | None = None,
    new_session: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a program that is killed when this process ends, even if that is killed.

    It may outlive the thread that calls this: the kernel sends that signal when the thread that
    started the program ends (PR_SET_PDEATHSIG in prctl(2)), so one thread that lasts starts all.

    Args:
        command: its words.
        log: for its output and errors.
        environment: of the program; None inherits this process's.
        stdin: its input.
        directory: its working directory; None is this process's.
        new_session: whether it gets a session of its own.

    Raises:
        BrokenError: it, or setpriv, which sets the signal, is not installed.
    """
    words = [str(word) for word in command]
    logger.debug("$ %s", shlex.join(words))
    try:
        return launch_bound(
            words,
            lambda bound: subprocess.Popen(
                bound, stdin=stdin, stdout=log, stderr=log, env=environment,
                cwd=directory, start_new_session=new_session,
            ),
        )  # fmt: skip
    except OSError as error:
        raise BrokenError(f"{shlex.join(words)}: {error.strerror}") from error


def launch_bound(
    words: Sequence[str], launch: Callable[[Sequence[str]], "subprocess.Popen[bytes]"]
) -> "subprocess.Popen[bytes]":
    """Start a program as `start_bound` does: `launch` is given the words of the whole command.

    Raises:
        BrokenError: setpriv is not installed.
        OSError: `launch` raised it.
    """
    bound = (program("setpriv"), "--pdeathsig", "KILL", "/bin/sh", "-c", _UNLESS_ORPHANED)
    return _LAUNCHER.submit(launch, (*bound, str(os.getpid()), *words)).result()


def program(name: str) -> str:
    """Return the path of one of util-linux's programs.

    Raises:
        BrokenError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise BrokenError(f"{name} is not installed; it is in Debian's package util-linux")
    return path


class _HeldInterrupts:
    """Holds back the signals that end this program while another starts; `release` delivers them.

    Without it, one that comes after the fork would leave the other program behind.
    """

    def __init__(self) -> None:
        self._caught: list[int] = []
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if callable(handler := signal.getsignal(number)):
                    self._before[number] = handler
                    signal.signal(number, self._catch)

    def release(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        caught, self._caught = self._caught, []
        for number in caught:
            signal.raise_signal(number)

    def _catch(self, number: int, _frame: object) -> None:
        self._caught.append(number)


def _end(process: "subprocess.Popen[bytes]") -> bytes:
    """Kill a program and everything in its session, and return its error output."""
    # A process group's id is not reused while it has a member, even a zombie.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=_DRAIN_TIMEOUT_S)[1] or b""
    except subprocess.TimeoutExpired as error:
        # A process that left the session holds the pipe open; do not wait for it.
        return error.stderr or b""
