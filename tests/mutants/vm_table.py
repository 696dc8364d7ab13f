"""Servers whose limits do not bite, each with the test in the guest that must notice."""

from typing import Final

from tests.mutants.table import Mutant

LIMITS: Final = "tests/vm/test_limits.py::"
LIFECYCLE: Final = "tests/vm/test_lifecycle.py::"

VM_MUTANTS: Final = (
    Mutant(
        "the CPU limit is not written", "cgroup.py",
        'files.append(("cpu.max", f"{quota_us} {CPU_PERIOD_US}"))', "del quota_us",
        LIMITS + "test_cpu_is_held_to_its_quota[500-1]",
    ),
    Mutant(
        "the CPU limit goes to the wrong file", "cgroup.py",
        'files.append(("cpu.max", f"{quota_us} {CPU_PERIOD_US}"))',
        'files.append(("cpu.weight", str(max(1, quota_us // 1000))))',
        LIMITS + "test_cpu_is_held_to_its_quota[500-1]",
    ),
    Mutant(
        "the memory limit is not written", "cgroup.py",
        'files.append(("memory.max", str(self.memory_max_bytes)))',
        'files.append(("memory.low", str(self.memory_max_bytes)))',
        LIMITS + "test_too_much_memory_kills_the_whole_job_and_its_status_says_so",
    ),
    Mutant(
        "an OOM kill is not told", "job.py",
        "oom_killed=usage is not None and usage.oom_kills > 0,", "oom_killed=False,",
        LIMITS + "test_too_much_memory_kills_the_whole_job_and_its_status_says_so",
    ),
    Mutant(
        "the process limit is not written", "cgroup.py",
        'files.append(("pids.max", str(self.pids_max)))',
        'files.append(("pids.max", "max"))',
        LIMITS + "test_more_processes_than_allowed_cannot_be_forked",
    ),
    Mutant(
        "the disk ceiling is not written", "cgroup.py",
        'files += [("io.max", ceiling.kernel_line()) for ceiling in self.io_max]', "pass",
        LIMITS + "test_writing_is_held_to_its_bytes_a_second",
    ),
    Mutant(
        "the disk weight is not written", "cgroup.py",
        'files.append(("io.weight", f"default {self.io_weight}"))',
        'files.append(("io.weight", "default 100"))',
        LIFECYCLE + "test_a_heavier_job_gets_more_of_the_disk",
    ),
    Mutant(
        "the process is started outside its cgroup", "spawn.py",
        "flags |= _POSIX_SPAWN_SETCGROUP", "flags |= 0",
        LIMITS + "test_a_job_is_in_its_cgroup_at_its_first_instruction_also_many_at_once",
    ),
    Mutant(
        "the cgroup stays", "job.py", "            self._cgroup.remove()\n", "            return\n",
        LIMITS + "test_300_jobs_leave_no_cgroup",
    ),
    Mutant(
        "only the process group is killed", "worker.py",
        "tree=cgroup_tree or GroupTree(child),", "tree=GroupTree(child),",
        LIMITS + "test_a_tree_of_daemons_dies_with_its_job",
    ),
    Mutant(
        "cgroups inside a job's stay", "cgroup.py",
        "for directory, _, _ in os.walk(self.path, topdown=False):",
        "for directory in [str(self.path)]:",
        LIMITS + "test_cgroups_that_a_job_makes_are_removed_with_it",
    ),
    Mutant(
        "leftovers are not reclaimed", "worker.py",
        "            _reclaim(hierarchy)\n", "",
        LIFECYCLE + "test_leftovers_of_a_killed_server_are_reclaimed_by_the_next",
    ),
    Mutant(
        "two servers share a root", "cgroup.py",
        "fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        LIFECYCLE + "test_a_cgroup_root_in_use_is_refused",
    ),
    Mutant(
        "all jobs get the defaults", "worker.py",
        "cpu_millicores=asked.cpu_millicores or defaults.cpu_millicores,",
        "cpu_millicores=defaults.cpu_millicores,",
        LIMITS + "test_twenty_limited_jobs_keep_their_own_limits",
    ),
)  # fmt: skip
