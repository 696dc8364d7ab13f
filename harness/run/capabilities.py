"""What a target can do, found out by asking it, never by a version.

An absent feature makes a check SKIPPED, with the reason that is found here; so a wrong 'absent'
would hide a broken server. Hence a feature counts as absent only when the answer is what a server
without it gives: one that ignores a field, or says that it has no such rpc. Any other answer, an
error or a wrong value, is a feature that works wrongly, and is left to the checks to judge. Each
answer is in the report (`runs.py` puts it there), and a run can say by name which checks may be
skipped.
"""

import re
from collections.abc import Callable
from typing import Final

import grpc

from harness.checks.check import Need, Scale
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.record.history import Outcome, Recorder
from harness.record.verdict import BrokenError, UnmetError
from harness.targets.target import RunningServer, Target
from jobworker.v1 import jobworker_pb2 as pb

# "" is yes; anything else is the reason why not.
Capabilities = dict[Need, str]

READY_TIMEOUT_S: Final = 60.0
_FLAGS: Final = {
    Need.RETENTION: "retention_bytes",
    Need.STREAM_CAP: "max_streams",
    Need.KEEPALIVE: "keepalive_s",
    Need.HANDSHAKE_TIMEOUT: "handshake_timeout_s",
    Need.CALLS_A_CONNECTION: "calls_a_connection",
    Need.DENY_LIST: "deny_serials",
}


def ask(target: Target, server: RunningServer, scale: Scale) -> Capabilities:
    """Find out what a target can do.

    Raises:
        BrokenError: it cannot be reached with the admin's certificate at all.
    """
    recorder = Recorder()
    files = target.identities.files("admin")
    with Client(server.address, files, recorder, slow=scale is Scale.SMALL) as client:
        _require_reachable(client, server)
        found = {need: _tell(need, _seems_true(look, client)) for need, look in _QUESTIONS.items()}
    if not found[Need.LIMIT_FIELDS]:
        found[Need.CGROUPS] = ""  # who tells a job's limits has a cgroup for it, or is to be judged
    found[Need.NATIVE] = _tell(Need.NATIVE, not target.emulated)
    found[Need.LAUNCH] = _tell(Need.LAUNCH, target.can_launch)
    found[Need.HOST] = _tell(Need.HOST, _sees_host(target))
    found[Need.GUEST] = _tell(Need.GUEST, target.disposable_host)
    found[Need.DISK] = _tell(Need.DISK, target.has_data_disk)
    found[Need.IDENTITIES] = _tell(Need.IDENTITIES, target.identities.has_authority())
    for need, setting in _FLAGS.items():
        found[need] = _tell(need, setting in target.flags)
    return found


def _seems_true(look: Callable[[Client], bool], client: Client) -> bool:
    """Ask; a server that breaks a promise at it is to be judged by the checks, not spared them."""
    try:
        return look(client)
    except UnmetError:
        return True


def _sees_host(target: Target) -> bool:
    if target.host is None:
        return False
    try:
        return target.host.run("test -e /proc/1/stat && echo seen").stdout == "seen\n"
    except UnmetError:
        return False


def _tell(need: Need, has: bool) -> str:  # noqa: FBT001 - the answer itself
    return "" if has else f"the target lacks {need}"


def _require_reachable(client: Client, server: RunningServer) -> None:
    try:
        grpc.channel_ready_future(client.channel).result(READY_TIMEOUT_S)
    except grpc.FutureTimeoutError:
        raise BrokenError(
            f"no server answers at {server.address} over TLS 1.3 within {READY_TIMEOUT_S:.0f} s "
            "with the certificates given; check the address, that its certificate is of the same "
            f"authority, and that it is valid for this name\n{server.log_tail()}"
        ) from None


def _output(client: Client, command: str, *arguments: str) -> str | None:
    """Return a small job's output, or None when it could not be run to a good end."""
    reply = client.start(command, list(arguments))
    if not reply.ok:
        return None
    stream = client.stream(reply.message.job_id, StreamPlan(keep_bytes=4096, timeout_s=60))
    return stream.text if stream.code == "OK" else None


def _has_python(client: Client) -> bool:
    return _output(client, "python3", "-I", "-S", "-c", "print(6 * 7)") == "42\n"


def _has_cgroups(client: Client) -> bool:
    """Two jobs of a server with cgroups are in different ones, which they find below the mount."""
    # Not at once: a server that moves its jobs after their start has cgroups, and is to be judged.
    script = (
        "sleep 1; p=$(grep ^0:: /proc/self/cgroup) && test -d /sys/fs/cgroup/${p#0::/} && echo $p"
    )
    first, second = (_output(client, "sh", "-c", script) or "" for _ in range(2))
    return bool(re.fullmatch(r"0::/.+\n", first)) and first != second


def _has_limit_fields(client: Client) -> bool:
    """Without them a server ignores them, or says that it cannot give any (R-CGROUP-5)."""
    reply = client.start("true", limits=pb.ResourceLimits(cpu_millicores=730))
    if not reply.ok:
        return reply.call.code not in {"FAILED_PRECONDITION", "UNIMPLEMENTED"}
    answer = client.query(reply.message.job_id)
    return not answer.ok or bool(answer.message.HasField("limits"))


def _has_offsets(client: Client) -> bool:
    """Without them a stream ends well and tells none."""
    reply = client.start("echo", ["offsets"])
    if not reply.ok:
        return True
    stream = client.stream(reply.message.job_id, StreamPlan(timeout_s=60))
    return stream.offsets_told or stream.outcome is not Outcome.OK


def _has_surroundings(client: Client) -> bool:
    """Without them the variable is not there, and nothing is printed."""
    reply = client.start("printenv", ["JOBWORKER_ASKED"], environment={"JOBWORKER_ASKED": "told"})
    if not reply.ok:
        return reply.call.code != "NOT_FOUND"  # a machine without printenv tells nothing
    return client.stream(reply.message.job_id, StreamPlan(keep_bytes=100)).text != ""


def _has_listing(client: Client) -> bool:
    return client.list_jobs().call.code != "UNIMPLEMENTED"


def _has_grace(client: Client) -> bool:
    """A grace of 0 ends a job that ignores SIGTERM at once, well within any default grace.

    Without it a stop takes the server's own grace, and succeeds.
    """
    reply = client.start("sh", ["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    if not reply.ok:
        return True
    client.stream(reply.message.job_id, StreamPlan(stop_after_bytes=1, timeout_s=60))
    call = client.stop(reply.message.job_id, grace_s=0).call
    client.stop(reply.message.job_id)
    return call.code != "OK" or call.ended_s - call.started_s < _AT_ONCE_S * client.patience


_AT_ONCE_S: Final = 1.5
_QUESTIONS: Final[dict[Need, Callable[[Client], bool]]] = {
    Need.PYTHON: _has_python,
    Need.CGROUPS: _has_cgroups,
    Need.LIMIT_FIELDS: _has_limit_fields,
    Need.OFFSETS: _has_offsets,
    Need.SURROUNDINGS: _has_surroundings,
    Need.LISTING: _has_listing,
    Need.GRACE: _has_grace,
}
