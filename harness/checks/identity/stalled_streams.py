"""Clients that do not read their stream and lose the right to it.

Such a client grants no window (its HTTP/2 window is 0) but answers pings, so that its connection is
healthy: a server that waits for it to accept one more message would wait for ever. Judged is the
slot: the server has one, and another client's stream is admitted once it is free. Not judged is the
status that the stalled client receives: no status overtakes a pending message.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.expiry import (
    EARLY_S,
    ENDS_WHY,
    ENDS_WITHIN_S,
    end_of,
    make_expiring,
)
from harness.checks.identity.host_files import OWN_FILES, make_host_files
from harness.checks.identity.live_reload import DENIED_LATE_S, DENIED_PROMISED_S, DENIED_WHY
from harness.checks.raw_calls import ANSWER_TIMEOUT_S, GREET_TIMEOUT_S, stream_call
from harness.dialects.dialect import RawCall
from harness.drive.certificates import serial_number
from harness.drive.client import Client
from harness.drive.net.http2 import Http2
from harness.drive.net.tls_client import TlsConnection, client_context
from harness.drive.receiver import StreamPlan
from harness.host.cert_files import CertFiles
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, holds, timed, timed_out
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.verdict import Finding
from harness.targets.target import Variant

LOOK_S: Final = 0.2
WAIT_S: Final = 20.0  # to measure how late the slot was free


@dataclass(frozen=True, slots=True)
class StalledSlot:
    """The server's only stream slot, held by a client that reads nothing and loses its right.

    Attributes:
        was_held: whether another client was refused before.
        freed_after_s: from the loss until another client was admitted, may be negative; None: not
            in time.
    """

    was_held: bool
    freed_after_s: float | None


@dataclass(frozen=True, slots=True)
class StalledSlots(Observation):
    """The slot of a client whose certificate expired, and of one whose certificate was denied."""

    expired: StalledSlot
    denied: StalledSlot


def run_stalled(stage: Stage) -> None:
    """Hold the only slot by a client whose certificate expires; then by one that is denied."""
    with make_host_files(stage) as files, tempfile.TemporaryDirectory() as directory:
        files.put("denied", "# empty\n")
        variant = Variant(max_streams=1, deny_serials=files.path("denied"))
        with stage.fresh_server(variant) as server, stage.client(server=server) as admin:
            job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 100"])
            call = stream_call(stage.dialect, job_id)
            passing = make_expiring(stage, directory)
            with _hold_stalled_stream(server.address, passing, call) as http2:
                held = not _is_admitted(admin, job_id)
                after_s = _freed_after_s(stage, http2, admin, job_id, end_of(passing))
                expired = StalledSlot(held, after_s)
            user = stage.target.identities.files("user")
            with _hold_stalled_stream(server.address, user, call) as http2:
                held = not _is_admitted(admin, job_id)
                files.put("denied", f"{serial_number(user)}\n")
                after_s = _freed_after_s(stage, http2, admin, job_id, time.time())
                stage.record(StalledSlots(expired, StalledSlot(held, after_s)))
            admin.query(job_id, label="an admin")
            admin.stop(job_id)


@contextmanager
def _hold_stalled_stream(address: str, files: CertFiles, call: RawCall) -> Iterator[Http2]:
    """Open a stream that grants the server no byte of window, as long as the context lasts."""
    with TlsConnection(address, client_context(files)) as connection:
        http2 = Http2(connection, window_bytes=0)
        http2.greet(GREET_TIMEOUT_S)
        http2.wait_begun([http2.open(*call)], ANSWER_TIMEOUT_S)
        yield http2


def _freed_after_s(
    stage: Stage, http2: Http2, admin: Client, job_id: str, due_s: float
) -> float | None:
    """Wait until an admin gets the slot; return how long after it was due, None: never."""

    def freed() -> bool:
        http2.answer_pings(LOOK_S)
        return _is_admitted(admin, job_id)

    bound_s = max(0.0, due_s - time.time()) + stage.patience(WAIT_S)
    took_s = seconds_until(freed, bound_s)
    return None if took_s is None else time.time() - due_s


def _is_admitted(admin: Client, job_id: str) -> bool:
    plan = StreamPlan(stop_after_bytes=1, timeout_s=10, may_time_out=True)
    return admin.stream(job_id, plan, label="another").received_bytes > 0


def judge_stalled(history: History) -> Iterator[Finding]:
    """The slot is free once its holder has lost its right, and not before."""
    seen = history.the(StalledSlots)
    denied_s = DENIED_PROMISED_S + DENIED_LATE_S
    slots = (
        _judge_slot("expired", seen.expired, ENDS_WITHIN_S, ENDS_WHY),
        _judge_slot("denied", seen.denied, denied_s, DENIED_WHY),
    )
    yield answered("other clients are still served", history.call("an admin"))
    yield from separately(slots)


def _judge_slot(lost_by: str, slot: StalledSlot, within_s: float, why: str) -> Iterator[Finding]:
    held, after_s = slot.was_held, slot.freed_after_s
    promise = f"the stalled client held the only slot before its certificate {lost_by}"
    yield assumed(promise, true=held, got=held, want="True")
    finding = holds(
        f"a stalled client loses its slot when its certificate is {lost_by} (seconds)",
        kept=after_s is not None and -EARLY_S <= after_s <= within_s,
        got="never" if after_s is None else after_s, want=f"0 to {within_s:g}",
        tolerance=why,
    )  # fmt: skip
    if after_s is None:
        yield timed_out(finding, WAIT_S)
    elif after_s < -EARLY_S:
        yield finding
    else:
        yield timed(finding, after_s, within_s)


STALLED: Final = Check(
    "identity.stalled",
    "A stalled stream is cancelled once its client's certificate expires or is denied.",
    run_stalled, judge_stalled, OWN_FILES | {Need.DENY_LIST, Need.STREAM_CAP},
    ("25", "68", "R-AUTHZ-1"),
)  # fmt: skip
