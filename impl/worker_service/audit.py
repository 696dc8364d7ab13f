"""The audit line of a call: the caller, the rpc, its subject and its status.

Text from a client is quoted and bounded, so that it cannot forge a line. Shared state: the counts
of calls, under their lock; and `AuditedCall.cut`, which the timers' thread sets before it cancels a
call, and which the call's own thread reads afterwards; it is one reference, so it is never seen
half-written.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import grpc

from worker_service.identity import PERMISSIONS, Identity

_SHOWN_CHARACTERS: Final = 80
_PLAIN_ID: Final = re.compile(r"[0-9a-f-]{1,36}")


@dataclass(slots=True)
class AuditedCall:
    """A call as its audit line reports it.

    Attributes:
        peer: the client's address; gRPC no longer knows it once the call is cancelled.
        reason: the kind of error that ended it, of `CallCounts.ended`.
        cut: why the server cancelled the call; empty if it did not.
    """

    method: str
    peer: str
    started_at_s: float = field(default_factory=time.monotonic)
    subject: str = ""
    identity: Identity | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    detail: str = ""
    reason: str = ""
    cut: str = ""

    @property
    def status(self) -> grpc.StatusCode:
        """The status that the client gets."""
        return grpc.StatusCode.CANCELLED if self.cut else self.code

    def line(self) -> str:
        """Return the line, at the call's end."""
        role = self.identity.role if self.identity is not None else None
        serial = f"{self.identity.serial_number:x}" if self.identity is not None else "-"
        detail = self.cut or self.detail
        about = f" {self.subject}" if self.subject else ""
        return (
            f"rpc={rpc_name(self.method)}{about} role={role or '-'} "
            f"serial={serial} peer={self.peer} code={self.status.name} "
            f"ms={(time.monotonic() - self.started_at_s) * 1000:.1f}"
            f"{f' detail={detail!r}' if detail else ''}"
        )


class CallCounts:
    """How many calls have ended, by rpc, status and reason. Guard: `_lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, str, str]] = Counter()

    def count(self, call: AuditedCall) -> None:
        """Count a call at its end; a client cannot make up rpcs that are counted one by one."""
        rpc = rpc_name(call.method) if call.method in PERMISSIONS else "other"
        with self._lock:
            self._ended[rpc, call.status.name, "cut" if call.cut else call.reason] += 1

    def ended(self) -> Mapping[tuple[str, str, str], int]:
        """Return the numbers of ended calls, by (rpc, status, reason).

        The reason of a refusal is its error's name in words: `job_not_found`; that of a call that
        the server cancelled is `cut`; other calls have none.
        """
        with self._lock:
            return dict(self._ended)


def error_words(error: Exception) -> str:
    """Return an error's name in lower case, with underscores: `job_not_found`."""
    return re.sub(r"\B[A-Z]", r"_\g<0>", type(error).__name__.removesuffix("Error")).lower()


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
