"""Writes a reproducible pattern to standard output, in bursts: arguments are a seed and a plan.

The plan is a JSON list of steps, each an object with all of these fields:
  gate         path: create a FIFO there and wait until another process opens it for writing;
               empty: do not wait
  size_bytes   then write so many bytes ...
  write_bytes  ... in writes of at most this size (0: one write) ...
  pause_ms     ... and sleep so long ...
  repeat       ... so many times
The harness imports `Pattern` from here to compare the received bytes.
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
# The first line ends here at the latest: some servers deliver whole lines only.
LINE_BYTES = 64
GATE_TIMEOUT_S = 900


class Pattern:
    """An endless sequence of bytes: determined by the seed, different at every offset.

    The last of the first LINE_BYTES of each block is an end of line.
    """

    def __init__(self, seed: str) -> None:
        self.seed = seed
        body = hashlib.shake_128(seed.encode()).digest(BLOCK_BYTES - HEAD_BYTES)
        line = LINE_BYTES - HEAD_BYTES
        self._body = body[: line - 1] + b"\n" + body[line:]

    def _block(self, number: int) -> bytes:
        # Never zero: a zero is what a broken server sends for a byte that it does not have.
        head = hashlib.shake_128(f"{self.seed} {number}".encode()).digest(HEAD_BYTES)
        return bytes(byte | 0x80 for byte in head) + self._body

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
    """Write to standard output in writes of at most a size; a short write is continued."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view[:write_bytes]) :]


def time_out(_number: int, _frame: object) -> None:
    """End the wait at a gate that stays closed: the harness has gone."""
    raise TimeoutError(f"the gate was not opened in {GATE_TIMEOUT_S} s")


def wait_at_gate(path: str) -> None:
    """Create a FIFO, wait until another process has opened it for writing, and remove it."""
    os.mkfifo(path, 0o600)
    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(GATE_TIMEOUT_S)
    try:
        with open(path, "rb"):  # noqa: PTH123 - blocks until a writer opens it
            os.unlink(path)  # noqa: PTH108 - pathlib would double the start-up time
    except OSError:
        os.unlink(path)  # noqa: PTH108 - as above
        raise
    signal.alarm(0)


def run(pattern: Pattern, plan: str) -> None:
    """Run a plan."""
    offset = 0
    for step in json.loads(plan):
        if step["gate"]:
            wait_at_gate(step["gate"])
        size_bytes = step["size_bytes"]
        for _ in range(step["repeat"]):
            write_all(pattern.read(offset, size_bytes), step["write_bytes"] or size_bytes)
            offset += size_bytes
            time.sleep(step["pause_ms"] / 1000)


if __name__ == "__main__":
    run(Pattern(sys.argv[1]), sys.argv[2])
