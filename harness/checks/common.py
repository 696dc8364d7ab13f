"""Shared by several checks: jobs that write a known pattern, gates, and looks at the server."""

import dataclasses
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Need, Stage
from harness.drive.client import Client
from harness.payloads import payload
from harness.payloads.burst_writer import LINE_BYTES, Pattern
from harness.record.history import Observation
from harness.targets.target import RunningServer, poll_script
from jobworker.v1 import jobworker_pb2 as pb

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What a gated writer writes before its gate: enough for a reader to know that it has joined, of a
# server that delivers whole lines only, too.
HELLO_BYTES: Final = LINE_BYTES

# The end of a script that waits for its stop. After five minutes it ends by itself: a server that
# left it behind has gone, and so has the harness.
WAITS: Final = "t=0; while [ $((t+=1)) -lt 1500 ]; do sleep 0.2; done"

# Of the lines of /proc/PID/stat: the processes of a script, but for zombies. proc_pid_stat(5) has
# the number, name, state and parent.
OF_A_SCRIPT: Final = '$2 ~ /^.(sleep|sh).$/ && $3 != "Z"'
_LOOK_TIMEOUT_S: Final = 60.0

# More than other checks start meanwhile.
_NEWEST: Final = 500


@contextmanager
def mark_of_jobs(stage: Stage) -> Iterator[str]:
    """Yield a word for the arguments of jobs; those that a server left behind are killed by it.

    By their mark, never by ids that a server reported: they may be those of other programs. Without
    access to the server's machine nothing is killed.
    """
    word = f"job-{secrets.token_hex(8)}"
    try:
        yield word
    finally:
        if stage.target_has(Need.HOST):
            stage.host.run(f"pkill -KILL -f '{_pattern(word)}' || true")


def _pattern(mark: str) -> str:
    """Return a pattern for a mark that does not match the shell that has it as its argument."""
    return f"[{mark[0]}]{mark[1:]}"


def count_marked(stage: Stage, mark: str, wanted: str, timeout_s: float, *, state: str = "") -> int:
    """Count the processes of scripts that have a mark, once the count is as wanted, or in the end.

    For what jobs do where their output cannot be trusted. Needs access to the server's machine.

    Args:
        stage: the check's.
        mark: a word of their arguments, see `mark_of_jobs`.
        wanted: condition of the count, as test(1) has it: "-ge 10".
        timeout_s: for how long to wait for it.
        state: count those in this state alone, see proc_pid_stat(5).
    """
    alive = f"{OF_A_SCRIPT} && $3 ~ /{state or '.'}/"
    count = (
        f"cat $(pgrep -f '{_pattern(mark)}' | sed 's,.*,/proc/&/stat,') /dev/null 2>/dev/null | "
        f"awk '{alive}' | wc -l"
    )
    wait = poll_script(f"[ $(count) {wanted} ]", timeout_s)
    done = stage.host.run(f"count() {{ {count}; }}; {wait}; count", timeout_s + _LOOK_TIMEOUT_S)
    return int(done.require("counting a job's processes"))


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
    return new_path("gate")


def new_path(kind: str) -> str:
    """Return an unused path on the server's machine.

    A job that removes a file must not get a path that another printed: a faulty server may have
    cut it, or changed it.
    """
    # Not derived from the seed: a run may be repeated on the same machine.
    return f"/tmp/jobworker-{kind}-{secrets.token_hex(8)}"  # noqa: S108 - random, so unpredictable


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
