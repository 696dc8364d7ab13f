"""A client of QEMU's machine protocol (QMP): one connection, a few commands, their answers."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness.record.verdict import BrokenError

Command = dict[str, object]

TIMEOUT_S: Final = 60.0


def monitor_command(line: str) -> Command:
    """Return a command of the human monitor, for what QMP lacks."""
    return {"execute": "human-monitor-command", "arguments": {"command-line": line}}


def execute(path: Path, *commands: Command) -> list[object]:
    """Send commands one after the other, and return their answers.

    Raises:
        BrokenError: QEMU rejected a command, or does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            with connection.makefile("rw", encoding="utf-8") as lines:
                lines.readline()  # the greeting
                capabilities: Command = {"execute": "qmp_capabilities"}
                answers = []
                for command in (capabilities, *commands):
                    lines.write(json.dumps(command) + "\n")
                    lines.flush()
                    answers.append(_answer(command, lines.readline))
    except (OSError, ValueError) as error:
        raise BrokenError(f"QEMU does not answer: {error}") from error
    return answers[1:]


def _answer(command: Command, read_line: Callable[[], str]) -> object:
    """Return the answer to a command, skipping events."""
    while True:
        line = read_line()
        if not line:
            raise BrokenError(f"QEMU closed the connection at {command}")
        message = json.loads(line)
        if "return" in message:
            return message["return"]
        if "error" in message:
            raise BrokenError(f"QEMU rejected {command}: {message['error']}")
