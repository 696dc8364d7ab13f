"""Jobs from their start to their end."""

from typing import Final

from harness.checks.lifecycle import job_environment, jobs, stopping

CHECKS: Final = (*jobs.CHECKS, *job_environment.CHECKS, *stopping.CHECKS)
