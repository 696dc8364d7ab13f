"""Watches a cgroup file system for writes: the argument is a plan in JSON. Needs root.

  {"mount": PATH, "ready": PATH, "stop": PATH, "seconds": N}
Makes the file `ready` once it watches, ends when the file `stop` is there (or the time is over),
and prints a JSON list of the paths that were written to. Ends with 3 where the kernel cannot watch.
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
    """Return the paths that some events are about, and close their descriptors."""
    paths = []
    while events:
        length, _, _, _, _, fd, _ = EVENT.unpack_from(events)
        paths.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - as in the others
        os.close(fd)
        events = events[length:]
    return paths


def main(plan: "dict[str, str]") -> None:
    """Watch, and tell."""
    libc = ctypes.CDLL(None)
    watch = libc.fanotify_init(FAN_NONBLOCK_CLOEXEC, os.O_RDONLY)
    mask = ctypes.c_uint64(FAN_MODIFY)
    mount = plan["mount"].encode()
    if watch < 0 or libc.fanotify_mark(watch, FAN_MARK_ADD_MOUNT, mask, AT_FDCWD, mount) != 0:
        sys.exit(CANNOT_WATCH)
    open(plan["ready"], "wb").close()  # noqa: PTH123 - pathlib would start slower
    paths = []
    until_s = time.monotonic() + float(plan["seconds"])
    stopped = False
    while not stopped and time.monotonic() < until_s:
        # Looked at first: what was written before the file appeared is still read below.
        stopped = os.path.exists(plan["stop"])  # noqa: PTH110 - as above
        while select.select([watch], [], [], 0.1)[0]:
            paths += paths_of(os.read(watch, 65536))
    sys.stdout.write(json.dumps(paths))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
