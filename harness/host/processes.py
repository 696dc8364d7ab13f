"""The one door to other programs: bounded, logged ready to paste, and never left behind."""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from harness.record.verdict import BrokenError

logger = logging.getLogger(__name__)

_DRAIN_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    def require(self, what: str) -> str:
        """Return its output if it succeeded.

        Raises:
            BrokenError: it failed; shows the end of what it said.
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
) -> Done:
    """Run a program to its end.

    Raises:
        BrokenError: it is not there, or did not end in time (it and all that it started in its
            session were killed then).
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
            start_new_session=True,
        )
    except FileNotFoundError as error:
        interrupts.release()
        raise BrokenError(f"{words[0]} is not installed") from error
    except BaseException:
        interrupts.release()
        raise
    with process:
        try:
            interrupts.release()
            out, said = process.communicate(
                None if text_in is None else text_in.encode(), timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            tail = _end(process)[-1000:].decode("utf-8", "replace")
            raise BrokenError(
                f"{shlex.join(words)} did not end within {timeout_s:g} s\n{tail}"
            ) from error
        except BaseException:
            # Ctrl-C reaches this process alone: the others are not of its session.
            _end(process)
            raise
    return Done(
        process.returncode,
        (out or b"").decode("utf-8", "replace"),
        said.decode("utf-8", "replace"),
    )


class _HeldInterrupts:
    """Keeps Ctrl-C until somebody can end what is just being started; `release` lets it through."""

    def __init__(self) -> None:
        self._caught = False
        self._held = threading.current_thread() is threading.main_thread()
        if self._held:
            self._before = signal.signal(signal.SIGINT, self._catch)

    def release(self) -> None:
        if self._held:
            self._held = False
            signal.signal(signal.SIGINT, self._before)
            if self._caught:
                signal.raise_signal(signal.SIGINT)

    def _catch(self, _number: int, _frame: object) -> None:
        self._caught = True


def _end(process: "subprocess.Popen[bytes]") -> bytes:
    """Kill a program and all that it started in its session, and return what it said as errors."""
    # A group's id is nobody else's as long as it has a member, a zombie too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=_DRAIN_TIMEOUT_S)[1] or b""
    except subprocess.TimeoutExpired as error:
        # What left the session holds the pipe; it is not waited for.
        return error.stderr or b""
