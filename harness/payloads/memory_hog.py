"""Takes memory, all of it touched: arguments are mebibytes and, optionally, the path of a gate.

Without a gate the main process takes it and says how much. With one a child takes it, slowly, once
somebody has opened the gate (a FIFO) for writing; the main process only waits for it. So a kernel
that kills no more than the process that asks for too much leaves a main process: it exits with 3.
"""

import os
import sys
import time

MIB = 1024 * 1024
PAUSE_S = 0.02


def take(mebibytes: int, pause_s: float) -> int:
    """Take memory and return how much."""
    held = []
    for _ in range(mebibytes):
        held.append(b"x" * MIB)
        if pause_s:
            time.sleep(pause_s)
    return len(held)


def main(mebibytes: int, gate: str) -> None:
    """Take memory, in a child when there is a gate."""
    if not gate:
        os.write(1, b"%d\n" % take(mebibytes, 0))
        return
    os.mkfifo(gate, 0o600)
    os.write(1, b"ready\n")
    with open(gate, "rb"):  # noqa: PTH123 - blocks until a writer comes; that is the gate
        os.unlink(gate)  # noqa: PTH108 - pathlib would double the start-up time
    pid = os.fork()
    if pid == 0:
        take(mebibytes, PAUSE_S)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    os._exit(3 if os.WIFSIGNALED(status) else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")  # noqa: PLR2004 - optional
