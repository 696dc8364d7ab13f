"""Writes bytes that everybody can compute, in bursts: arguments are a seed and a plan in JSON.

The plan is a list of steps, each an object:
  {"bytes": N, "write": W, "pause_ms": P, "repeat": R}   R times: N bytes in writes of W, a pause
  {"gate": PATH}                                          make a FIFO there, and wait for its writer
  {"exit": CODE}                                          end at once
The harness imports `Pattern` from here to compare what was received.
"""

import hashlib
import json
import os
import signal
import sys
import time

# A prime: no write size and no buffer size divides it, so a shifted or repeated piece shows.
BLOCK_BYTES = 1_000_003
HEAD_BYTES = 16
GATE_TIMEOUT_S = 900


class Pattern:
    """An endless sequence of bytes, the same for the same seed, different at every offset."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._body = hashlib.shake_128(seed.encode()).digest(BLOCK_BYTES - HEAD_BYTES)

    def _block(self, number: int) -> bytes:
        return number.to_bytes(HEAD_BYTES, "big") + self._body

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at an offset."""
        pieces = []
        while length > 0:
            number, start = divmod(offset, BLOCK_BYTES)
            piece = self._slice(number, start, min(length, BLOCK_BYTES - start))
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _slice(self, number: int, start: int, length: int) -> bytes:
        end = start + length
        if start >= HEAD_BYTES:
            return self._body[start - HEAD_BYTES : end - HEAD_BYTES]
        return self._block(number)[start:end]

    def first_difference(self, offset: int, data: bytes) -> "int | None":
        """Return the index of the first byte of `data` that does not belong at `offset`."""
        wanted = self.read(offset, len(data))
        if wanted == data:
            return None
        return next(i for i in range(len(data)) if wanted[i] != data[i])


def write_all(data: bytes, write_bytes: int) -> None:
    """Write to standard output in writes of a size, whatever part of each is taken."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view[:write_bytes]) :]


def too_late(_number: int, _frame: object) -> None:
    """End a wait whose gate nobody opens: its harness has gone."""
    raise TimeoutError(f"nobody opened the gate in {GATE_TIMEOUT_S} s")


def wait_at_gate(path: str) -> None:
    """Make a FIFO, wait until somebody has opened it for writing, and remove it."""
    os.mkfifo(path, 0o600)
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(GATE_TIMEOUT_S)
    try:
        with open(path, "rb"):  # noqa: PTH123 - blocks until a writer comes; that is the gate
            os.unlink(path)  # noqa: PTH108 - pathlib would double the start-up time
    except OSError:
        os.unlink(path)  # noqa: PTH108 - as above
        raise
    signal.alarm(0)


def run(pattern: Pattern, steps: "list[dict[str, object]]") -> None:
    """Run a plan."""
    offset = 0
    for step in steps:
        if "gate" in step:
            wait_at_gate(str(step["gate"]))
        elif "exit" in step:
            os._exit(int(str(step["exit"])))
        else:
            size = int(str(step["bytes"]))
            for _ in range(int(str(step.get("repeat", 1)))):
                write_all(pattern.read(offset, size), int(str(step.get("write", size))))
                offset += size
                time.sleep(float(str(step.get("pause_ms", 0))) / 1000)


if __name__ == "__main__":
    run(Pattern(sys.argv[1]), json.loads(sys.argv[2]))
