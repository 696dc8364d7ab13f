"""Shared by several checks: jobs that write a known pattern, gates, and looks at the server."""

import dataclasses
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Stage
from harness.drive.client import Client
from harness.payloads import payload
from harness.payloads.burst_writer import Pattern
from harness.record.history import Observation
from harness.targets.target import RunningServer
from jobworker.v1 import jobworker_pb2 as pb

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What a gated writer writes before its gate: enough for a reader to know that it has joined.
HELLO_BYTES: Final = 64

# The end of a script that waits for its stop. After five minutes it ends by itself: a server that
# left it behind has gone, and so has the harness.
WAITS: Final = "t=0; while [ $((t+=1)) -lt 1500 ]; do sleep 0.2; done"


# More than other checks start meanwhile.
_NEWEST: Final = 500


def newest_jobs(client: Client) -> dict[str, pb.JobSummary]:
    """Return the newest jobs of a list, by their ids."""
    page = client.require(
        client.list_page(page_size=_NEWEST, newest_first=True), "an admin can list jobs"
    )
    return {job.job_id: job for job in page.jobs}


@dataclass(frozen=True, slots=True)
class WriterStep:
    """One step of a writer's plan, as `harness/payloads/burst_writer.py` reads it.

    Attributes:
        size_bytes: how much it writes, each time.
        write_bytes: in writes of at most this size; 0: in one write.
        pause_ms: how long it then sleeps, each time.
        repeat: how many times it writes and sleeps.
        gate: path of a FIFO at which it first waits; empty: it does not wait.
    """

    size_bytes: int = 0
    write_bytes: int = 0
    pause_ms: int = 0
    repeat: int = 1
    gate: str = ""


@dataclass(frozen=True, slots=True)
class WriterJob(Observation):
    """A job that writes a known pattern; `start_writer` records it.

    Attributes:
        job_id: the job.
        seed: of its pattern.
        total_bytes: how much it writes in all.
        gate: path of the FIFO at which it waits; empty: it does not wait.
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
    """Return how many bytes a plan writes."""
    return sum(step.size_bytes * step.repeat for step in steps)


def plan_text(steps: Sequence[WriterStep]) -> str:
    """Return a plan as the writer's argument."""
    return json.dumps([dataclasses.asdict(step) for step in steps])


def start_writer(
    stage: Stage, client: Client, steps: Sequence[WriterStep], *, gated: bool = False
) -> WriterJob:
    """Start a writer and record it; a gated one writes HELLO_BYTES, then waits for `open_gate`."""
    seed = stage.nonce()
    gate = new_gate() if gated else ""
    plan = list(steps)
    if gated:
        plan = [WriterStep(HELLO_BYTES), WriterStep(gate=gate), *plan]
    job_id = client.must_start(*payload("burst_writer", seed, plan_text(plan)))
    writer = WriterJob(job_id, seed, total_bytes(plan), gate)
    stage.record(writer)
    return writer


def new_gate() -> str:
    """Return an unused path for a FIFO on the server's machine."""
    # Not derived from the seed: a run may be repeated on the same machine.
    return f"/tmp/jobworker-gate-{secrets.token_hex(8)}"  # noqa: S108 - random, so unpredictable


def open_gate(client: Client, writer: WriterJob) -> None:
    """Let a gated writer continue."""
    open_gate_at(client, writer.gate)


def open_gate_at(client: Client, gate: str) -> None:
    """Let the writer that waits at a gate continue, by a job that opens its FIFO."""
    script = f"until [ -p {gate} ]; do sleep 0.02; done; : > {gate}"
    client.must_start("sh", ["-c", script], label="open the gate")


def server_memory_bytes(stage: Stage, server: RunningServer) -> int:
    """Return a server's resident memory plus that of its memfds, which RSS does not include."""
    script = (
        f"awk '/^VmRSS/ {{print $2 * 1024}}' /proc/{server.pid}/status; "
        f"for fd in /proc/{server.pid}/fd/*; do case $(readlink $fd) in /memfd:*) "
        "echo $(( $(stat -L -c %b $fd) * 512 ));; esac; done"
    )
    done = stage.host.run(script)
    return sum(int(float(word)) for word in done.stdout.split())


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """The numbers of a server's threads, open descriptors and children (zombies included)."""

    threads: int
    descriptors: int
    children: int = 0


def server_counts(stage: Stage, server: RunningServer) -> ServerCounts:
    """Count what a server holds now.

    Raises:
        BrokenError: its process cannot be observed.
    """
    script = (
        # Of a process that is gone, or a zombie, the link does not resolve.
        f"[ -e /proc/{server.pid}/exe ] && "
        f"ls /proc/{server.pid}/task | wc -l && ls /proc/{server.pid}/fd | wc -l && "
        f"cat /proc/{server.pid}/task/*/children | wc -w"
    )
    counts = stage.host.run(script).require("counting the server's threads and descriptors")
    threads, descriptors, children = map(int, counts.split())
    return ServerCounts(threads, descriptors, children)
