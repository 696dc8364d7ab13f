"""Watches a cgroup file system for writes. Needs root.

The argument is a plan in JSON:
  {"mount": PATH, "ready": PATH, "stop": PATH, "seconds": N}
Creates the file `ready` once it watches, ends once the file `stop` exists or the time has passed,
and prints a JSON list of the paths that were written to. Exits with 3 if the kernel cannot watch.
Sources: fanotify_init(2), fanotify_mark(2), fanotify(7).
"""

import ctypes
import json
import os
import select
import struct
import sys
import time

FAN_NONBLOCK_CLOEXEC = 0x3
FAN_MARK_ADD_MOUNT = 0x1 | 0x10
FAN_MODIFY = 0x2
AT_FDCWD = -100
EVENT = struct.Struct("=IBBHQii")  # length, version, reserved, metadata length, mask, fd, pid
CANNOT_WATCH = 3


def paths_of(events: bytes) -> "list[str]":
    """Return the paths of some events, and close their descriptors."""
    paths = []
    while events:
        length, _, _, _, _, fd, _ = EVENT.unpack_from(events)
        paths.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - as in the others
        os.close(fd)
        events = events[length:]
    return paths


def main(plan_json: str) -> None:
    """Watch, and print the paths."""
    plan = json.loads(plan_json)
    libc = ctypes.CDLL(None)
    watch = libc.fanotify_init(FAN_NONBLOCK_CLOEXEC, os.O_RDONLY)
    mask = ctypes.c_uint64(FAN_MODIFY)
    mount = plan["mount"].encode()
    if watch < 0 or libc.fanotify_mark(watch, FAN_MARK_ADD_MOUNT, mask, AT_FDCWD, mount) != 0:
        sys.exit(CANNOT_WATCH)
    open(plan["ready"], "wb").close()  # noqa: PTH123 - pathlib would start slower
    paths = []
    until_s = time.monotonic() + plan["seconds"]
    stopped = False
    while not stopped and time.monotonic() < until_s:
        # Checked first: events from before the file appeared are still read below.
        stopped = os.path.exists(plan["stop"])  # noqa: PTH110 - as above
        while select.select([watch], [], [], 0.1)[0]:
            paths += paths_of(os.read(watch, 65536))
    sys.stdout.write(json.dumps(paths))


if __name__ == "__main__":
    main(sys.argv[1])
