"""What a kind of server has promised, as far as it differs from `jobworker.v1`.

Each check records the terms of its target's dialect, so that its judge holds a server only to
what a server of its kind has promised. Without a record they are this project's own.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from harness.record.history import History, Observation

# A well-formed id of a job that no server has.
UNKNOWN_ID: Final = "761db04c-0150-4f0b-a6fd-5cab9b9a48bf"
# The longest grace period of a stop that is still useful, where none is requested or documented.
STOP_GRACE_S: Final = 35.0
# Where a call's details begin so, the dialect cannot express the call, and no server refused it.
NOT_SENT: Final = "not sent: "
# What a query may report of a job: the fields of QueryJobResponse that judges rely on.
REPORTED: Final = ("status", "pid", "exit_code", "signal", "started_at", "ended_at")
# Fields and rpcs beyond the four rpcs of the task, which a server may lack.
ADDED: Final = (
    "limits", "offset", "environment", "working_directory", "ListJobs", "page_size", "DeleteJob",
    "grace_period_ms", "io_max", "usage", "log_size_bytes",
)  # fmt: skip
# An end of which a server does not report whether it was an exit or a signal.
ENDED: Final = "ended"
OVER: Final = ("exited", "signaled", ENDED)
# Refusals of a caller, by TLS or by the server; any other status shows that it was admitted.
REFUSING: Final = frozenset({"UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED"})


@dataclass(frozen=True, slots=True)
class Terms(Observation):
    """The promises of a kind of server that are not the same for all.

    Attributes:
        dialect: its name.
        own: whether it promises what this project does beyond the task: exact statuses for each
            fault, texts that name it, and strictness about certificates.
        uuids: whether job ids are UUIDs of version 4.
        unknown_id: a well-formed id of a job that no server has.
        reports: which fields of a query it reports.
        unknown_job: the statuses that a call for a job that does not exist may get.
        bad_id: the same of an id that cannot be one.
        bad_command: the same of a start that cannot succeed.
        stop_grace_s: the longest grace period of a stop that requests none.
        promises: checks (glob) that are of this project's own promises, which the server makes too.
        one_output: whether standard output and standard error come in one order.
        lacks: what the dialect does not name, of `ADDED`: it is not probed by calls.
    """

    dialect: str = "jobworker.v1"
    own: bool = True
    uuids: bool = True
    unknown_id: str = UNKNOWN_ID
    reports: tuple[str, ...] = REPORTED
    unknown_job: tuple[str, ...] = ("NOT_FOUND",)
    bad_id: tuple[str, ...] = ("INVALID_ARGUMENT",)
    bad_command: tuple[str, ...] = ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
    stop_grace_s: float = STOP_GRACE_S
    promises: tuple[str, ...] = ()
    one_output: bool = True
    lacks: tuple[str, ...] = ()

    def has_promised(self, check: str) -> bool:
        """Return whether the server makes the promise of a check that is this project's own."""
        return self.own or any(fnmatchcase(check, pattern) for pattern in self.promises)

    def is_status(self, got: str, want: str) -> bool:
        """Return whether a status is the wanted one; ends may be one status of another server."""
        return got == want or (not self.own and got == ENDED and want in OVER)

    @property
    def hides_refusals(self) -> bool:
        """Whether a query of an unknown job gets a status that a caller is refused with, too.

        Then only a query of a job that exists shows whether its caller was admitted.
        """
        return not REFUSING.isdisjoint(self.unknown_job)

    @property
    def admitting(self) -> tuple[str, ...]:
        """The statuses of the query that shows whether its caller was admitted, if it was."""
        return ("OK",) if self.hides_refusals else self.unknown_job

    def is_admitted(self, code: str) -> bool:
        """Return whether a caller whose query for an unknown job got this status was admitted.

        Of a kind of server that `hides_refusals`, the query is for a job that exists. Of another
        kind than our own, that the status is the right one is for `lifecycle.ids`.
        """
        if self.own:
            return code in self.admitting
        return bool(code) and code not in REFUSING


OWN_TERMS: Final = Terms()


def terms_of(history: History) -> Terms:
    """Return the terms that a check recorded; this project's own if it recorded none."""
    return next(iter(history.all(Terms)), OWN_TERMS)


def without_fields(history: History, fields: Collection[str]) -> History:
    """Return a check's records as of a server whose queries do not report these fields."""
    if not fields:
        return history
    terms = terms_of(history)
    reports = tuple(each for each in terms.reports if each not in fields)
    others = (each for each in history.records if not isinstance(each, Terms))
    return History([dataclasses.replace(terms, reports=reports), *others])
