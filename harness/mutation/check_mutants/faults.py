"""Servers that a crash or a step of the clock harms; both need a machine that may be disturbed."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

_RECLAIMS: Final = "        cgroup.kill()\n        if not cgroup.wait_empty(_RECLAIM_MAX_S):\n"
_FOUND: Final = "            job = self._jobs.get(canonical)\n        if job is None:\n"

GUEST_MUTANTS: Final = (
    Mutation(
        "removes a killed server's cgroups without those that jobs made inside",
        (
            Edit(
                "worker.py",
                "            continue\n        cgroup.remove()\n",
                "            continue\n"
                '        with __import__("contextlib").suppress(OSError):\n'
                "            cgroup.path.rmdir()\n",
            ),
        ),
        "limits.crashes",
    ),
    Mutation(
        "removes only those cgroups of a killed server that have processes",
        (
            Edit(
                "worker.py",
                _RECLAIMS,
                "        if not cgroup.processes():\n            continue\n" + _RECLAIMS,
            ),
        ),
        "limits.crashes",
    ),
    Mutation(
        "knows the ids of the jobs that a killed server left",
        (
            Edit(
                "worker.py",
                _RECLAIMS,
                '        _reclaim.__dict__.setdefault("ids", set()).add(cgroup.path.name)\n'
                + _RECLAIMS,
            ),
            Edit(
                "worker.py",
                _FOUND,
                "            job = self._jobs.get(canonical)\n"
                '        if canonical in _reclaim.__dict__.get("ids", ()):\n'
                '            raise HostExhaustedError("a job of an earlier server")\n'
                "        if job is None:\n",
            ),
        ),
        "limits.crashes",
    ),
    Mutation(
        "measures timers by the wall clock",
        (
            Edit(
                "reactor.py",
                "Timer(time.monotonic() + delay_s, callback)",
                "Timer(time.time() + delay_s, callback)",
            ),
            Edit(
                "reactor.py",
                "self._timers[0][0] - time.monotonic()",
                "self._timers[0][0] - time.time()",
            ),
            Edit(
                "reactor.py",
                "        now_s = time.monotonic()\n        while self._timers",
                "        now_s = time.time()\n        while self._timers",
            ),
        ),
        "lifecycle.clock-steps",
    ),
    Mutation(
        "holds output back by the wall clock",
        (
            Edit(
                "follow.py",
                "batching.flush_interval_s - time.monotonic()",
                "batching.flush_interval_s - time.time()",
            ),
            Edit(
                "follow.py",
                "            reader.sent_at_s = time.monotonic()",
                "            reader.sent_at_s = time.time()",
            ),
            Edit(
                "courier.py",
                "import time\n",
                "from time import time as wall_s\nfrom types import SimpleNamespace\n\n"
                "time = SimpleNamespace(monotonic=wall_s)\n",
            ),
        ),
        "lifecycle.clock-steps",
    ),
    Mutation(
        "computes a stream's end from its certificate's once",
        (
            Edit(
                "gate.py",
                "        valid_for_s = min(identity.valid_for_s(), CLOCK_LOOK_S)\n",
                '        now_s = __import__("time").monotonic()\n'
                '        ends = self.__dict__.setdefault("_ends_at_s", {})\n'
                "        if identity not in ends:\n"
                "            ends[identity] = now_s + identity.valid_for_s()\n"
                "        if ends[identity] < now_s:\n"
                "            identity.valid_for_s()\n"
                "        valid_for_s = min(max(0.0, ends[identity] - now_s), CLOCK_LOOK_S)\n",
            ),
        ),
        "lifecycle.clock-steps",
    ),
)
