"""The mutants that no check can catch, since the API promises nothing else: each with its reason.

A row names one mutant, or several by a glob. A test fails for a row without a mutant, and a run
reports a row whose mutant is caught.
"""

from fnmatch import fnmatchcase
from typing import Final

_FOR_PEOPLE: Final = "a text for people: the API promises no words"
_ALWAYS: Final = "it is present in every answer"
_DEFAULTS: Final = "it is present in the limits of every job: the server has a default"
_NO_LOSS: Final = "no client can bring a server that works to lose a job's output"

EQUIVALENTS: Final = {
    # Not of a stream's message, which is the output.
    "wire.*JobResponse.message.[!s]*": _FOR_PEOPLE,
    "wire.*JobResponse.message.stale": _FOR_PEOPLE,
    "wire.StopJobRequest.grace_period_ms.minus-one": "a millisecond is less than a stop's own time",
    "wire.StartJobRequest.limits.invented": "limits without a field are the defaults, too",
    "wire.StreamLogsRequest.from_offset.invented": "an absent start is the first byte, too",
    "wire.*.started_at.invented": _ALWAYS,
    "wire.StreamLogsResponse.offset.invented": _ALWAYS,
    "wire.QueryJobResponse.log_*.invented": _ALWAYS,
    "wire.QueryJobResponse.output_error.dropped": _NO_LOSS,
    "wire.QueryJobResponse.output_error.zeroed": _NO_LOSS,
    "wire.QueryJobResponse.output_error.byte-changed": _NO_LOSS,
    "wire.QueryJobResponse.output_error.stale": _NO_LOSS,
    "wire.*.status.CANCELLED.*": "the client that cancelled reads no status",
    "wire.StopJob.status.DEADLINE_EXCEEDED.*": "no client can start what outlives SIGKILL",
    "wire.*.status.DEADLINE_EXCEEDED.*": "the client whose deadline has passed reads no status",
    "wire.StreamLogs.status.DATA_LOSS.*": _NO_LOSS,
    "wire.*Job*.limits.io_max.reversed": "each device has its own limits, in any order",
    "wire.QueryJobResponse.limits.cpu_millicores.invented": _DEFAULTS,
    "wire.QueryJobResponse.limits.memory_max_bytes.invented": _DEFAULTS,
    "wire.QueryJobResponse.limits.io_weight.invented": _DEFAULTS,
    "wire.StopJobResponse.success.stale": "it is true in every answer",
}


def reason_for(name: str) -> str:
    """Return why no check can catch a mutant; empty: one must."""
    return next((why for glob, why in EQUIVALENTS.items() if fnmatchcase(name, glob)), "")
