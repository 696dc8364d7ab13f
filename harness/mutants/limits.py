"""Servers whose limits do not bite, or whose cgroups outlive their jobs."""

from typing import Final

from harness.mutants.mutant import Mutant

_WRITES_CPU: Final = 'files.append(("cpu.max", f"{quota_us} {CPU_PERIOD_US}"))'
_QUOTA: Final = "quota_us = self.cpu_millicores * CPU_PERIOD_US // 1000"
_DEFAULTS: Final = "cpu_millicores=500, memory_max_bytes=100 * 1024 * 1024, io_weight=500"
_SPAWNED: Final = "            output_fd, child = _spawn_with_pipe(command, cgroup)\n"
_SWITCHES_ON: Final = (
    '            (root / "cgroup.subtree_control").write_text(_enable_line(), encoding="ascii")\n'
)

_ENFORCED: Final = (
    Mutant(
        "gives jobs the kernel's own weight by default",
        "cgroup.py",
        _DEFAULTS,
        _DEFAULTS.replace("io_weight=500", "io_weight=100"),
        "limits.defaults",
    ),
    Mutant(
        "takes 100 MB for 100,000,000 bytes",
        "cgroup.py",
        _DEFAULTS,
        _DEFAULTS.replace("100 * 1024 * 1024", "100_000_000"),
        "limits.defaults",
    ),
    Mutant(
        "gives jobs a whole core by default",
        "cgroup.py",
        _DEFAULTS,
        _DEFAULTS.replace("cpu_millicores=500", "cpu_millicores=1000"),
        "limits.default-half-core",
        also=("limits.defaults",),
    ),
    Mutant(
        "does not write the CPU limit",
        "cgroup.py",
        _WRITES_CPU,
        "del quota_us",
        "limits.cpu-half-core",
        also=(
            "limits.defaults",
            "limits.default-half-core",
            "limits.cpu-one-core",
            "limits.cpu-two-cores",
            "limits.twenty-at-once",
            "limits.above-the-host",
        ),
    ),
    Mutant(
        "writes the CPU limit to cpu.weight",
        "cgroup.py",
        _WRITES_CPU,
        'files.append(("cpu.weight", str(min(10_000, max(1, quota_us // 1000)))))',
        "limits.cpu-half-core",
        also=(
            "limits.defaults",
            "limits.default-half-core",
            "limits.cpu-one-core",
            "limits.cpu-two-cores",
            "limits.twenty-at-once",
            "limits.above-the-host",
        ),
    ),
    Mutant(
        "gives no job more than half a core",
        "cgroup.py",
        _QUOTA,
        "quota_us = min(self.cpu_millicores, 500) * CPU_PERIOD_US // 1000",
        "limits.cpu-one-core",
        also=("limits.cpu-two-cores", "limits.above-the-host"),
    ),
    Mutant(
        "gives no job more than one core",
        "cgroup.py",
        _QUOTA,
        "quota_us = min(self.cpu_millicores, 1000) * CPU_PERIOD_US // 1000",
        "limits.cpu-two-cores",
        also=("limits.above-the-host",),
    ),
    Mutant(
        "gives all jobs together one core",
        "cgroup.py",
        _SWITCHES_ON,
        _SWITCHES_ON + '            (root / "cpu.max").write_text("100000 100000")\n',
        "limits.cpu-two-cores",
    ),
    Mutant(
        "lets a job run on one processor only",
        "worker.py",
        "        child = spawn(command, write_fd, cgroup)\n",
        "        child = spawn(command, write_fd, cgroup)\n"
        "        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})\n",
        "limits.cpu-two-cores",
    ),
    Mutant(
        "limits no memory when nothing is asked",
        "worker.py",
        "memory_max_bytes=asked.memory_max_bytes or defaults.memory_max_bytes,",
        "memory_max_bytes=asked.memory_max_bytes,",
        "limits.default-memory",
        also=("limits.defaults", "limits.first-breath", "limits.memory-bomb"),
    ),
    Mutant(
        "gives jobs 50 MB by default",
        "cgroup.py",
        _DEFAULTS,
        _DEFAULTS.replace("100 * 1024 * 1024", "50 * 1024 * 1024"),
        "limits.memory-within",
        also=("limits.defaults",),
    ),
    Mutant(
        "writes the memory limit to memory.low",
        "cgroup.py",
        'files.append(("memory.max", str(self.memory_max_bytes)))',
        'files.append(("memory.low", str(self.memory_max_bytes)))',
        "limits.memory",
        also=(
            "limits.defaults",
            "limits.default-memory",
            "limits.first-breath",
            "limits.memory-bomb",
            "limits.twenty-at-once",
            "limits.above-the-host",
        ),
    ),
    Mutant(
        "lets the OOM killer take one process of a job",
        "cgroup.py",
        'files.append(("memory.oom.group", "1"))',
        "pass",
        "limits.memory",
        also=("limits.default-memory",),
    ),
    Mutant(
        "lets the OOM killer take one process of a job with the default memory",
        "cgroup.py",
        'files.append(("memory.oom.group", "1"))',
        'files.append(("memory.oom.group", str(int(self.memory_max_bytes != 104_857_600))))',
        "limits.default-memory",
    ),
    Mutant(
        "counts how often memory ran out for how many it killed",
        "cgroup.py",
        'oom_kills=oom.get("oom_kill", 0),',
        'oom_kills=oom.get("oom", 0),',
        "limits.memory",
        also=("limits.default-memory",),
    ),
    Mutant(
        "tells every job that one was killed for its memory",
        "cgroup.py",
        '(self.path / "memory.events", memory_events_fd)',
        '(self.path.parent / "memory.events")',
        "limits.twenty-at-once",
    ),
    Mutant(
        "does not tell that the OOM killer struck",
        "job.py",
        "oom_killed=usage is not None and usage.oom_kills > 0,",
        "oom_killed=False,",
        "limits.memory",
    ),
    Mutant(
        "answers a query of a running job after six seconds",
        "worker.py",
        "        return self._job(job_id).status()\n",
        "        job = self._job(job_id)\n"
        "        if not job.wait_ended(0):\n"
        "            threading.Event().wait(6)\n"
        "        return job.status()\n",
        "limits.memory-bomb",
        also=("limits.fork-bomb",),
    ),
    Mutant(
        "kills a hundred processes of a job, one by one",
        "job.py",
        "        kill_through(self._kill_fd)\n",
        '        for pid in (self._cgroup.path / "cgroup.procs").read_text().split()[:100]:\n'
        '            with __import__("contextlib").suppress(ProcessLookupError):\n'
        "                os.kill(int(pid), 9)\n",
        "limits.fork-bomb",
        also=("limits.sub-cgroups",),
    ),
    Mutant(
        "does not write the process limit",
        "cgroup.py",
        'files.append(("pids.max", str(self.pids_max)))',
        'files.append(("pids.max", "max"))',
        "limits.pids",
        also=("limits.fork-bomb", "limits.twenty-at-once"),
    ),
    Mutant(
        "writes the limits when the job has run for five seconds",
        "worker.py",
        _SPAWNED,
        _SPAWNED + "            write = Hierarchy._write_limits\n"
        "            given, no_limits = limits, Limits()\n"
        "            if cgroup is not None:\n"
        "                for file, text in (('memory.max', 'max'), ('cpu.max', 'max 100000')):\n"
        "                    (cgroup.path / file).write_text(text)\n"
        "                threading.Timer(5, write, (cgroup.path, given or no_limits)).start()\n",
        "limits.first-breath",
        also=("limits.defaults", "limits.default-half-core", "limits.default-memory"),
    ),
    Mutant(
        "gives every job the default memory",
        "worker.py",
        "memory_max_bytes=asked.memory_max_bytes or defaults.memory_max_bytes,",
        "memory_max_bytes=defaults.memory_max_bytes,",
        "limits.twenty-at-once",
        also=("limits.memory", "limits.above-the-host"),
    ),
)

_DISK: Final = (
    Mutant(
        "puts no ceiling on bytes written",
        "cgroup.py",
        '"wbps": self.write_bytes_per_second,',
        '"wbps": self.write_bytes_per_second and 2**40,',
        "limits.io-bytes-per-second",
    ),
    Mutant(
        "puts no ceiling on bytes read",
        "cgroup.py",
        '"rbps": self.read_bytes_per_second,',
        '"rbps": self.read_bytes_per_second and 2**40,',
        "limits.io-read-bytes-per-second",
    ),
    Mutant(
        "takes bytes read for bytes written",
        "cgroup.py",
        '"rbps": self.read_bytes_per_second,',
        '"rbps": self.write_bytes_per_second,',
        "limits.io-read-bytes-per-second",
        also=("limits.io-bytes-per-second",),
        more=(
            (
                "cgroup.py",
                '"wbps": self.write_bytes_per_second,',
                '"wbps": self.read_bytes_per_second,',
            ),
        ),
    ),
    Mutant(
        "puts no ceiling on writing operations",
        "cgroup.py",
        '"wiops": self.write_operations_per_second,',
        '"wiops": self.write_operations_per_second and 2**40,',
        "limits.io-write-operations-per-second",
    ),
    Mutant(
        "takes operations that write for ones that read",
        "cgroup.py",
        '"wiops": self.write_operations_per_second,',
        '"wiops": self.read_operations_per_second,',
        "limits.io-write-operations-per-second",
        also=("limits.io-operations-per-second",),
        more=(
            (
                "cgroup.py",
                '"riops": self.read_operations_per_second,',
                '"riops": self.write_operations_per_second,',
            ),
        ),
    ),
    Mutant(
        "takes operations a second for operations a minute, reading",
        "cgroup.py",
        '"riops": self.read_operations_per_second,',
        '"riops": self.read_operations_per_second and self.read_operations_per_second * 60,',
        "limits.io-operations-per-second",
    ),
    Mutant(
        "gives every job the same weight for disks",
        "cgroup.py",
        'files.append(("io.weight", f"default {self.io_weight}"))',
        'files.append(("io.weight", "default 500"))',
        "limits.io-weight",
    ),
)

_ASKED: Final = (
    Mutant(
        "takes a limit of 0 for the default",
        "cgroup.py",
        "            if value is not None and not lowest <= value <= highest:\n",
        "            if value and not lowest <= value <= highest:\n",
        "limits.impossible",
    ),
    Mutant(
        "leaves the cgroup whose limits the kernel refused",
        "cgroup.py",
        "            path.rmdir()\n            raise\n",
        "            raise\n",
        "limits.impossible",
    ),
    Mutant(
        "silently gives no more than 1 TiB of memory",
        "cgroup.py",
        'files.append(("memory.max", str(self.memory_max_bytes)))',
        'files.append(("memory.max", str(min(self.memory_max_bytes, 2**40))))',
        "limits.above-the-host",
    ),
    Mutant(
        "lets users start jobs with limits",
        "identity.py",
        '"/jobworker.v1.JobWorker/StartJob": _ADMINS,',
        '"/jobworker.v1.JobWorker/StartJob": _EVERYBODY,',
        "limits.only-admins",
        also=("identity.roles",),
    ),
    Mutant(
        "ignores limits when it runs without",
        "worker.py",
        "            if asked != Limits():\n",
        "            if asked is None:\n",
        "limits.without-limits",
    ),
    Mutant(
        "falls back to no limits without cgroup v2",
        "server.py",
        "Hierarchy.open(settings.cgroup_root) if settings.limits else None",
        "(Hierarchy.open(settings.cgroup_root) if settings.limits"
        ' and (settings.cgroup_root.parent / "cgroup.controllers").exists() else None)',
        "limits.no-cgroup2",
    ),
    Mutant(
        "does not look which controllers there are",
        "cgroup.py",
        "    missing = [controller for controller in CONTROLLERS if controller not in have]\n",
        "    missing: list[str] = []\n",
        "limits.missing-controller",
    ),
    Mutant(
        "shares its root with other servers",
        "cgroup.py",
        "fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "limits.root-in-use",
    ),
    Mutant(
        "kills what it finds in its root",
        "cgroup.py",
        _SWITCHES_ON,
        '            (root / "cgroup.kill").write_text("1", encoding="ascii")\n'
        "            Cgroup(root).wait_empty(5)\n" + _SWITCHES_ON,
        "limits.occupied-root",
        also=("limits.foreign-cgroup",),
    ),
)

_LIFECYCLE: Final = (
    Mutant(
        "starts a process outside and writes its pid to cgroup.procs",
        "worker.py",
        "        child = spawn(command, write_fd, cgroup)\n",
        "        child = spawn(command, write_fd, None)\n"
        "        if cgroup is not None:\n"
        '            (cgroup.path / "cgroup.procs").write_text(str(child.pid))\n',
        "limits.born-inside",
        also=("limits.never-moved",),
    ),
    Mutant(
        "writes the pid of a process that was born inside to cgroup.procs too",
        "worker.py",
        "        child = spawn(command, write_fd, cgroup)\n",
        "        child = spawn(command, write_fd, cgroup)\n"
        "        if cgroup is not None:\n"
        '            (cgroup.path / "cgroup.procs").write_text(str(child.pid))\n',
        "limits.never-moved",
    ),
    Mutant(
        "kills the process group only",
        "worker.py",
        "tree=cgroup_tree or GroupTree(child),",
        "tree=GroupTree(child),",
        "limits.daemons-at-stop",
        also=(
            "limits.daemons-at-exit",
            "limits.fork-bomb",
            "limits.sub-cgroups",
            "limits.thousand-jobs",
            "limits.memory",
        ),
    ),
    Mutant(
        "leaves daemons when the main process exits",
        "job.py",
        "        self._kill()\n        self._drain_timer",
        "        self._cancel(self._kill_timer)\n        self._drain_timer",
        "limits.daemons-at-exit",
        also=("limits.daemons-at-stop",),
    ),
    Mutant(
        "leaves cgroups inside a job's",
        "cgroup.py",
        "for directory, _, _ in os.walk(self.path, topdown=False, onerror=_raise):",
        "for directory in [str(self.path)]:",
        "limits.sub-cgroups",
    ),
    Mutant(
        "leaves one cgroup in sixteen",
        "job.py",
        "            self._cgroup.remove()\n",
        '            if not self._cgroup.path.name.startswith("0"):\n'
        "                self._cgroup.remove()\n",
        "limits.thousand-jobs",
    ),
    Mutant(
        "does not reclaim leftovers",
        "worker.py",
        "            _reclaim(hierarchy)\n",
        "",
        "limits.leftovers",
    ),
    Mutant(
        "removes leftovers only where no process is left",
        "worker.py",
        "        cgroup.kill()\n        if not cgroup.wait_empty(_RECLAIM_MAX_S):\n",
        "        if not cgroup.wait_empty(0.1):\n",
        "limits.leftovers",
    ),
    Mutant(
        "takes every cgroup in its root for a leftover",
        "cgroup.py",
        "sorted(self.root.iterdir()) if _is_job_name(path.name)]",
        "sorted(self.root.iterdir()) if path.is_dir()]",
        "limits.foreign-cgroup",
    ),
    Mutant(
        "kills the pid of a job that has ended",
        "job.py",
        "        if self._exit is not None:\n            return\n        if grace_s <= 0:\n",
        "        if self._exit is not None:\n"
        "            try:\n"
        "                os.kill(self._process.pid, signal.SIGKILL)\n"
        "            except OSError:\n"
        "                pass\n"
        "            return\n"
        "        if grace_s <= 0:\n",
        "limits.pid-reuse",
    ),
)

MUTANTS: Final = (*_ENFORCED, *_DISK, *_ASKED, *_LIFECYCLE)
