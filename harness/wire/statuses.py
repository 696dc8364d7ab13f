"""The statuses that each rpc ends with, by the API, the settings and the error that it reports.

An rpc has mutants for every status that gRPC knows. Those of a status that it never returns change
nothing for any client; those of one that it returns need a check that provokes it.
"""

from typing import Final

import grpc

_ALL: Final = ("StartJob", "StopJob", "QueryJob", "StreamLogs", "ListJobs", "DeleteJob")

# Status -> the rpcs that end with it. Left out: CANCELLED and DEADLINE_EXCEEDED, which a client
# gives itself, and what only a fault of the server gives, such as INTERNAL.
RETURNED: Final = {
    grpc.StatusCode.OK: _ALL,
    grpc.StatusCode.INVALID_ARGUMENT: _ALL,
    grpc.StatusCode.NOT_FOUND: ("StartJob", "StopJob", "QueryJob", "StreamLogs", "DeleteJob"),
    grpc.StatusCode.PERMISSION_DENIED: _ALL,
    grpc.StatusCode.UNAUTHENTICATED: _ALL,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _ALL,  # --unary-threads, --max-streams
    # A program that cannot be run, a limit that cannot be enforced; a job that runs.
    grpc.StatusCode.FAILED_PRECONDITION: ("StartJob", "DeleteJob"),
    grpc.StatusCode.OUT_OF_RANGE: ("StreamLogs",),
    grpc.StatusCode.UNAVAILABLE: ("StartJob",),  # the server is shutting down
    grpc.StatusCode.DATA_LOSS: ("StreamLogs",),
}


def is_returned(rpc: str, status: grpc.StatusCode | None) -> bool:
    """Return whether an rpc may end with a status; None: with any but OK."""
    return status is None or rpc in RETURNED.get(status, ())
