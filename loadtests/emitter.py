"""The job of a load, which `jobs.writer_command` starts: numbered, stamped messages when due.

It runs on the server's machine, with python3's standard library only; its text follows `pacer`'s.
All messages have the same size, so an offset identifies the message:

    magic | size | number | planned ns | begun ns | ready ns | CRC-32 of these | body

`planned` is when the message was due, `begun` when it was written, `ready` when the write before it
had returned. So `begun - max(planned, ready)` is the lateness of the writer itself (its machine's),
and `ready - planned`, if positive, is how long the server made it wait. The seed determines the
body, which differs from number to number. Message 0 reports that the job runs. The load begins
behind a gate, a FIFO that another job opens once all readers have joined.
"""

import hashlib
import json
import os
import signal
import struct
import sys
import time
import zlib
from dataclasses import dataclass

if __name__ != "__main__":  # in a job, `pacer`'s text precedes this one
    from loadtests.pacer import Pace

MAGIC = b"JWL1"
FIELDS = struct.Struct("<4sIQQQQ")
CRC = struct.Struct("<I")
HEAD_BYTES = FIELDS.size + CRC.size
# Bodies repeat after this many messages: a prime, so that no buffer size hides a repetition.
PHASES = 13
LEAD_NS = 20_000_000
MONOTONIC = "monotonic"
GATE_TIMEOUT_S = 900


@dataclass(frozen=True)
class WritePlan:
    """What the job writes, and when.

    Attributes:
        pace: when each message is due.
        message_bytes: size of each message.
        seed: of the bodies.
        gate: path of the FIFO on the server's machine that it waits at; empty: it does not wait.
        clock: MONOTONIC, or another name for the real-time clock.
    """

    pace: Pace
    message_bytes: int
    seed: str
    gate: str
    clock: str


def plan_from_json(text: str) -> WritePlan:
    """Return a plan that `dataclasses.asdict` and `json.dumps` made."""
    values = json.loads(text)
    return WritePlan(**{**values, "pace": Pace(**values["pace"])})


def bodies(seed: str, message_bytes: int) -> "list[bytes]":
    """Return the bodies of messages 0 to PHASES - 1, after which they repeat."""
    length = message_bytes - HEAD_BYTES
    source = hashlib.shake_128(seed.encode()).digest(length + PHASES)
    return [source[phase : phase + length - 1] + b"\n" for phase in range(PHASES)]


def head(message_bytes: int, number: int, planned_ns: int, begun_ns: int, ready_ns: int) -> bytes:
    """Return the part of a message before its body."""
    fields = FIELDS.pack(MAGIC, message_bytes, number, planned_ns, begun_ns, ready_ns)
    return fields + CRC.pack(zlib.crc32(fields))


def write_all(data: bytes) -> None:
    """Write to standard output, in as many writes as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def wait_at_gate(path: str) -> None:
    """Make a FIFO, wait until another process has opened it for writing, and remove it."""
    os.mkfifo(path, 0o600)
    # The generator may have died, and its server may keep this job.
    signal.alarm(GATE_TIMEOUT_S)
    try:
        with open(path, "rb"):  # noqa: PTH123 - blocks until a writer opens it: that is the gate
            pass
    finally:
        signal.alarm(0)
        os.unlink(path)  # noqa: PTH108 - pathlib would double the start-up time


def emit(plan: WritePlan) -> None:
    """Write a whole load."""
    now_ns = time.monotonic_ns if plan.clock == MONOTONIC else time.time_ns
    size, pace = plan.message_bytes, plan.pace
    texts = bodies(plan.seed, size)
    first_ns = now_ns()
    write_all(head(size, 0, first_ns, first_ns, first_ns) + texts[0])
    if plan.gate:
        wait_at_gate(plan.gate)
    ready_ns = now_ns()
    zero_ns = ready_ns + LEAD_NS
    for number in range(pace.count):
        wait_ns = pace.wait_ns(number, now_ns() - zero_ns)
        if wait_ns or number == 0:
            time.sleep(wait_ns / 1e9)
        begun_ns = now_ns()
        # A flood has no planned instants: a message is due when the pipe takes it.
        planned_ns = begun_ns if pace.is_flood else zero_ns + pace.due_ns(number)
        text = texts[(number + 1) % PHASES]
        write_all(head(size, number + 1, planned_ns, begun_ns, ready_ns) + text)
        ready_ns = now_ns()


if __name__ == "__main__":
    # So that no gate is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"no gate opened in {GATE_TIMEOUT_S} s"))
    emit(plan_from_json(sys.argv[1]))
