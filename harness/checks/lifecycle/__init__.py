"""Jobs from their start to their end."""

from typing import Final

from harness.checks.lifecycle import (
    ending,
    inherited_signals,
    job_environment,
    oom_score,
    shutdown,
    starting,
    stopping,
)

CHECKS: Final = (
    *ending.CHECKS,
    *starting.CHECKS,
    *job_environment.CHECKS,
    *stopping.CHECKS,
    *shutdown.CHECKS,
    *inherited_signals.CHECKS,
    *oom_score.CHECKS,
)
