"""Forks over and over, and ignores SIGTERM; each process leads a session of its own.

Arguments are the mebibytes that each process takes in each round, and how many rounds there are (0:
no end; each doubles the processes). Only a limit ends it, or a kill of all its processes at once.
"""

import os
import signal
import sys

MIB = 1024 * 1024


def main(mebibytes: int, rounds: int) -> None:
    """Multiply; a bomb with rounds goes on living after them."""
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
            continue  # no more may be: go on trying
    while True:
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
