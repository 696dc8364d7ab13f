"""The jobs of a load: the writer, the gate that it waits at, the question which clock it has."""

import dataclasses
import json
import secrets
from importlib import resources
from pathlib import Path
from typing import Final

from harness.drive.client import Client
from harness.record.verdict import BrokenError
from loadtests.emitter import MONOTONIC, WritePlan

REALTIME: Final = "realtime"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


def writer_command(plan: WritePlan) -> tuple[str, list[str]]:
    """Return the program that writes a load and its arguments; its text is one of them."""
    folder = resources.files("loadtests")
    source = "\n".join(
        (folder / f"{name}.py").read_text(encoding="utf-8") for name in ("pacer", "emitter")
    )
    return "python3", ["-I", "-S", "-c", source, json.dumps(dataclasses.asdict(plan))]


def new_gate() -> str:
    """Return a path for a gate that is unique on the server's machine."""
    return f"/tmp/jobworker-load-{secrets.token_hex(8)}"  # noqa: S108 - on the server's machine


def open_gate(client: Client, gate: str) -> None:
    """Let the writer that waits at a gate begin.

    Raises:
        UnmetError, BrokenError: the job that opens it could not be started.
    """
    # The writer makes the gate a moment after its first message.
    script = 'i=0; until [ -p "$1" ] || [ $i -ge 500 ]; do sleep 0.01; i=$((i+1)); done; : > "$1"'
    client.must_start("sh", ["-c", script, "sh", gate], label="gate")


def clock_of(client: Client) -> str:
    """Return the clock that both machines share; MONOTONIC if they are one machine.

    A job reads its kernel's boot id: processes of one boot share CLOCK_MONOTONIC.

    Raises:
        UnmetError, BrokenError: the job could not be run.
    """
    job_id = client.must_start("cat", [_BOOT_ID], label="boot id")
    theirs = client.output(job_id, label="boot id").strip()
    if not theirs:
        raise BrokenError(f"a job on the server's machine could not read {_BOOT_ID}")
    return MONOTONIC if theirs == Path(_BOOT_ID).read_text().strip() else REALTIME
