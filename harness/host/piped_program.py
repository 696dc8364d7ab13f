"""Runs a program and exchanges lines with it over its standard input and output."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Self


class PipedProgram:
    """A running program that shares our stderr; it is killed and reaped when the context ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # Closing flushes, and a dead program reads nothing.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the program, which ends `lines`."""
        self._process.kill()
        self._process.wait()

    def say(self, line: str) -> None:
        """Send a line; do nothing if the program has ended."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """Yield each line of output until the program ends."""
        while line := self._read_line():
            yield line

    def first_line(self, timeout_s: float) -> str:
        """Return the first line of output, or "" if the program ended or timed out before it.

        A program that times out is killed.
        """
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            return self._read_line()
        finally:
            timer.cancel()
            timer.join()

    def _read_line(self) -> str:
        return self._process.stdout.readline() if self._process.stdout is not None else ""
