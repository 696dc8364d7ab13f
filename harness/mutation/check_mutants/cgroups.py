"""Servers that accept bad limits or a bad cgroup root, or whose cgroups outlive their jobs."""

from typing import Final

from harness.mutation.check_mutants.limits import ENABLES_CONTROLLERS
from harness.mutation.mutation import Edit, Mutation

_VALIDATION: Final = (
    Mutation(
        "replaces a limit of 0 with the default",
        (
            Edit(
                "cgroup.py",
                "            if value is not None and not lowest <= value <= highest:\n",
                "            if value and not lowest <= value <= highest:\n",
            ),
        ),
        "limits.impossible",
    ),
    Mutation(
        "leaves the cgroup of a start whose limits the kernel refused",
        (
            Edit(
                "hierarchy.py",
                "            path.rmdir()\n            raise\n",
                "            raise\n",
            ),
        ),
        "limits.impossible",
    ),
    Mutation(
        "silently caps the memory limit at 1 TiB",
        (
            Edit(
                "cgroup.py",
                'files.append(("memory.max", str(self.memory_max_bytes)))',
                'files.append(("memory.max", str(min(self.memory_max_bytes, 2**40))))',
            ),
        ),
        "limits.above-the-host",
    ),
    Mutation(
        "lets users start jobs with limits",
        (
            Edit(
                "identity.py",
                '"/jobworker.v1.JobWorker/StartJob": _ADMINS,',
                '"/jobworker.v1.JobWorker/StartJob": _EVERYBODY,',
            ),
        ),
        "limits.only-admins",
        also=("identity.roles",),
    ),
    Mutation(
        "ignores requested limits when it runs with --no-limits",
        (
            Edit(
                "worker.py",
                "            if given != Limits():\n",
                "            if given is None:\n",
            ),
        ),
        "limits.without-limits",
    ),
    Mutation(
        "falls back to no limits without cgroup v2",
        (
            Edit(
                "server.py",
                "Hierarchy.open(settings.cgroup_root) if settings.limits else None",
                "(Hierarchy.open(settings.cgroup_root) if settings.limits"
                ' and (settings.cgroup_root.parent / "cgroup.controllers").exists() else None)',
            ),
        ),
        "limits.no-cgroup2",
    ),
    Mutation(
        "does not check which controllers are available",
        (
            Edit(
                "hierarchy.py",
                "    missing = [controller for controller in CONTROLLERS if controller not in have]\n",
                "    missing: list[str] = []\n",
            ),
        ),
        "limits.missing-controller",
    ),
    Mutation(
        "shares its root with other servers",
        (
            Edit(
                "hierarchy.py",
                "fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
                "fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
            ),
        ),
        "limits.root-in-use",
    ),
    Mutation(
        "kills other processes in its root",
        (
            Edit(
                "hierarchy.py",
                ENABLES_CONTROLLERS,
                '            (root / "cgroup.kill").write_text("1", encoding="ascii")\n'
                "            Cgroup(root).wait_empty(5)\n" + ENABLES_CONTROLLERS,
            ),
        ),
        "limits.occupied-root",
        also=("limits.foreign-cgroup",),
    ),
)

_LIFECYCLE: Final = (
    Mutation(
        "starts a process outside its cgroup and moves it there",
        (
            Edit(
                "worker.py",
                "        child = spawn(command, write_fd, cgroup, user)\n",
                "        child = spawn(command, write_fd, None, user)\n"
                "        if cgroup is not None:\n"
                '            (cgroup.path / "cgroup.procs").write_text(str(child.pid))\n',
            ),
        ),
        "limits.born-inside",
        also=("limits.never-moved",),
    ),
    Mutation(
        "starts a process in its cgroup and moves it there again",
        (
            Edit(
                "worker.py",
                "        child = spawn(command, write_fd, cgroup, user)\n",
                "        child = spawn(command, write_fd, cgroup, user)\n"
                "        if cgroup is not None:\n"
                '            (cgroup.path / "cgroup.procs").write_text(str(child.pid))\n',
            ),
        ),
        "limits.never-moved",
    ),
    Mutation(
        "kills the process group only",
        (Edit("worker.py", "CgroupTree(cgroup) if cgroup is not None else ", ""),),
        "limits.daemons-at-stop",
        also=(
            "limits.daemons-at-exit",
            "limits.fork-bomb",
            "limits.sub-cgroups",
            "limits.thousand-jobs",
            "limits.memory",
        ),
    ),
    Mutation(
        "leaves daemons running when the main process exits",
        (
            Edit(
                "job.py",
                "            self._tree.kill()\n",
                "            self._exit is None and self._tree.kill()\n",
            ),
        ),
        "limits.daemons-at-exit",
        also=("limits.daemons-at-stop",),
    ),
    Mutation(
        "leaves the cgroups that a job made in its own",
        (
            Edit(
                "cgroup.py",
                "for directory, _, _ in os.walk(self.path, topdown=False, onerror=_raise):",
                "for directory in [str(self.path)]:",
            ),
        ),
        "limits.sub-cgroups",
    ),
    Mutation(
        "leaves one cgroup in sixteen",
        (
            Edit(
                "tree.py",
                "            self._cgroup.remove()\n",
                '            if not self._cgroup.path.name.startswith("0"):\n'
                "                self._cgroup.remove()\n",
            ),
        ),
        "limits.thousand-jobs",
    ),
    Mutation(
        "does not remove the cgroups that a killed server left",
        (Edit("worker.py", "            _reclaim(hierarchy)\n", ""),),
        "limits.leftovers",
    ),
    Mutation(
        "removes the cgroups that a killed server left only if they are empty",
        (
            Edit(
                "worker.py",
                "        cgroup.kill()\n        if not cgroup.wait_empty(_RECLAIM_MAX_S):\n",
                "        if not cgroup.wait_empty(0.1):\n",
            ),
        ),
        "limits.leftovers",
    ),
    Mutation(
        "leaves its cgroup root when it ends",
        (Edit("server.py", "            self._hierarchy.close()\n", ""),),
        "limits.leftovers",
    ),
    Mutation(
        "removes every cgroup in its root at its start",
        (
            Edit(
                "hierarchy.py",
                "sorted(self.root.iterdir()) if _is_job_name(path.name)]",
                "sorted(self.root.iterdir()) if path.is_dir()]",
            ),
        ),
        "limits.foreign-cgroup",
    ),
    Mutation(
        "kills the pid of an ended job",
        (
            Edit(
                "job.py",
                "        if self._status.ended_at_s is not None:\n            return\n"
                "        if grace_s <= 0:\n",
                "        if self._status.ended_at_s is not None:\n"
                "            try:\n"
                "                os.kill(self._process.pid, signal.SIGKILL)\n"
                "            except OSError:\n"
                "                pass\n"
                "            return\n"
                "        if grace_s <= 0:\n",
            ),
        ),
        "limits.pid-reuse",
    ),
)

# Only a privileged process can have a protection to pass on, as root in a guest is.
_OOM_SCORE: Final = (
    Mutation(
        "starts jobs with its own oom_score_adj",
        (Edit("spawn.py", "    make_killable(child.pid, cgroup)\n", ""),),
        "lifecycle.oom-score",
    ),
)

MUTANTS: Final = (*_VALIDATION, *_LIFECYCLE, *_OOM_SCORE)
