"""Jobs from their start to their end."""

from typing import Final

from harness.checks.lifecycle import ending, job_environment, shutdown, starting, stopping

CHECKS: Final = (
    *ending.CHECKS,
    *starting.CHECKS,
    *job_environment.CHECKS,
    *stopping.CHECKS,
    *shutdown.CHECKS,
)
