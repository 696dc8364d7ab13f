"""Limits that bite and cgroups that leave no trace; in the guest, or on any host of cgroup v2.

A new check is one entry in the table of the module that it belongs to.
"""

from typing import Final

from harness.checks import (
    limits_asked,
    limits_disk,
    limits_enforced,
    limits_lifecycle,
    limits_memory,
)

CHECKS: Final = (
    *limits_enforced.CHECKS,
    *limits_memory.CHECKS,
    *limits_disk.CHECKS,
    *limits_asked.CHECKS,
    *limits_lifecycle.CHECKS,
)
