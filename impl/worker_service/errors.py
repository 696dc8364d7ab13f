"""What can go wrong, named by cause.

The library raises these; `service` has the one table that maps them to gRPC statuses. Each text
says what was received, what is required and what to change, and may be shown to the client.
"""


class JobWorkerError(Exception):
    """Base of every error that is meant for the caller."""


class InvalidRequestError(JobWorkerError):
    """The request can never succeed as it was made."""


class JobNotFoundError(JobWorkerError):
    """No job has this id."""


class CommandNotFoundError(JobWorkerError):
    """The program does not exist."""


class CannotExecuteError(JobWorkerError):
    """The program exists but this host cannot run it, or not in that directory."""


class LimitsUnavailableError(JobWorkerError):
    """The request asks for a limit that this server or this host cannot enforce."""


class HostExhaustedError(JobWorkerError):
    """The host has no room for another process: out of processes, memory or descriptors."""


class CapacityReachedError(JobWorkerError):
    """The server already serves as many as it may."""


class OffsetOutOfRangeError(JobWorkerError):
    """The asked offset lies beyond the end of the log."""


class OutputLostError(JobWorkerError):
    """The log could not store everything that the job wrote."""


class ShuttingDownError(JobWorkerError):
    """The server no longer takes this request because it is shutting down."""


class StopTimedOutError(JobWorkerError):
    """The job was told to stop and killed, and still had not ended within the bound."""


class NotAuthenticatedError(JobWorkerError):
    """The connection does not prove who the caller is."""


class NotPermittedError(JobWorkerError):
    """The caller's role may not do this."""


class UnknownRpcError(JobWorkerError):
    """There is no such rpc."""


class ConfigurationError(JobWorkerError):
    """The server cannot start with these settings, files or host."""
