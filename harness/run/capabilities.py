"""Probes a target for the features that checks need; it never relies on a version.

A check whose feature is missing is SKIPPED with the reason from here, so a wrong "missing" would
hide a broken server. A feature counts as missing only if the server answers as one without it: it
ignores a field, or returns UNIMPLEMENTED for an rpc. With any other answer (an error, a wrong
value) the feature counts as present, and the checks judge it. The report lists all features of each
target, and a run can restrict by name which checks may be skipped.
"""

import re
from collections.abc import Callable
from typing import Final

from harness.checks.check import Need, Scale
from harness.checks.common import WAITS
from harness.drive.client import SLOW_FACTOR, Client
from harness.drive.reachability import ASK_TIMEOUT_S, require_job_worker
from harness.drive.receiver import StreamPlan
from harness.record.history import Outcome, Recorder
from harness.record.terms import Terms
from harness.record.verdict import BrokenError, UnmetError
from harness.targets.target import RunningServer, Target
from jobworker.v1 import jobworker_pb2 as pb

# Need -> "" if the target has it, else the reason for skipping.
Capabilities = dict[Need, str]

# A start of a program that does not exist.
_NO_PROGRAM: Final = frozenset({"NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT"})
# What a dialect must name for a need, see `Terms.lacks`.
_NAMES: Final = {
    Need.LIMIT_FIELDS: {"limits"}, Need.OFFSETS: {"offset"}, Need.LISTING: {"ListJobs"},
    Need.JOB_ENVIRONMENT: {"environment", "working_directory"}, Need.DELETION: {"DeleteJob"},
    Need.PAGES: {"ListJobs", "page_size"}, Need.GRACE: {"grace_period_ms"},
    Need.IO_MAX: {"limits", "io_max"}, Need.USAGE: {"usage"}, Need.LOG_SIZES: {"log_size_bytes"},
}  # fmt: skip
# What its query must report for a need, see `Terms.reports`.
_REPORTS: Final = {
    Need.EXIT_CODES: {"exit_code"}, Need.SIGNALS: {"signal"}, Need.PIDS: {"pid"},
    Need.TIMES: {"started_at", "ended_at"},
}  # fmt: skip
_FLAGS: Final = {
    Need.RETENTION: "retention_bytes",
    Need.STREAM_CAP: "max_streams",
    Need.KEEPALIVE: "keepalive_s",
    Need.HANDSHAKE_TIMEOUT: "handshake_timeout_s",
    Need.CALLS_A_CONNECTION: "calls_a_connection",
    Need.DENY_LIST: "deny_serials",
    Need.OUTPUT_MEMORY: "output_memory_bytes",
    Need.JOB_TTL: "job_ttl_s",
    Need.UNARY_THREADS: "unary_threads",
    Need.METRICS: "metrics",
}


def probe_capabilities(target: Target, server: RunningServer, scale: Scale) -> Capabilities:
    """Return which needs a target meets.

    Raises:
        BrokenError: it cannot be judged with the admin's certificate; says why.
    """
    recorder = Recorder()
    files = target.identities.files("admin")
    slow = scale is Scale.SMALL
    try:
        require_job_worker(
            server.address,
            files,
            target.dialect,
            ASK_TIMEOUT_S * (SLOW_FACTOR if slow else 1),
        )
    except BrokenError as error:
        raise BrokenError(f"{error}\n{server.log_tail()}".strip()) from None
    with Client(server.address, files, recorder, dialect=target.dialect, slow=slow) as client:
        terms = target.dialect.terms
        found = named_needs(terms)
        for need, has in _PROBES.items():
            if not found.get(need):
                found[need] = _reason(need, _probe(has, client))
    if not found[Need.LIMIT_FIELDS]:
        # A server that reports limits must have cgroups: the checks judge whether it has.
        found[Need.CGROUPS] = ""
    found[Need.NATIVE] = _reason(Need.NATIVE, not target.emulated)
    found[Need.LAUNCH] = _reason(Need.LAUNCH, target.can_launch)
    found[Need.HOST] = _reason(Need.HOST, _sees_host(target))
    found[Need.GUEST] = _reason(Need.GUEST, target.disposable_host)
    found[Need.DISK] = _reason(Need.DISK, target.has_data_disk)
    found[Need.IDENTITIES] = _reason(Need.IDENTITIES, target.identities.has_authority())
    found[Need.GRPC] = _reason(Need.GRPC, target.dialect.is_grpc)
    found[Need.ONE_OUTPUT] = _reason(Need.ONE_OUTPUT, terms.one_output)
    scheme = target.identities.scheme
    found[Need.ROLES] = _reason(Need.ROLES, scheme.has_roles)
    found[Need.CERTIFICATE_RULES] = _reason(Need.CERTIFICATE_RULES, scheme.has_rules)
    for need, setting in _FLAGS.items():
        found[need] = _reason(need, setting in target.flags)
    return found


def named_needs(terms: Terms) -> Capabilities:
    """Return the needs that a dialect must name something for."""
    return {
        **{need: _reason(need, names.isdisjoint(terms.lacks)) for need, names in _NAMES.items()},
        **{need: _reason(need, names <= set(terms.reports)) for need, names in _REPORTS.items()},
    }


def _probe(has: Callable[[Client], bool], client: Client) -> bool:
    """Probe for a feature; a broken promise counts as present, so that the checks judge it."""
    try:
        return has(client)
    except UnmetError:
        return True


def _sees_host(target: Target) -> bool:
    if target.host is None:
        return False
    try:
        return target.host.run("test -e /proc/1/stat").exit_code == 0
    except UnmetError:
        return False


def _reason(need: Need, has: bool) -> str:  # noqa: FBT001 - the probe's result
    return "" if has else f"the target lacks {need}"


def _has_python(client: Client) -> bool:
    return client.start("python3", ["-I", "-S", "-c", "pass"]).call.code not in _NO_PROGRAM


_CGROUP: Final = re.compile(r"0::/\S*")


def _has_cgroups(client: Client) -> bool:
    """With cgroups, two jobs are in different ones, which exist below the mount.

    Only their difference is read from the output, which a broken server may corrupt, or mix with
    lines of its own.
    """
    # After 1 s: a server that moves its jobs after their start has cgroups, and must be judged.
    script = (
        "sleep 1; p=$(grep ^0:: /proc/self/cgroup) && test -d /sys/fs/cgroup/${p#0::/} && echo $p"
    )
    outputs = set()
    for job_id in [client.must_start("sh", ["-c", script]) for _ in range(2)]:
        output = client.output(job_id)
        outputs.add(next(iter(_CGROUP.findall(output)), output))
        if client.must_query(job_id).exit_code != 0:
            return False
    return len(outputs) > 1


def _has_limit_fields(client: Client) -> bool:
    """Without them, a server ignores the field, or rejects it (R-CGROUP-5)."""
    reply = client.start("true", limits=pb.ResourceLimits(cpu_millicores=730))
    if not reply.ok:
        return reply.call.code not in {"FAILED_PRECONDITION", "UNIMPLEMENTED"}
    answer = client.query(reply.message.job_id)
    return not answer.ok or bool(answer.message.HasField("limits"))


def _has_offsets(client: Client) -> bool:
    """Without them, a stream succeeds and has no offsets."""
    reply = client.start("echo", ["offsets"])
    if not reply.ok:
        return True
    stream = client.stream(reply.message.job_id, StreamPlan(timeout_s=60))
    return stream.offsets_reported or stream.outcome is not Outcome.OK


def _has_job_environment(client: Client) -> bool:
    """Without it, the variable is not set, and nothing is printed."""
    reply = client.start("printenv", ["JOBWORKER_PROBE"], environment={"JOBWORKER_PROBE": "set"})
    if not reply.ok:
        return reply.call.code != "NOT_FOUND"  # without printenv the probe is inconclusive
    return client.stream(reply.message.job_id, StreamPlan(keep_bytes=100)).text != ""


def _has_listing(client: Client) -> bool:
    return client.list_jobs().call.code != "UNIMPLEMENTED"


def _has_pages(client: Client) -> bool:
    """Without them, a page of one job has all jobs: at least those that the probes started."""
    if not all(client.start("true").ok for _ in range(2)):
        return True
    page = client.list_page(page_size=1)
    return len(page.message.jobs) <= 1 if page.ok else page.call.code != "UNIMPLEMENTED"


def _has_deletion(client: Client) -> bool:
    return client.delete(client.unknown_id).call.code != "UNIMPLEMENTED"


def _has_grace(client: Client) -> bool:
    """With it, a grace of 0 ends a job that ignores SIGTERM immediately.

    Without it, the stop succeeds after the server's default grace.
    """
    reply = client.start("sh", ["-c", f"trap '' TERM; echo ready; {WAITS}"])
    if not reply.ok:
        return True
    client.stream(reply.message.job_id, StreamPlan(stop_after_bytes=1, timeout_s=60))
    call = client.stop(reply.message.job_id, grace_s=0).call
    client.stop(reply.message.job_id)
    return call.code != "OK" or call.ended_s - call.started_s < _IMMEDIATE_S * client.patience


_IMMEDIATE_S: Final = 1.5
_PROBES: Final[dict[Need, Callable[[Client], bool]]] = {
    Need.PYTHON: _has_python,
    Need.CGROUPS: _has_cgroups,
    Need.LIMIT_FIELDS: _has_limit_fields,
    Need.OFFSETS: _has_offsets,
    Need.JOB_ENVIRONMENT: _has_job_environment,
    Need.LISTING: _has_listing,
    Need.PAGES: _has_pages,
    Need.DELETION: _has_deletion,
    Need.GRACE: _has_grace,
}
