"""Runs a program, and ends what it leaves behind: `python -m harness.host.leftovers PROGRAM ...`.

The kernel gives the orphans of all that the program started, in whatever session and however deep,
to this process (PR_SET_CHILD_SUBREAPER in prctl(2)). So what still runs a few seconds after the
program has ended is exactly what it left behind: each such process is reported and killed.

The exit code is the program's, 128 + N if signal N ended it; 1 if it succeeded and left something.
With --tolerate as the first argument, what is left is reported and killed, and no failure.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

import psutil

from harness.host.clock import seconds_until

_PR_SET_CHILD_SUBREAPER: Final = 36
_TOLERATE: Final = "--tolerate"
# Servers that got SIGKILL with their harness end, and daemons of jobs that last for seconds.
SETTLE_S: Final = 10.0
_KILL_TIMEOUT_S: Final = 10.0


def run_guarded(words: list[str], *, tolerate: bool = False, settle_s: float = SETTLE_S) -> int:
    """Run a program, end what it leaves behind, and return the exit code; see the module.

    Args:
        words: the command.
        tolerate: whether it is a success all the same.
        settle_s: how long what is left has to end by itself.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        _say(f"orphans cannot be found (prctl): {os.strerror(ctypes.get_errno())}")
        return 2
    program = subprocess.Popen(words)
    _pass_signals_to(program)
    exit_code = _wait(program)
    seconds_until(lambda: not _reap_and_list(), settle_s)
    left = _reap_and_list()
    for process in left:
        _say(f"left behind by {words[0]}: {_describe(process)}")
    # What a process starts while it is being killed is killed in the next round.
    if seconds_until(lambda: not _kill(_reap_and_list()), _KILL_TIMEOUT_S) is None:
        _say("left behind, and not ended by SIGKILL; see above")
        return exit_code or 1
    if left and not tolerate:
        return exit_code or 1
    return exit_code


def _pass_signals_to(program: "subprocess.Popen[bytes]") -> None:
    """Let the program decide when to end. A terminal's signals reach it without our help."""

    def forward(number: int, _frame: FrameType | None) -> None:
        # Not `send_signal`: it would reap a program that has just ended, and `_wait` would miss it.
        if program.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(program.pid, number)

    for number, handler in (
        (signal.SIGTERM, forward),
        (signal.SIGHUP, forward),
        (signal.SIGINT, lambda *_: None),
        (signal.SIGQUIT, lambda *_: None),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _wait(program: "subprocess.Popen[bytes]") -> int:
    """Reap orphans until the program has ended, and return its exit code."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == program.pid:
            code = os.waitstatus_to_exitcode(status)
            program.returncode = code  # it is reaped: the object must not wait for it again
            return code if code >= 0 else 128 - code


def _reap_and_list() -> list[psutil.Process]:
    """Reap the children that have ended, and return the descendants that run."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return psutil.Process().children(recursive=True)


def _kill(processes: list[psutil.Process]) -> list[psutil.Process]:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    return processes


def _describe(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"process {process.pid}: {' '.join(process.cmdline())[:300]!r}"
    return f"process {process.pid}, which has just ended"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    program_words = sys.argv[1:]
    tolerated = program_words[:1] == [_TOLERATE]
    sys.exit(run_guarded(program_words[1:] if tolerated else program_words, tolerate=tolerated))
