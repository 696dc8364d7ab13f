"""The job of a load, which `jobs.Writer` starts: numbered, stamped messages at planned instants.

It runs on the server's machine with python3's standard library, as text behind `pacer`'s own. Every
message has the same size, so that an offset tells its number:

    magic | size | number | planned ns | begun ns | ready ns | CRC-32 of these | body

`planned` is when it was due, `begun` when it was written, `ready` when the write before it had come
back. So `begun - max(planned, ready)` is the writer's own lateness (its machine's), and
`ready - planned`, when positive, what the server made it wait. The body is known from the seed, and
differs from number to number. Message 0 says that the job runs; the load begins behind a gate, a
FIFO that another job opens when all readers are there.
"""

import hashlib
import json
import os
import signal
import struct
import sys
import time
import zlib

if __name__ != "__main__":  # in a job `pacer`'s text stands before this one
    from loadtests.pacer import Pace

MAGIC = b"JWL1"
FIELDS = struct.Struct("<4sIQQQQ")
CRC = struct.Struct("<I")
HEAD_BYTES = FIELDS.size + CRC.size
# Bodies repeat after so many messages; a prime, so that no size of a buffer hides a repetition.
PHASES = 13
LEAD_NS = 20_000_000
MONOTONIC = "monotonic"
GATE_TIMEOUT_S = 900


def bodies(seed: str, message_bytes: int) -> "list[bytes]":
    """Return the bodies of messages 0 to PHASES - 1, after which they repeat."""
    length = message_bytes - HEAD_BYTES
    source = hashlib.shake_128(seed.encode()).digest(length + PHASES)
    return [source[phase : phase + length - 1] + b"\n" for phase in range(PHASES)]


def head(message_bytes: int, number: int, planned_ns: int, begun_ns: int, ready_ns: int) -> bytes:
    """Return what stands before a message's body."""
    fields = FIELDS.pack(MAGIC, message_bytes, number, planned_ns, begun_ns, ready_ns)
    return fields + CRC.pack(zlib.crc32(fields))


def write_all(data: bytes) -> None:
    """Write to standard output, whatever part of it each write takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def wait_at_gate(path: str) -> None:
    """Make a FIFO, wait until somebody has opened it for writing, and remove it."""
    os.mkfifo(path, 0o600)
    # The generator may have gone, and its server without ending this job.
    signal.alarm(GATE_TIMEOUT_S)
    try:
        with open(path, "rb"):  # noqa: PTH123 - blocks until a writer comes; that is the gate
            pass
    finally:
        signal.alarm(0)
        os.unlink(path)  # noqa: PTH108 - pathlib would double the start-up time


def emit(plan: "dict[str, object]") -> None:
    """Write a whole load."""
    now_ns = time.monotonic_ns if plan["clock"] == MONOTONIC else time.time_ns
    size = int(str(plan["message_bytes"]))
    pace = Pace(*plan["pace"])  # type: ignore[misc] # three numbers, by the one who made the plan
    texts = bodies(str(plan["seed"]), size)
    first_ns = now_ns()
    write_all(head(size, 0, first_ns, first_ns, first_ns) + texts[0])
    if plan["gate"]:
        wait_at_gate(str(plan["gate"]))
    ready_ns = now_ns()
    zero_ns = ready_ns + LEAD_NS
    for number in range(pace.count):
        wait_ns = pace.wait_ns(number, now_ns() - zero_ns)
        if wait_ns or number == 0:
            time.sleep(wait_ns / 1e9)
        begun_ns = now_ns()
        # In a flood nothing is due at any instant but the one at which the taker is ready.
        planned_ns = begun_ns if pace.is_flood else zero_ns + pace.due_ns(number)
        text = texts[(number + 1) % PHASES]
        write_all(head(size, number + 1, planned_ns, begun_ns, ready_ns) + text)
        ready_ns = now_ns()


if __name__ == "__main__":
    # So that no gate is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"no gate opened in {GATE_TIMEOUT_S} s"))
    emit(json.loads(sys.argv[1]))
