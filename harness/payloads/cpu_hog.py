"""Burns CPU. Arguments: the number of processes, and for how many seconds (0: endless).

Prints `ready` once all of them burn, and at the end their CPU time and the wall time as JSON.
"""

import json
import os
import sys
import time


def burn(seconds: float) -> None:
    """Use a whole processor."""
    until_s = time.monotonic() + seconds
    while seconds == 0 or time.monotonic() < until_s:
        pass


def main(processes: int, seconds: float) -> None:
    """Burn, and print the times."""
    started_s, used_s = time.monotonic(), time.process_time()
    children = []
    for _ in range(processes - 1):
        pid = os.fork()
        if pid == 0:
            burn(seconds)
            os._exit(0)
        children.append(pid)
    os.write(1, b"ready\n")
    burn(seconds)
    cpu_s = time.process_time() - used_s
    for pid in children:
        usage = os.wait4(pid, 0)[2]
        cpu_s += usage.ru_utime + usage.ru_stime
    times = {"cpu_s": cpu_s, "wall_s": time.monotonic() - started_s}
    os.write(1, (json.dumps(times) + "\n").encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
