"""The audit line of a call: the caller, the rpc, its subject and its status.

Text from a client is quoted and bounded, so that it cannot forge a line. Shared state:
`AuditedCall.cut`, which the timers' thread sets before it cancels a call, and which the call's own
thread reads afterwards; it is one reference, so it is never seen half-written.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Final

import grpc

from worker_service.identity import Identity

_SHOWN_CHARACTERS: Final = 80
_PLAIN_ID: Final = re.compile(r"[0-9a-f-]{1,36}")


@dataclass(slots=True)
class AuditedCall:
    """A call as its audit line reports it.

    Attributes:
        peer: the client's address; gRPC no longer knows it once the call is cancelled.
        cut: why the server cancelled the call; empty if it did not.
    """

    method: str
    peer: str
    started_at_s: float = field(default_factory=time.monotonic)
    subject: str = ""
    identity: Identity | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    detail: str = ""
    cut: str = ""

    def line(self) -> str:
        """Return the line, at the call's end."""
        role = self.identity.role if self.identity is not None else None
        serial = f"{self.identity.serial_number:x}" if self.identity is not None else "-"
        code = grpc.StatusCode.CANCELLED if self.cut else self.code
        detail = self.cut or self.detail
        about = f" {self.subject}" if self.subject else ""
        return (
            f"rpc={rpc_name(self.method)}{about} role={role or '-'} "
            f"serial={serial} peer={self.peer} code={code.name} "
            f"ms={(time.monotonic() - self.started_at_s) * 1000:.1f}"
            f"{f' detail={detail!r}' if detail else ''}"
        )


def shown(text: str) -> str:
    """Return a client's text for a log: one line, bounded, and quoted unless it is an id."""
    return text if _PLAIN_ID.fullmatch(text) else repr(text[:_SHOWN_CHARACTERS])


def rpc_name(method: str) -> str:
    """Return a method's own name for a log, bounded as well."""
    name = method.rpartition("/")[2]
    return name[:_SHOWN_CHARACTERS] if name.isidentifier() else shown(name)


def subject(message: object) -> str:
    """Return the job or program of a call; never arguments or environment, which may be secret."""
    for name, attribute in (("job", "job_id"), ("command", "command_name")):
        if value := getattr(message, attribute, ""):
            return f"{name}={shown(value)}"
    return ""
