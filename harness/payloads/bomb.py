"""Forks repeatedly and ignores SIGTERM; each process leads a session of its own.

Arguments: the mebibytes that each process allocates in each round, and the number of rounds (0:
endless; each round doubles the processes). Only a limit ends it, or a kill of all its processes at
once.
"""

import os
import signal
import sys

MIB = 1024 * 1024


def main(mebibytes: int, rounds: int) -> None:
    """Multiply; after the last round the processes stay alive."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = []
    done = 0
    os.write(1, b"ready\n")
    while rounds == 0 or done < rounds:
        done += 1
        if mebibytes:
            held.append(b"x" * (mebibytes * MIB))
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            continue  # at the limit: retry
    while True:
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
