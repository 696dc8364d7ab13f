"""Jobs from their start to their end."""

from typing import Final

from harness.checks.lifecycle import (
    busy,
    clock_steps,
    ended_jobs,
    ending,
    forgetting,
    inherited_signals,
    job_environment,
    job_record,
    job_times,
    listing,
    metrics,
    oom_score,
    server_surroundings,
    settings,
    shutdown,
    standard_services,
    starting,
    stopped_trees,
    stopping,
    tree_grace,
)

CHECKS: Final = (
    *ending.CHECKS,
    *ended_jobs.CHECKS,
    *starting.CHECKS,
    *job_environment.CHECKS,
    *job_record.CHECKS,
    *job_times.CHECKS,
    *listing.CHECKS,
    *forgetting.CHECKS,
    *stopping.CHECKS,
    *stopped_trees.CHECKS,
    *tree_grace.CHECKS,
    *shutdown.CHECKS,
    *inherited_signals.CHECKS,
    *oom_score.CHECKS,
    *server_surroundings.CHECKS,
    *settings.CHECKS,
    *standard_services.CHECKS,
    *busy.CHECKS,
    *clock_steps.CHECKS,
    *metrics.CHECKS,
)
