"""Moves every counter of its cgroup, then does nothing. Arguments: a gate, and a disk or "".

Prints `ready`, and works once another process has opened the gate, a FIFO, for writing: it burns
CPU, lets a child allocate memory until the OOM killer ends it, and reads and writes the disk past
the page cache. Then two children sleep, it prints `done`, and sleeps, too. All end by themselves
after some minutes.
"""

import mmap
import os
import sys
import time

MIB = 1024 * 1024
BURNED_S = 0.5  # more than the quota of several periods
HOG_MIB = 512  # more than the job's limit
READ_BYTES = 12 * 4096
WRITTEN_BYTES = 5 * 4096
SLEEPERS = 2
REST_S = 300


def burn() -> None:
    """Use CPU."""
    until_s = time.process_time() + BURNED_S
    while time.process_time() < until_s:
        pass


def run_out_of_memory() -> None:
    """Let a child allocate more than the job's limit, and wait for its end."""
    pid = os.fork()
    if pid == 0:
        held = [b"x" * MIB for _ in range(HOG_MIB)]
        os._exit(len(held) and 1)
    os.waitpid(pid, 0)


def use(disk: str) -> None:
    """Read and write the start of a disk; what it has there stays."""
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    # Direct transfers need aligned memory.
    read, written = mmap.mmap(-1, READ_BYTES), mmap.mmap(-1, WRITTEN_BYTES)
    os.preadv(fd, [read], 0)
    written[:] = read[:WRITTEN_BYTES]
    os.pwritev(fd, [written], 0)
    os.close(fd)


def main(gate: str, disk: str) -> None:
    """Work, then rest."""
    os.mkfifo(gate, 0o600)
    os.write(1, b"ready\n")
    with open(gate, "rb"):  # noqa: PTH123 - blocks until a writer opens it
        os.unlink(gate)  # noqa: PTH108 - pathlib would double the start-up time
    burn()
    run_out_of_memory()
    if disk:
        use(disk)
    for _ in range(SLEEPERS):
        if os.fork() == 0:
            time.sleep(REST_S)
            os._exit(0)
    os.write(1, b"done\n")
    time.sleep(REST_S)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
