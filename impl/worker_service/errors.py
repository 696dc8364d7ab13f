"""The service's errors, named by cause.

The library raises these; `gate` has the one table that maps them to gRPC statuses. Each text
states what was received, what is required and what to change, and is safe to show to the client.
"""


class JobWorkerError(Exception):
    """Base of every error that is meant for the caller."""


class InvalidRequestError(JobWorkerError):
    """The request cannot succeed as it is."""


class JobNotFoundError(JobWorkerError):
    """No job has this id."""


class JobRunningError(JobWorkerError):
    """Only an ended job can be deleted."""


class CommandNotFoundError(JobWorkerError):
    """The program does not exist."""


class CannotExecuteError(JobWorkerError):
    """The program exists but cannot be run on this host, or in that directory."""


class LimitsUnavailableError(JobWorkerError):
    """The request has a limit that this server or this host cannot enforce."""


class HostExhaustedError(JobWorkerError):
    """The host is out of processes, threads, memory or descriptors."""


class CapacityReachedError(JobWorkerError):
    """The server already serves its configured maximum."""


class OffsetOutOfRangeError(JobWorkerError):
    """The requested offset is beyond the end of the log."""


class OutputLostError(JobWorkerError):
    """The log could not store everything that the job wrote."""


class ShuttingDownError(JobWorkerError):
    """The server refuses the request because it is shutting down."""


class StopTimedOutError(JobWorkerError):
    """The job was stopped and killed, but did not end within the time limit."""


class NotAuthenticatedError(JobWorkerError):
    """The connection does not authenticate the caller."""


class NotPermittedError(JobWorkerError):
    """The caller's role is not allowed to do this."""


class UnknownRpcError(JobWorkerError):
    """The rpc does not exist."""


class ConfigurationError(JobWorkerError):
    """The server cannot start with these settings, files or host."""
