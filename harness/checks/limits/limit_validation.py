"""What may be asked: limits that cannot be are refused and leave nothing, and only admins ask."""

import re
from collections.abc import Iterator
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.limits.host_cgroups import (
    MIB,
    cgroup_of,
    files_of,
    is_there,
    on_host,
    remove_cgroup,
    root_of,
    rooted,
    sleepers,
    sleeping,
    subdirectories,
    told,
    wait_sleepers,
)
from harness.judge.promises import answered, assumed, equal, holds, one_of
from harness.record.history import History, Json
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb

REFUSALS: Final = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED")

# What no kernel takes -> the limits.
IMPOSSIBLE: Final = {
    "no CPU": pb.ResourceLimits(cpu_millicores=0),
    "no memory": pb.ResourceLimits(memory_max_bytes=0),
    "no processes": pb.ResourceLimits(pids_max=0),
    "weight 0": pb.ResourceLimits(io_weight=0),
    "weight 10001": pb.ResourceLimits(io_weight=10_001),
    "a device that is not there": pb.ResourceLimits(
        io_max=[pb.IoMax(device="/dev/not-there", read_bytes_per_second=MIB)]
    ),
    "a device that is none": pb.ResourceLimits(
        io_max=[pb.IoMax(device="/dev/null", read_bytes_per_second=MIB)]
    ),
    "no bytes a second": pb.ResourceLimits(
        io_max=[pb.IoMax(device="1:0", read_bytes_per_second=0)]
    ),
}
# A number that no device has: only the kernel can tell, and refuses it with ENODEV.
UNKNOWN_NUMBER: Final = pb.ResourceLimits(
    io_max=[pb.IoMax(device="250:250", read_bytes_per_second=MIB)]
)
# More than any host has: 512 cores, 1 PiB.
ABOVE: Final = pb.ResourceLimits(cpu_millicores=512_000, memory_max_bytes=1 << 50)


def _run_impossible(stage: Stage) -> None:
    with stage.client() as client:
        root = root_of(stage, client)
        seconds = sleeping()
        before = subdirectories(stage, root)
        for name, limits in IMPOSSIBLE.items():
            client.start("sleep", [seconds], limits=limits, label=f"asked {name}")
        client.start("sleep", [seconds], limits=UNKNOWN_NUMBER, label="unknown number")
        # Twice: where a look is a job, its own cgroup is there while it looks.
        looks = [set(subdirectories(stage, root)) for _ in range(2)]
        left: list[Json] = [*sorted(set.intersection(*looks) - set(before))]
        stage.fact("left behind", left)
        stage.fact("processes", sleepers(stage, seconds))


def _judge_impossible(history: History) -> Iterator[Finding]:
    for call in history.calls("asked "):
        name = call.label.removeprefix("asked ")
        yield answered(f"{name} is refused", call, "INVALID_ARGUMENT")
    yield answered(
        "a device number that the kernel does not know is refused",
        history.call("unknown number"),
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
    )
    yield equal("a refused start leaves no cgroup", history.fact("left behind"), [])
    yield equal("a refused start leaves no process", history.fact("processes"), 0)


def _run_above(stage: Stage) -> None:
    with stage.client() as client:
        reply = client.start("sleep", [sleeping()], limits=ABOVE, label="above")
        if reply.ok:
            job_id = reply.message.job_id
            client.must_query(job_id, label="told")
            directory = cgroup_of(stage, client, job_id)
            stage.fact("files", files_of(stage, directory, "cpu.max", "memory.max"))
            client.stop(job_id)


def _judge_above(history: History) -> Iterator[Finding]:
    call = history.call("above")
    yield one_of("limits above the host's are taken or refused", call.code, ("OK", *REFUSALS))
    if call.code != "OK":
        return
    response = history.call("told").response
    quota = f"{int(str(told(response, 'limits', 'cpu_millicores') or 0)) * 100} 100000"
    memory = str(told(response, "limits", "memory_max_bytes"))
    files = history.fact("files")
    yield equal(
        "limits that are taken are the ones that are told (cpu.max, memory.max)",
        [files.get("cpu.max"), files.get("memory.max")] if isinstance(files, dict) else files,
        [quota, memory],
    )


def _run_only_admins(stage: Stage) -> None:
    seconds = sleeping()
    limits = pb.ResourceLimits(cpu_millicores=1000, memory_max_bytes=500 * MIB, io_weight=1000)
    with stage.client("user") as client:
        client.start("sleep", [seconds], limits=limits, label="a user")
    stage.fact("processes", sleepers(stage, seconds))
    with stage.client() as client:
        reply = client.start("sleep", [seconds], limits=limits, label="an admin")
        if reply.ok:
            client.stop(reply.message.job_id, grace_s=0)


def _judge_only_admins(history: History) -> Iterator[Finding]:
    yield answered("a user may not set limits", history.call("a user"), "PERMISSION_DENIED")
    yield equal("nothing runs for the user", history.fact("processes"), 0)
    yield answered("an admin may", history.call("an admin"))


def _run_without_limits(stage: Stage) -> None:
    target = rooted(stage)
    root = target.new_root()
    with (
        target.launched(cgroup_root=root, flags=["--no-limits"]) as server,
        stage.client(server=server) as client,
    ):
        limits = pb.ResourceLimits(memory_max_bytes=50 * MIB)
        client.start("true", limits=limits, label="with limits")
        client.start("true", label="without")
        stage.fact("root is there", is_there(stage, root))


def _judge_without_limits(history: History) -> Iterator[Finding]:
    call = history.call("with limits")
    yield answered(
        "a server without limits refuses a job that asks for them", call,
        "FAILED_PRECONDITION", "INVALID_ARGUMENT", "UNIMPLEMENTED",
    )  # fmt: skip
    yield answered("it runs a job that does not", history.call("without"))
    yield equal("it makes no cgroups", history.fact("root is there"), want=False)


def _refused_start(stage: Stage, label: str, script: str) -> None:
    """Run a server that must refuse to start; record how it ended and what it said."""
    done = stage.host.run(script, 180)
    stage.fact(f"{label}: exit code", done.exit_code)
    stage.fact(f"{label}: text", done.stdout + done.stderr)


TIMEOUT_EXIT: Final = 124  # timeout(1)
START_TIMEOUT_S: Final = 90  # far beyond a start: what has not refused by then has started


def _says(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _judge_refused_start(
    label: str, promise: str, words: tuple[str, ...], history: History
) -> Iterator[Finding]:
    code, text = history.number(f"{label}: exit code"), str(history.fact(f"{label}: text"))
    refused = 0 < code < TIMEOUT_EXIT
    yield holds(promise, kept=refused, got=f"exit code {code:.0f}: {text[-200:]}", want="1")
    yield holds(
        "the text says what is wrong and what helps",
        kept=all(_says(text, word) for word in words) and "Traceback" not in text,
        got=text[-300:],
        want=" and ".join(words),
    )


# In a mount namespace of its own, where the hierarchy is what it is on a host of cgroup v1 ...
_NAMESPACE: Final = "unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup && {prepare} {command}'"
# ... or one that lacks a controller.
_WITHOUT_IO: Final = "echo cpu memory pids > /sys/fs/cgroup/cgroup.controllers &&"


def _run_no_cgroup2(prepare: str, stage: Stage) -> None:
    target = rooted(stage)
    command = f"timeout {START_TIMEOUT_S} {target.command_line(target.new_root())}"
    _refused_start(stage, "start", _NAMESPACE.format(prepare=prepare, command=command))
    stage.fact("v2 here", is_there(stage, "/sys/fs/cgroup/cgroup.controllers"))


def _run_no_hierarchy(stage: Stage) -> None:
    _run_no_cgroup2("", stage)


def _run_no_controller(stage: Stage) -> None:
    _run_no_cgroup2(_WITHOUT_IO, stage)


def _judge_no_hierarchy(history: History) -> Iterator[Finding]:
    yield assumed("the host itself has cgroup v2", true=history.fact("v2 here") is True, got="none")
    yield from _judge_refused_start(
        "start",
        "without cgroup v2 the server does not start",
        ("cgroup v2", "--no-limits"),
        history,
    )


def _judge_no_controller(history: History) -> Iterator[Finding]:
    yield assumed("the host itself has cgroup v2", true=history.fact("v2 here") is True, got="none")
    yield from _judge_refused_start(
        "start", "without a controller the server does not start", ("io", "--no-limits"), history
    )


def _run_root_in_use(stage: Stage) -> None:
    seconds = sleeping()
    with stage.client() as client:
        job_id = client.must_start("sleep", [seconds])
        root = cgroup_of(stage, client, job_id).rpartition("/")[0]
        _refused_start(
            stage, "second", f"timeout {START_TIMEOUT_S} {rooted(stage).command_line(root)}"
        )
        stage.fact("root", root)
        stage.fact("job runs", sleepers(stage, seconds))
        client.query(job_id, label="query of the first")
        client.stop(job_id)


def _judge_root_in_use(history: History) -> Iterator[Finding]:
    root = str(history.fact("root"))
    yield from _judge_refused_start(
        "second", "a second server on a root does not start", (root, "in use"), history
    )
    yield equal("the first one's job runs on", history.fact("job runs"), 1)
    yield answered("the first one answers", history.call("query of the first"))


def _run_occupied_root(stage: Stage) -> None:
    seconds = sleeping()
    root = rooted(stage).new_root()
    stranger = f"echo $$ > {root}/cgroup.procs; exec sleep {seconds}"
    on_host(stage, f"mkdir {root} && setsid -f sh -c '{stranger}' < /dev/null > /dev/null 2>&1")
    wait_sleepers(stage, seconds, 1)
    command = rooted(stage).command_line(root)
    _refused_start(stage, "start", f"timeout {START_TIMEOUT_S} {command}")
    stage.fact("root", root)
    stage.fact("stranger", sleepers(stage, seconds))
    remove_cgroup(stage, root)


def _judge_occupied_root(history: History) -> Iterator[Finding]:
    yield from _judge_refused_start(
        "start", "a server does not start on a root with a stranger's process in it",
        (str(history.fact("root")), "processes"), history,
    )  # fmt: skip
    yield equal("the stranger is left alone", history.fact("stranger"), 1)


_LIMITED: Final = frozenset({Need.CGROUPS, Need.LIMIT_FIELDS, Need.HOST})
_STARTED: Final = frozenset({Need.CGROUPS, Need.LAUNCH, Need.HOST, Need.GUEST})

CHECKS: Final = (
    Check(
        name="limits.impossible",
        guarantee="Limits that cannot be are refused, and nothing is left of the start.",
        run=_run_impossible,
        judge=_judge_impossible,
        needs=_LIMITED,
        cites=("57", "32"),
        alone=True,
    ),
    Check(
        name="limits.above-the-host",
        guarantee="Limits above the host's are refused, or the ones that are told are in force.",
        run=_run_above,
        judge=_judge_above,
        needs=_LIMITED,
        cites=("57",),
    ),
    Check(
        name="limits.only-admins",
        guarantee="Only an admin may set limits.",
        run=_run_only_admins,
        judge=_judge_only_admins,
        needs=_LIMITED | {Need.GRACE},
        cites=("61", "23"),
    ),
    Check(
        name="limits.without-limits",
        guarantee="A server that runs without limits refuses a job that asks for them.",
        run=_run_without_limits,
        judge=_judge_without_limits,
        needs=_STARTED | {Need.LIMIT_FIELDS},
        cites=("R-CGROUP-5",),
        time_limit_s=120,
    ),
    Check(
        name="limits.no-cgroup2",
        guarantee="On a host of cgroup v1 the server refuses to start, and says what helps.",
        run=_run_no_hierarchy,
        judge=_judge_no_hierarchy,
        needs=_STARTED,
        cites=("58", "R-CGROUP-5"),
    ),
    Check(
        name="limits.missing-controller",
        guarantee="Without a controller that limits need, the server refuses to start.",
        run=_run_no_controller,
        judge=_judge_no_controller,
        needs=_STARTED,
        cites=("58", "R-CGROUP-5"),
    ),
    Check(
        name="limits.root-in-use",
        guarantee="A cgroup root that another server uses is refused, and that one goes on.",
        run=_run_root_in_use,
        judge=_judge_root_in_use,
        needs=_STARTED,
        cites=("60",),
    ),
    Check(
        name="limits.occupied-root",
        guarantee="A cgroup root that holds somebody else's processes is refused, and spared.",
        run=_run_occupied_root,
        judge=_judge_occupied_root,
        needs=_STARTED,
        cites=("60",),
    ),
)
