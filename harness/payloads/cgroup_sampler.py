"""Samples the counters of cgroups on their host: the argument is a plan in JSON.

  {"directories": [PATH], "seconds": N, "step_s": S, "gate": PATH}
The gate, a FIFO that somebody waits at, is opened at the start; it may be absent. Ends early when
all directories are gone. Prints a JSON object: directory -> list of [seconds, counters].
Sources: cgroup-v2.rst, "cpu.stat", "memory.current", "io.stat".
"""

import json
import sys
import time


def lines_of(path: str) -> "list[str]":
    """Return a file's lines; of a missing one, none."""
    try:
        with open(path) as file:  # noqa: PTH123 - pathlib would double the start-up time
            return file.read().splitlines()
    except OSError:
        return []


def counters(directory: str) -> "dict[str, int] | None":
    """Return what a cgroup has counted, or None when it is gone."""
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


def main(plan: "dict[str, object]") -> None:
    """Sample until the time is over or nothing is left to sample."""
    directories = list(map(str, plan["directories"]))  # type: ignore[call-overload]
    found: "dict[str, list[object]]" = {directory: [] for directory in directories}  # noqa: UP037
    if plan.get("gate"):
        open(str(plan["gate"]), "wb").close()  # noqa: PTH123 - as above
    started_s = time.monotonic()
    alive = directories
    while alive and time.monotonic() - started_s < float(str(plan["seconds"])):
        for directory in list(alive):
            now = counters(directory)
            if now is None:
                alive = [each for each in alive if each != directory]
            else:
                found[directory].append([round(time.monotonic() - started_s, 3), now])
        time.sleep(float(str(plan["step_s"])))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
