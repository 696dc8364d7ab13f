"""The one door to other programs: bounded, logged ready to paste, and never left behind."""

import logging
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.verdict import BrokenError

logger = logging.getLogger(__name__)


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
        BrokenError: it is not there, or did not end in time (it was killed then).
    """
    words = [str(word) for word in command]
    logger.debug("$ %s", shlex.join(words))
    try:
        done = subprocess.run(
            words,
            stdin=stdin if text_in is None and stdin is not None else None,
            input=None if text_in is None else text_in.encode(),
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except FileNotFoundError as error:
        raise BrokenError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode("utf-8", "replace")[-1000:]
        raise BrokenError(
            f"{shlex.join(words)} did not end within {timeout_s:g} s\n{said}"
        ) from error
    return Done(
        done.returncode,
        (done.stdout or b"").decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )
