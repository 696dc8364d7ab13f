"""Servers that enforce limits wrongly."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

_WRITES_CPU: Final = 'files.append(("cpu.max", f"{quota_us} {CPU_PERIOD_US}"))'
_QUOTA: Final = "quota_us = self.cpu_millicores * CPU_PERIOD_US // 1000"
_DEFAULTS: Final = "cpu_millicores=500, memory_max_bytes=100 * 1024 * 1024, io_weight=500"
_SPAWNED: Final = "            output_fd, tree.main = _spawn_with_pipe(command, cgroup, self._settings.job_user)\n"
ENABLES_CONTROLLERS: Final = (
    '            (root / "cgroup.subtree_control").write_text(_enable_line(), encoding="ascii")\n'
)

_ENFORCED: Final = (
    Mutation(
        "gives jobs the kernel's default I/O weight",
        (Edit("cgroup.py", _DEFAULTS, _DEFAULTS.replace("io_weight=500", "io_weight=100")),),
        "limits.defaults",
    ),
    Mutation(
        "computes 100 MB as 100,000,000 bytes",
        (Edit("cgroup.py", _DEFAULTS, _DEFAULTS.replace("100 * 1024 * 1024", "100_000_000")),),
        "limits.defaults",
    ),
    Mutation(
        "gives jobs a whole core by default",
        (
            Edit(
                "cgroup.py",
                _DEFAULTS,
                _DEFAULTS.replace("cpu_millicores=500", "cpu_millicores=1000"),
            ),
        ),
        "limits.default-half-core",
        also=("limits.defaults",),
    ),
    Mutation(
        "does not write the CPU limit",
        (Edit("cgroup.py", _WRITES_CPU, "del quota_us"),),
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
    Mutation(
        "writes the CPU limit to cpu.weight",
        (
            Edit(
                "cgroup.py",
                _WRITES_CPU,
                'files.append(("cpu.weight", str(min(10_000, max(1, quota_us // 1000)))))',
            ),
        ),
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
    Mutation(
        "gives no job more than half a core",
        (
            Edit(
                "cgroup.py",
                _QUOTA,
                "quota_us = min(self.cpu_millicores, 500) * CPU_PERIOD_US // 1000",
            ),
        ),
        "limits.cpu-one-core",
        also=("limits.cpu-two-cores", "limits.above-the-host"),
    ),
    Mutation(
        "gives no job more than one core",
        (
            Edit(
                "cgroup.py",
                _QUOTA,
                "quota_us = min(self.cpu_millicores, 1000) * CPU_PERIOD_US // 1000",
            ),
        ),
        "limits.cpu-two-cores",
        also=("limits.above-the-host",),
    ),
    Mutation(
        "limits all jobs together to one core",
        (
            Edit(
                "hierarchy.py",
                ENABLES_CONTROLLERS,
                ENABLES_CONTROLLERS
                + '            (root / "cpu.max").write_text("100000 100000")\n',
            ),
        ),
        "limits.cpu-two-cores",
    ),
    Mutation(
        "pins each job to one processor",
        (
            Edit(
                "worker.py",
                "        child = spawn(command, write_fd, cgroup, user)\n",
                "        child = spawn(command, write_fd, cgroup, user)\n"
                "        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})\n",
            ),
        ),
        "limits.cpu-two-cores",
    ),
    Mutation(
        "limits no memory by default",
        (
            Edit(
                "worker.py",
                "memory_max_bytes=given.memory_max_bytes or defaults.memory_max_bytes,",
                "memory_max_bytes=given.memory_max_bytes,",
            ),
        ),
        "limits.default-memory",
        also=("limits.defaults", "limits.first-breath", "limits.memory-bomb"),
    ),
    Mutation(
        "gives jobs 50 MB by default",
        (Edit("cgroup.py", _DEFAULTS, _DEFAULTS.replace("100 * 1024 * 1024", "50 * 1024 * 1024")),),
        "limits.memory-within",
        also=("limits.defaults",),
    ),
    Mutation(
        "writes the memory limit to memory.low",
        (
            Edit(
                "cgroup.py",
                'files.append(("memory.max", str(self.memory_max_bytes)))',
                'files.append(("memory.low", str(self.memory_max_bytes)))',
            ),
        ),
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
    Mutation(
        "lets the OOM killer kill a single process of a job",
        (Edit("cgroup.py", 'files.append(("memory.oom.group", "1"))', "pass"),),
        "limits.memory",
        also=("limits.default-memory",),
    ),
    Mutation(
        "lets the OOM killer kill a single process of a job with the default memory",
        (
            Edit(
                "cgroup.py",
                'files.append(("memory.oom.group", "1"))',
                'files.append(("memory.oom.group", str(int(self.memory_max_bytes != 104_857_600))))',
            ),
        ),
        "limits.default-memory",
    ),
    Mutation(
        "reports OOM events as OOM kills",
        (Edit("cgroup.py", 'oom_kills=oom.get("oom_kill", 0),', 'oom_kills=oom.get("oom", 0),'),),
        "limits.memory",
        also=("limits.default-memory", "limits.usage"),
    ),
    Mutation(
        "reports one job's OOM kill in every job's status",
        (
            Edit(
                "cgroup.py",
                '(self.path / "memory.events", memory_events_fd)',
                '(self.path.parent / "memory.events")',
            ),
        ),
        "limits.twenty-at-once",
    ),
    Mutation(
        "never reports an OOM kill in a job's status",
        (
            Edit(
                "job.py",
                "return self.usage is not None and self.usage.oom_kills > 0",
                "return False",
            ),
        ),
        "limits.memory",
        also=("limits.usage",),
    ),
    Mutation(
        "reports an OOM kill only once the job has ended",
        (
            Edit(
                "job.py",
                "return self.usage is not None and self.usage.oom_kills > 0",
                "return bool(self.ended_at_s and self.usage and self.usage.oom_kills)",
            ),
        ),
        "limits.usage",
    ),
    Mutation(
        "reports bytes read as bytes written",
        (Edit("cgroup.py", "io_write_bytes=write_bytes,", "io_write_bytes=read_bytes,"),),
        "limits.usage",
    ),
    Mutation(
        "reports the default weight for every job",
        (Edit("wire.py", "io_weight=limits.io_weight,", "io_weight=500,"),),
        "limits.reported",
    ),
    Mutation(
        "reports no limit of a job that has ended",
        (
            Edit(
                "service.py",
                "limits=limits_to_message(status.limits),",
                "limits=None if status.ended_at_s else limits_to_message(status.limits),",
            ),
        ),
        "limits.reported",
    ),
    Mutation(
        "answers a query of a running job after six seconds",
        (
            Edit(
                "worker.py",
                "        return self.find(job_id).status_with_usage()\n",
                "        job = self.find(job_id)\n"
                "        if not job.wait_ended(0):\n"
                "            threading.Event().wait(6)\n"
                "        return job.status()\n",
            ),
        ),
        "limits.memory-bomb",
        also=("limits.fork-bomb",),
    ),
    Mutation(
        "kills at most 100 processes of a job, one by one",
        (
            Edit(
                "tree.py",
                "        kill_through(self._kill_fd)\n",
                '        for pid in (self._cgroup.path / "cgroup.procs").read_text().split()[:100]:\n'
                '            with __import__("contextlib").suppress(ProcessLookupError):\n'
                "                os.kill(int(pid), 9)\n",
            ),
        ),
        "limits.fork-bomb",
        also=("limits.sub-cgroups",),
    ),
    Mutation(
        "does not write the process limit",
        (
            Edit(
                "cgroup.py",
                'files.append(("pids.max", str(self.pids_max)))',
                'files.append(("pids.max", "max"))',
            ),
        ),
        "limits.pids",
        also=("limits.fork-bomb", "limits.twenty-at-once"),
    ),
    Mutation(
        "writes the limits five seconds after the job's start",
        (
            Edit(
                "worker.py",
                _SPAWNED,
                _SPAWNED + "            write = Hierarchy._write_limits\n"
                "            given, no_limits = limits, Limits()\n"
                "            if cgroup is not None:\n"
                "                for file, text in (('memory.max', 'max'), ('cpu.max', 'max 100000')):\n"
                "                    (cgroup.path / file).write_text(text)\n"
                "                threading.Timer(5, write, (cgroup.path, given or no_limits)).start()\n",
            ),
        ),
        "limits.first-breath",
        also=("limits.defaults", "limits.default-half-core", "limits.default-memory"),
    ),
    Mutation(
        "gives every job the default memory",
        (
            Edit(
                "worker.py",
                "memory_max_bytes=given.memory_max_bytes or defaults.memory_max_bytes,",
                "memory_max_bytes=defaults.memory_max_bytes,",
            ),
        ),
        "limits.twenty-at-once",
        also=("limits.memory", "limits.above-the-host"),
    ),
)

_DISK: Final = (
    Mutation(
        "does not limit the bytes written per second",
        (
            Edit(
                "cgroup.py",
                '"wbps": self.write_bytes_per_second,',
                '"wbps": self.write_bytes_per_second and 2**40,',
            ),
        ),
        "limits.io-bytes-per-second",
    ),
    Mutation(
        "does not limit the bytes read per second",
        (
            Edit(
                "cgroup.py",
                '"rbps": self.read_bytes_per_second,',
                '"rbps": self.read_bytes_per_second and 2**40,',
            ),
        ),
        "limits.io-read-bytes-per-second",
    ),
    Mutation(
        "swaps the limits of bytes read and bytes written",
        (
            Edit(
                "cgroup.py",
                '"rbps": self.read_bytes_per_second,',
                '"rbps": self.write_bytes_per_second,',
            ),
            Edit(
                "cgroup.py",
                '"wbps": self.write_bytes_per_second,',
                '"wbps": self.read_bytes_per_second,',
            ),
        ),
        "limits.io-read-bytes-per-second",
        also=("limits.io-bytes-per-second",),
    ),
    Mutation(
        "does not limit the write operations per second",
        (
            Edit(
                "cgroup.py",
                '"wiops": self.write_operations_per_second,',
                '"wiops": self.write_operations_per_second and 2**40,',
            ),
        ),
        "limits.io-write-operations-per-second",
    ),
    Mutation(
        "swaps the limits of read and write operations",
        (
            Edit(
                "cgroup.py",
                '"wiops": self.write_operations_per_second,',
                '"wiops": self.read_operations_per_second,',
            ),
            Edit(
                "cgroup.py",
                '"riops": self.read_operations_per_second,',
                '"riops": self.write_operations_per_second,',
            ),
        ),
        "limits.io-write-operations-per-second",
        also=("limits.io-operations-per-second",),
    ),
    Mutation(
        "multiplies the limit of read operations by 60",
        (
            Edit(
                "cgroup.py",
                '"riops": self.read_operations_per_second,',
                '"riops": self.read_operations_per_second and self.read_operations_per_second * 60,',
            ),
        ),
        "limits.io-operations-per-second",
    ),
    Mutation(
        "gives every job the same I/O weight",
        (
            Edit(
                "cgroup.py",
                'files.append(("io.weight", f"default {self.io_weight}"))',
                'files.append(("io.weight", "default 500"))',
            ),
        ),
        "limits.io-weight",
    ),
)

MUTANTS: Final = (*_ENFORCED, *_DISK)
