"""Clients who read nothing of their stream, and may no longer have it.

Such a client grants no byte (its HTTP/2 window is 0) but answers pings, so that its connection is
well: a server that waits for it to take one more message would wait for ever. What is judged is the
slot: the server has one, and somebody else's stream is let in once it is free. Leaves out what the
client is told: no status overtakes a message that waits.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.host_files import host_files
from harness.checks.identity.validity import (
    DENIED_LATE_S,
    DENIED_PROMISED_S,
    DENIED_WHY,
    EARLY_S,
    ENDS_WHY,
    ENDS_WITHIN_S,
    OWN_FILES,
    end_of,
    expiring,
)
from harness.checks.raw_calls import ANSWER_TIMEOUT_S, GREET_TIMEOUT_S, STREAM_PATH
from harness.drive.client import Client
from harness.drive.identities import CertFiles, serial_number
from harness.drive.net.http2 import Http2
from harness.drive.net.tls_client import TlsLine, client_context
from harness.drive.receiver import StreamPlan
from harness.host.clock import came_true
from harness.judge.promises import answered, assumed, holds
from harness.record.history import History
from harness.record.verdict import Finding
from harness.targets.target import RunningServer, Variant
from jobworker.v1 import jobworker_pb2 as pb

LOOK_S: Final = 0.2
WAITED_S: Final = 20.0  # to tell how late it was
WITHIN_S: Final = {"expired": ENDS_WITHIN_S, "denied": DENIED_PROMISED_S + DENIED_LATE_S}
WHY: Final = {"expired": ENDS_WHY, "denied": DENIED_WHY}


def run_stalled(stage: Stage) -> None:
    """The only stream there may be, held by a client who expires; and by one who is denied."""
    with host_files(stage) as files, tempfile.TemporaryDirectory() as directory:
        files.put("denied", "# nobody yet\n")
        variant = Variant(max_streams=1, deny_serials=files.path("denied"))
        with stage.fresh_server(variant) as server, stage.client(server=server) as admin:
            job_id = admin.must_start("sh", ["-c", "echo ready; exec sleep 100"])
            passing = expiring(stage, directory)
            with _stalled(server, passing, job_id) as http2:
                stage.fact("expired: another gets in", _gets_in(admin, job_id))
                seconds = _until_free(stage, http2, admin, job_id, end_of(passing))
                stage.fact("expired: seconds until another gets in", seconds)
            user = stage.target.identities.files("user")
            with _stalled(server, user, job_id) as http2:
                stage.fact("denied: another gets in", _gets_in(admin, job_id))
                files.put("denied", f"{serial_number(user)}\n")
                seconds = _until_free(stage, http2, admin, job_id, time.time())
                stage.fact("denied: seconds until another gets in", seconds)
            admin.query(job_id, label="an admin")
            admin.stop(job_id)


@contextmanager
def _stalled(server: RunningServer, files: CertFiles, job_id: str) -> Iterator[Http2]:
    """Hold a stream of which no byte is allowed, as long as the context lasts."""
    request = pb.StreamLogsRequest(job_id=job_id).SerializeToString()
    with TlsLine(server.address, client_context(files)) as line:
        http2 = Http2(line, window_bytes=0)
        http2.greet(GREET_TIMEOUT_S)
        http2.wait_begun([http2.open(STREAM_PATH, request)], ANSWER_TIMEOUT_S)
        yield http2


def _until_free(
    stage: Stage, http2: Http2, admin: Client, job_id: str, due_s: float
) -> float | None:
    """Wait until an admin gets the slot; return how long after it was due, or None for never."""

    def freed() -> bool:
        http2.answer_pings(LOOK_S)
        return _gets_in(admin, job_id)

    bound_s = max(0.0, due_s - time.time()) + stage.patience(WAITED_S)
    took_s = came_true(freed, bound_s)
    return None if took_s is None else time.time() - due_s


def _gets_in(admin: Client, job_id: str) -> bool:
    plan = StreamPlan(stop_after_bytes=1, timeout_s=10, may_time_out=True)
    return admin.stream(job_id, plan, label="another").received_bytes > 0


def judge_stalled(history: History) -> Iterator[Finding]:
    """The slot is somebody else's once its holder may not have it, and not before."""
    for name, within_s in WITHIN_S.items():
        in_before = history.fact(f"{name}: another gets in")
        yield assumed(
            f"the slot was held: {name}", true=in_before is False, got=in_before, want="no"
        )
        seconds = history.fact(f"{name}: seconds until another gets in")
        yield holds(
            f"a client who reads nothing loses its slot when its certificate is {name} (seconds)",
            kept=isinstance(seconds, float) and -EARLY_S <= seconds <= within_s,
            got="never" if seconds is None else seconds, want=f"0 to {within_s:g}",
            tolerance=WHY[name],
        )  # fmt: skip
    yield answered("others go on", history.call("an admin"))


CHECKS: Final = (
    Check(
        "identity.stalled",
        "Who reads nothing of a stream loses it all the same when its certificate is good no more.",
        run_stalled, judge_stalled, OWN_FILES | {Need.DENY_LIST, Need.STREAM_CAP},
        ("25", "68", "R-AUTHZ-1"),
    ),
)  # fmt: skip
