"""Allocates and touches memory. Arguments: mebibytes and, optionally, the path of a gate.

Without a gate the main process allocates it and prints how much. With a gate, a FIFO, a child
allocates it slowly, once another process has opened the gate for writing; the main process only
waits for the child. So if the kernel kills the allocating process alone, the main process exits
with 3.
"""

import os
import sys
import time

MIB = 1024 * 1024
PAUSE_S = 0.02


def take(mebibytes: int, pause_s: float) -> int:
    """Allocate memory and return how much."""
    held = []
    for _ in range(mebibytes):
        held.append(b"x" * MIB)
        if pause_s:
            time.sleep(pause_s)
    return len(held)


def main(mebibytes: int, gate: str) -> None:
    """Allocate memory, in a child if a gate is given."""
    if not gate:
        os.write(1, b"%d\n" % take(mebibytes, 0))
        return
    os.mkfifo(gate, 0o600)
    os.write(1, b"ready\n")
    with open(gate, "rb"):  # noqa: PTH123 - blocks until a writer opens it
        os.unlink(gate)  # noqa: PTH108 - pathlib would double the start-up time
    pid = os.fork()
    if pid == 0:
        take(mebibytes, PAUSE_S)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    os._exit(3 if os.WIFSIGNALED(status) else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")  # noqa: PLR2004 - optional
