"""What several checks do the same way: writers that wait at a gate, and looks at the server."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Stage
from harness.drive.client import Client
from harness.payloads import payload
from harness.payloads.burst_writer import Pattern
from harness.targets.target import RunningServer

KIB: Final = 1024
MIB: Final = 1024 * KIB

WriterStep = dict[str, int | str]

# What a writer writes before its gate: enough for a reader to know that it has joined.
HELLO_BYTES: Final = 64

# An id that no server has given.
UNKNOWN_ID: Final = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"


@dataclass(frozen=True, slots=True)
class WriterJob:
    """A job that writes a known pattern.

    Attributes:
        job_id: the job.
        seed: of its pattern.
        total_bytes: what it writes in all.
        gate: path of the FIFO at which it waits; empty when there is none.
    """

    job_id: str
    seed: str
    total_bytes: int
    gate: str = ""

    @property
    def pattern(self) -> Pattern:
        """What it writes."""
        return Pattern(self.seed)


def total_bytes(steps: Sequence[WriterStep]) -> int:
    """Return how much a plan writes."""
    return sum(int(step.get("bytes", 0)) * int(step.get("repeat", 1)) for step in steps)


def start_writer(
    stage: Stage, client: Client, steps: Sequence[WriterStep], *, gated: bool = False
) -> WriterJob:
    """Start a writer; a gated one says hello and then waits for `open_gate`."""
    seed = stage.nonce()
    gate = new_gate() if gated else ""
    plan = list(steps)
    if gated:
        plan = [{"bytes": HELLO_BYTES}, {"gate": gate}, *plan]
    job_id = client.must_start(*payload("burst_writer", seed, json.dumps(plan)))
    return WriterJob(job_id, seed, total_bytes(plan), gate)


def new_gate() -> str:
    """Return the path of a FIFO on the server's machine that nobody else has."""
    # Not of the seed: the same run may go on twice on one machine.
    return f"/tmp/jobworker-gate-{secrets.token_hex(8)}"  # noqa: S108 - as said


def open_gate(client: Client, writer: WriterJob) -> None:
    """Let a gated writer go on."""
    open_gate_at(client, writer.gate)


def open_gate_at(client: Client, gate: str) -> None:
    """Let the writer that waits at a gate go on, by a job that writes into its FIFO."""
    script = f"until [ -p {gate} ]; do sleep 0.02; done; echo > {gate}"
    client.must_start("sh", ["-c", script], label="open the gate")


def server_memory_bytes(stage: Stage, server: RunningServer) -> int:
    """Return a server's own memory and that of its memfds, which no RSS shows."""
    script = (
        f"awk '/^VmRSS/ {{print $2 * 1024}}' /proc/{server.pid}/status; "
        f"for fd in /proc/{server.pid}/fd/*; do case $(readlink $fd) in /memfd:*) "
        "echo $(( $(stat -L -c %b $fd) * 512 ));; esac; done"
    )
    done = stage.host.run(script)
    return sum(int(float(word)) for word in done.stdout.split())


def server_count(stage: Stage, server: RunningServer, what: str) -> int:
    """Return a server's number of `threads`, `fds` or `children` (zombies count as those)."""
    scripts = {
        "threads": f"ls /proc/{server.pid}/task | wc -l",
        "fds": f"ls /proc/{server.pid}/fd | wc -l",
        "children": f"cat /proc/{server.pid}/task/*/children | wc -w",
    }
    return int(stage.host.run(scripts[what]).require(f"counting the server's {what}"))
