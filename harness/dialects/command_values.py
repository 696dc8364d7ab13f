"""The values of placeholders: what a canonical request says, as words for a program."""

import shlex
import uuid
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import Message

from harness.dialects.command_words import Values
from harness.dialects.identity_scheme import Rpc
from jobworker.v1 import jobworker_pb2 as pb

_COMMON: Final = ("address", "host", "port", "ca", "cert", "key", "work", "folder", "python")
# Of each call; `list` and `delete` are those of rpcs that a job worker need not have.
PLACEHOLDERS: Final[dict[Rpc, tuple[str, ...]]] = {
    "start": (
        "command", "args...", "args", "command_line", "environment...", "working_directory",
        "new_id", "cpu_cores", "cpu_millicores", "cpu_percent", "memory_max_bytes", "io_weight",
        "io_max...", "pids_max", *_COMMON,
    ),
    "stop": ("id", "grace_s", "grace_ms", *_COMMON),
    "query": ("id", *_COMMON),
    "stream": ("id", "from_offset", "tail_bytes", "tail_lines", "no_follow", *_COMMON),
    "list": ("status", "page_size", "page_token", "newest_first", *_COMMON),
    "delete": ("id", *_COMMON),
}  # fmt: skip
_IO_RATES: Final = {
    "rbps": "read_bytes_per_second", "wbps": "write_bytes_per_second",
    "riops": "read_operations_per_second", "wiops": "write_operations_per_second",
}  # fmt: skip


def start_values(request: pb.StartJobRequest) -> Values:
    """Return the values of a start; None for what the request does not have."""
    arguments = list(request.command_args)
    environment = [f"{name}={value}" for name, value in request.environment.items()]
    limits = request.limits if request.HasField("limits") else None
    millicores = _text(limits, "cpu_millicores")
    return {
        "command": request.command_name,
        "args...": arguments,
        "args": shlex.join(arguments),
        "command_line": shlex.join([request.command_name, *arguments]),
        "environment...": environment,
        "working_directory": request.working_directory or None,
        "new_id": str(uuid.uuid4()),
        "cpu_millicores": millicores,
        "cpu_cores": None if millicores is None else f"{int(millicores) / 1000:g}",
        "cpu_percent": None if millicores is None else f"{int(millicores) / 10:g}",
        "memory_max_bytes": _text(limits, "memory_max_bytes"),
        "io_weight": _text(limits, "io_weight"),
        "pids_max": _text(limits, "pids_max"),
        "io_max...": [_io_max(each) for each in limits.io_max] if limits is not None else [],
    }


def stop_values(request: pb.StopJobRequest) -> Values:
    """Return the values of a stop."""
    milliseconds = _text(request, "grace_period_ms")
    seconds = None if milliseconds is None else f"{int(milliseconds) / 1000:g}"
    return {"id": request.job_id, "grace_ms": milliseconds, "grace_s": seconds}


def id_values(request: pb.QueryJobRequest | pb.DeleteJobRequest) -> Values:
    """Return the values of a call that has nothing but a job's id."""
    return {"id": request.job_id}


def stream_values(request: pb.StreamLogsRequest) -> Values:
    """Return the values of a stream."""
    return {
        "id": request.job_id,
        "from_offset": _text(request, "from_offset"),
        "tail_bytes": _text(request, "tail_bytes"),
        "tail_lines": _text(request, "tail_lines"),
        "no_follow": "1" if request.no_follow else None,
    }


def list_values(request: pb.ListJobsRequest) -> Values:
    """Return the values of a list."""
    return {
        "status": request.status or None,
        "page_size": str(request.page_size) if request.page_size else None,
        "page_token": request.page_token or None,
        "newest_first": "1" if request.newest_first else None,
    }


VALUES: Final[dict[Rpc, Callable[[Any], Values]]] = {
    "start": start_values, "stop": stop_values, "query": id_values, "stream": stream_values,
    "list": list_values, "delete": id_values,
}  # fmt: skip


def _text(message: Message | None, name: str) -> str | None:
    return str(getattr(message, name)) if message is not None and message.HasField(name) else None


def _io_max(each: pb.IoMax) -> str:
    rates = [
        f"{key}={getattr(each, name)}" for key, name in _IO_RATES.items() if each.HasField(name)
    ]
    return f"{each.device}:{','.join(rates)}"
