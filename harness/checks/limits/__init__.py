"""Limits that are enforced and cgroups that are removed; in the guest, or on any cgroup v2 host."""

from typing import Final

from harness.checks.limits import (
    cgroup_lifecycle,
    cpu_and_processes,
    crashes,
    disk,
    limit_validation,
    memory,
    reports,
    restarts,
    tree_stops,
)

CHECKS: Final = (
    *cpu_and_processes.CHECKS,
    *memory.CHECKS,
    *disk.CHECKS,
    *limit_validation.CHECKS,
    *cgroup_lifecycle.CHECKS,
    *restarts.CHECKS,
    *crashes.CHECKS,
    *tree_stops.CHECKS,
    *reports.CHECKS,
)
