"""Samples the counters of cgroups on their host.

The argument is a plan in JSON:
  {"directories": [PATH], "seconds": N, "step_s": S, "gate": PATH}
The gate, a FIFO at which a job waits, is opened for writing at the start; empty: no gate. Ends
early once all directories are gone. Prints a JSON object: directory -> list of [seconds, counters].
Sources: cgroup-v2.rst, "cpu.stat", "memory.current", "io.stat".
"""

import json
import sys
import time


def lines_of(path: str) -> "list[str]":
    """Return a file's lines; an empty list if it is missing."""
    try:
        with open(path) as file:  # noqa: PTH123 - pathlib would double the start-up time
            return file.read().splitlines()
    except OSError:
        return []


def counters(directory: str) -> "dict[str, int] | None":
    """Return a cgroup's counters, or None if it is gone."""
    cpu = dict(line.split() for line in lines_of(f"{directory}/cpu.stat"))
    if not cpu:
        return None
    disk = [word for line in lines_of(f"{directory}/io.stat") for word in line.split()]
    memory = lines_of(f"{directory}/memory.current") or ["0"]
    return {
        "cpu_us": int(cpu["usage_usec"]),
        "throttled": int(cpu.get("nr_throttled", 0)),
        "memory_bytes": int(memory[0]),
        "read_bytes": sum(int(word[7:]) for word in disk if word.startswith("rbytes=")),
        "written_bytes": sum(int(word[7:]) for word in disk if word.startswith("wbytes=")),
    }


def main(plan_json: str) -> None:
    """Sample until the time has passed or all cgroups are gone."""
    plan = json.loads(plan_json)
    directories = plan["directories"]
    found: "dict[str, list[object]]" = {directory: [] for directory in directories}  # noqa: UP037
    if plan["gate"]:
        open(plan["gate"], "wb").close()  # noqa: PTH123 - as above
    started_s = time.monotonic()
    alive = directories
    while alive and time.monotonic() - started_s < plan["seconds"]:
        for directory in list(alive):
            now = counters(directory)
            if now is None:
                alive = [each for each in alive if each != directory]
            else:
                found[directory].append([round(time.monotonic() - started_s, 3), now])
        time.sleep(plan["step_s"])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
