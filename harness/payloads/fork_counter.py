"""Forks until that fails, and prints the number of children and the errno."""

import os
import signal


def main() -> None:
    """Fork and count; the bound is far above any limit that a check sets."""
    made = 0
    try:
        for _ in range(1000):
            if os.fork() == 0:
                signal.pause()
            made += 1
    except OSError as error:
        os.write(1, b"%d %d\n" % (made, error.errno or 0))
    else:
        os.write(1, b"%d 0\n" % made)


if __name__ == "__main__":
    main()
