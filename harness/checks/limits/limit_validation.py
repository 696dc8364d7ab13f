"""Refused limits: impossible ones, those of users, and servers that cannot enforce any."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.limits.host_cgroups import (
    cgroup_of,
    count_sleepers,
    exists,
    launching_target,
    on_host,
    read_files,
    remove_cgroup,
    root_of,
    start_stranger,
    subdirectories,
    unique_seconds,
)
from harness.drive.client import message_of
from harness.judge.promises import answered, assumed, equal, holds, one_of
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

_OBSERVED: Final = frozenset({Need.CGROUPS, Need.LIMIT_FIELDS, Need.HOST})
_LAUNCHED: Final = frozenset({Need.CGROUPS, Need.LAUNCH, Need.HOST, Need.GUEST})


def _io_limit(device: str, read_bytes_per_second: int = MIB) -> pb.ResourceLimits:
    limit = pb.IoMax(device=device, read_bytes_per_second=read_bytes_per_second)
    return pb.ResourceLimits(io_max=[limit])


ARGUMENT: Final = ("INVALID_ARGUMENT",)
# Limits that no kernel accepts, and the statuses that refuse them.
IMPOSSIBLE: Final = {
    "no CPU": (pb.ResourceLimits(cpu_millicores=0), ARGUMENT),
    "no memory": (pb.ResourceLimits(memory_max_bytes=0), ARGUMENT),
    "no processes": (pb.ResourceLimits(pids_max=0), ARGUMENT),
    "weight 0": (pb.ResourceLimits(io_weight=0), ARGUMENT),
    "weight 10001": (pb.ResourceLimits(io_weight=10_001), ARGUMENT),
    "a missing device": (_io_limit("/dev/not-there"), ARGUMENT),
    "a character device": (_io_limit("/dev/null"), ARGUMENT),
    "no bytes per second": (_io_limit("1:0", 0), ARGUMENT),
    # Only the kernel can find out, and refuses it with ENODEV.
    "an unknown device number": (_io_limit("250:250"), (*ARGUMENT, "FAILED_PRECONDITION")),
}


@dataclass(frozen=True, slots=True)
class LeftByRefusedStarts(Observation):
    """The cgroups and the number of processes that refused starts left behind."""

    cgroups: tuple[str, ...]
    processes: int


def _run_impossible(stage: Stage) -> None:
    with stage.client() as client:
        root = root_of(stage, client)
        seconds = unique_seconds()
        before = subdirectories(stage, root)
        for name, (limits, _) in IMPOSSIBLE.items():
            client.start("sleep", [seconds], limits=limits, label=name)
        # Twice: where the harness looks through a job, that job's own cgroup exists meanwhile.
        looks = [set(subdirectories(stage, root)) for _ in range(2)]
        left = sorted(set.intersection(*looks) - set(before))
        stage.record(LeftByRefusedStarts(tuple(left), count_sleepers(stage, seconds)))


def _judge_impossible(history: History) -> Iterator[Finding]:
    for name, (_, codes) in IMPOSSIBLE.items():
        yield answered(f"a start with {name} is refused", history.call(name), *codes)
    left = history.the(LeftByRefusedStarts)
    yield equal("a refused start leaves no cgroup", left.cgroups, ())
    yield equal("a refused start leaves no process", left.processes, 0)


IMPOSSIBLE_LIMITS: Final = Check(
    "limits.impossible",
    "Impossible limits are refused, and nothing is left of the start.",
    _run_impossible,
    _judge_impossible,
    needs=_OBSERVED | {Need.IO_MAX},
    cites=("57", "32"),
    alone=True,
)


# More than any host has: 512 cores, 1 PiB.
ABOVE: Final = pb.ResourceLimits(cpu_millicores=512_000, memory_max_bytes=1 << 50)
REFUSALS: Final = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED")


@dataclass(frozen=True, slots=True)
class AcceptedLimitFiles(Observation):
    """The files of a job whose limits above the host's were accepted; None: missing."""

    cpu_max: str | None
    memory_max: str | None


def _run_above(stage: Stage) -> None:
    with stage.client() as client:
        reply = client.start("sleep", [unique_seconds()], limits=ABOVE, label="above")
        if reply.ok:
            job_id = reply.message.job_id
            client.must_query(job_id, label="accepted")
            directory = cgroup_of(stage, client, job_id)
            files = read_files(stage, directory, "cpu.max", "memory.max")
            stage.record(AcceptedLimitFiles(files["cpu.max"], files["memory.max"]))
            client.stop(job_id)


def _judge_above(history: History) -> Iterator[Finding]:
    call = history.call("above")
    yield one_of("limits above the host's are accepted or refused", call.code, ("OK", *REFUSALS))
    if call.code != "OK":
        return
    limits = message_of(history.call("accepted"), pb.QueryJobResponse).limits
    yield equal(
        "accepted limits that are reported are in force (cpu.max, memory.max)",
        history.the(AcceptedLimitFiles),
        AcceptedLimitFiles(f"{limits.cpu_millicores * 100} 100000", str(limits.memory_max_bytes)),
    )


ABOVE_THE_HOST: Final = Check(
    "limits.above-the-host",
    "Limits above the host's are refused, or the reported ones are in force.",
    _run_above,
    _judge_above,
    needs=_OBSERVED,
    cites=("57",),
)


@dataclass(frozen=True, slots=True)
class ProcessesOfUser(Observation):
    """How many processes a user's refused start with limits left running."""

    count: int


def _run_only_admins(stage: Stage) -> None:
    seconds = unique_seconds()
    limits = pb.ResourceLimits(cpu_millicores=1000, memory_max_bytes=500 * MIB, io_weight=1000)
    with stage.client("user") as client:
        client.start("sleep", [seconds], limits=limits, label="a user")
    stage.record(ProcessesOfUser(count_sleepers(stage, seconds)))
    with stage.client() as client:
        reply = client.start("sleep", [seconds], limits=limits, label="an admin")
        if reply.ok:
            client.stop(reply.message.job_id, grace_s=0)


def _judge_only_admins(history: History) -> Iterator[Finding]:
    yield answered("a user must not set limits", history.call("a user"), "PERMISSION_DENIED")
    yield equal("nothing runs for the user", history.the(ProcessesOfUser).count, 0)
    yield answered("an admin is allowed to", history.call("an admin"))


ONLY_ADMINS: Final = Check(
    "limits.only-admins",
    "Only an admin is allowed to set limits.",
    _run_only_admins,
    _judge_only_admins,
    needs=_OBSERVED | {Need.GRACE, Need.ROLES},
    cites=("61", "23"),
)


@dataclass(frozen=True, slots=True)
class RootOfUnlimitedServer(Observation):
    """Whether a server that runs without limits made its cgroup root."""

    exists: bool


def _single_limits() -> Iterator[tuple[str, pb.ResourceLimits]]:
    """Yield each limit of the API alone, with a value and with 0."""
    for field in pb.ResourceLimits.DESCRIPTOR.fields:
        if field.message_type is not None:
            yield f"only {field.name}", _io_limit("1:0")
        else:
            for value in (0, 50 * MIB):
                alone: dict[str, Any] = {field.name: value}
                yield f"only {field.name}={value}", pb.ResourceLimits(**alone)


def _run_without_limits(stage: Stage) -> None:
    target = launching_target(stage)
    root = target.new_root()
    with (
        target.launch(cgroup_root=root, flags=["--no-limits"]) as server,
        stage.client(server=server) as client,
    ):
        for label, limits in _single_limits():
            client.start("true", limits=limits, label=label)
        client.start("true", label="without")
        stage.record(RootOfUnlimitedServer(exists(stage, root)))


def _judge_without_limits(history: History) -> Iterator[Finding]:
    for label, _ in _single_limits():
        yield answered(
            f"a server without limits refuses a job with limits ({label})", history.call(label),
            "FAILED_PRECONDITION", "INVALID_ARGUMENT", "UNIMPLEMENTED",
        )  # fmt: skip
    yield answered("it runs a job without", history.call("without"))
    made = "a cgroup root" if history.the(RootOfUnlimitedServer).exists else "no cgroup"
    yield equal("it makes no cgroup", made, "no cgroup")


WITHOUT_LIMITS: Final = Check(
    "limits.without-limits",
    "A server that runs without limits refuses a job that requests limits.",
    _run_without_limits,
    _judge_without_limits,
    needs=_LAUNCHED | {Need.LIMIT_FIELDS},
    cites=("R-CGROUP-5",),
)


TIMEOUT_EXIT: Final = 124  # timeout(1)
START_TIMEOUT_S: Final = 90  # far beyond a start: a server that still runs then has started
# A mount namespace in which the hierarchy is as on a host of cgroup v1 ...
_NAMESPACE: Final = "unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup && {prepare} {command}'"
# ... or lacks a controller.
_WITHOUT_IO: Final = "echo cpu memory pids > /sys/fs/cgroup/cgroup.controllers &&"


@dataclass(frozen=True, slots=True)
class ServerStart(Observation):
    """The start of a server that must refuse: its cgroup root, exit code and output."""

    root: str
    exit_code: int
    output: str


def _start_server(stage: Stage, root: str, wrapper: str = "{command}") -> None:
    """Start a server on a root, with a time limit, and record how it ended."""
    command = f"timeout {START_TIMEOUT_S} {launching_target(stage).command_line(root)}"
    done = stage.host.run(wrapper.format(command=command), 180)
    stage.record(ServerStart(root, done.exit_code, done.stdout + done.stderr))


def _judge_refused(start: ServerStart, promise: str, *words: str) -> Iterator[Finding]:
    """Judge a start: refused, and for a reason in which all these words occur."""
    text = start.output
    refused = 0 < start.exit_code < TIMEOUT_EXIT
    yield holds(promise, kept=refused, got=f"exit code {start.exit_code}: {text[-200:]}", want="1")
    yield holds(
        "the text states the fault and the remedy",
        kept=all(_contains(text, word) for word in words) and "Traceback" not in text,
        got=text[-300:],
        want=" and ".join(words),
    )


def _contains(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


@dataclass(frozen=True, slots=True)
class HostHierarchy(Observation):
    """Whether the host itself, outside the server's mount namespace, has cgroup v2."""

    is_v2: bool


def _run_without_hierarchy(prepare: str, stage: Stage) -> None:
    wrapper = _NAMESPACE.format(prepare=prepare, command="{command}")
    _start_server(stage, launching_target(stage).new_root(), wrapper)
    stage.record(HostHierarchy(exists(stage, "/sys/fs/cgroup/cgroup.controllers")))


def _judge_without_hierarchy(promise: str, word: str, history: History) -> Iterator[Finding]:
    is_v2 = history.the(HostHierarchy).is_v2
    yield assumed("the host itself has cgroup v2", true=is_v2, got="none")
    yield from _judge_refused(history.the(ServerStart), promise, word, "--no-limits")


HIERARCHY_CHECKS: Final = tuple(
    Check(
        f"limits.{name}",
        guarantee,
        partial(_run_without_hierarchy, prepare),
        partial(_judge_without_hierarchy, promise, word),
        needs=_LAUNCHED,
        cites=("58", "R-CGROUP-5"),
    )
    for name, guarantee, prepare, promise, word in (
        (
            "no-cgroup2",
            "On a host with cgroup v1 the server refuses to start, and states the remedy.",
            "",
            "without cgroup v2 the server does not start",
            "cgroup v2",
        ),
        (
            "missing-controller",
            "Without a controller that limits need, the server refuses to start.",
            _WITHOUT_IO,
            "without a controller the server does not start",
            "io",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class JobOfFirstServer(Observation):
    """How many processes of the first server's job run after a second server's start."""

    processes: int


def _run_root_in_use(stage: Stage) -> None:
    seconds = unique_seconds()
    with stage.client() as client:
        job_id = client.must_start("sleep", [seconds])
        _start_server(stage, cgroup_of(stage, client, job_id).rpartition("/")[0])
        stage.record(JobOfFirstServer(count_sleepers(stage, seconds)))
        client.query(job_id, label="query of the first")
        client.stop(job_id)


def _judge_root_in_use(history: History) -> Iterator[Finding]:
    start = history.the(ServerStart)
    promise = "a second server on a root does not start"
    yield from _judge_refused(start, promise, start.root, "in use")
    yield equal("the first one's job runs on", history.the(JobOfFirstServer).processes, 1)
    yield answered("the first one answers", history.call("query of the first"))


ROOT_IN_USE: Final = Check(
    "limits.root-in-use",
    "A cgroup root that another server uses is refused, and that server goes on.",
    _run_root_in_use,
    _judge_root_in_use,
    needs=_LAUNCHED,
    cites=("60",),
)


@dataclass(frozen=True, slots=True)
class StrangersInRoot(Observation):
    """How many processes that were in a root before a server's start run after it."""

    processes: int


def _run_occupied_root(stage: Stage) -> None:
    seconds = unique_seconds()
    root = launching_target(stage).new_root()
    on_host(stage, f"mkdir {root}")
    start_stranger(stage, root, seconds)
    _start_server(stage, root)
    stage.record(StrangersInRoot(count_sleepers(stage, seconds)))
    remove_cgroup(stage, root)


def _judge_occupied_root(history: History) -> Iterator[Finding]:
    start = history.the(ServerStart)
    promise = "a server does not start on a root with a stranger's process in it"
    yield from _judge_refused(start, promise, start.root, "processes")
    yield equal("the stranger is left alone", history.the(StrangersInRoot).processes, 1)


OCCUPIED_ROOT: Final = Check(
    "limits.occupied-root",
    "A cgroup root with processes of others is refused, and they are left alone.",
    _run_occupied_root,
    _judge_occupied_root,
    needs=_LAUNCHED,
    cites=("60",),
)

CHECKS: Final = (
    IMPOSSIBLE_LIMITS,
    ABOVE_THE_HOST,
    ONLY_ADMINS,
    WITHOUT_LIMITS,
    *HIERARCHY_CHECKS,
    ROOT_IN_USE,
    OCCUPIED_ROOT,
)
