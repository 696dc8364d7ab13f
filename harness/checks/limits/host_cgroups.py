"""What the checks of limits share: a job's cgroup as its host's kernel shows it, and restarts.

Everything here reads the kernel's own files, never a server's report of itself.
"""

import itertools
import json
import re
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import msgspec

from harness.checks.check import Need, Stage
from harness.drive.client import Client
from harness.drive.receiver import StreamPlan
from harness.host.clock import poll_until
from harness.payloads import payload
from harness.record.history import UsageCurve
from harness.record.verdict import BrokenError, UnsupportedError
from harness.targets.launching import CGROUP_MOUNT, LaunchingTarget
from harness.targets.target import RunningServer
from jobworker.v1 import jobworker_pb2 as pb

HOST_TIMEOUT_S: Final = 120.0
_SETTLE_TIMEOUT_S: Final = 60.0

# The needs of a check that runs programs; that also sets limits; that also reads kernel files.
RUNS_JOBS: Final = frozenset({Need.CGROUPS, Need.PYTHON})
SETS_LIMITS: Final = RUNS_JOBS | {Need.LIMIT_FIELDS}
READS_KERNEL_FILES: Final = SETS_LIMITS | {Need.HOST, Need.PIDS}


@dataclass(frozen=True, slots=True)
class Counters:
    """A cgroup's counters, as the payload `cgroup_sampler` prints them."""

    cpu_us: int
    throttled: int
    memory_bytes: int
    read_bytes: int
    written_bytes: int


# Counters at some moments, in seconds from the first.
Samples = list[tuple[float, Counters]]


def launching_target(stage: Stage) -> LaunchingTarget[RunningServer]:
    """Return the target, whose servers' cgroup roots can be chosen.

    Raises:
        UnsupportedError: they cannot.
    """
    if not isinstance(stage.target, LaunchingTarget):
        raise UnsupportedError("a choice of cgroup roots (servers that the harness launches)")
    return stage.target


def relaunch(stage: Stage, root: str) -> AbstractContextManager[RunningServer]:
    """Start a server on the cgroup root of an earlier one, which ends with the context.

    Raises:
        UnsupportedError: the target launches no servers.
    """
    return launching_target(stage).launch(cgroup_root=root)


def on_host(stage: Stage, script: str) -> str:
    """Run a script that must succeed on the server's machine, and return its output.

    Raises:
        BrokenError: it failed.
    """
    return stage.host.run(script, HOST_TIMEOUT_S).require(f"on the server's host: {script}")


def cgroup_of(stage: Stage, client: Client, job_id: str) -> str:
    """Return the cgroup directory of a running job's main process, as the kernel reports it.

    Raises:
        BrokenError: its host has no such process.
    """
    return cgroups_of(stage, client, [job_id])[0]


def cgroups_of(stage: Stage, client: Client, jobs: Sequence[str]) -> list[str]:
    """Return the cgroup directories of some running jobs, as `cgroup_of` does.

    Raises:
        BrokenError: their host lacks one of the processes.
    """
    pids = [client.must_query(job_id, label="query: whose cgroup").pid for job_id in jobs]
    lines = on_host(stage, f"cat {' '.join(f'/proc/{pid}/cgroup' for pid in pids)}")
    found = re.findall(r"^0::(/.*)$", lines, flags=re.MULTILINE)
    if len(found) != len(pids):
        raise BrokenError(f"processes {pids} are not each in a cgroup v2: {lines!r}")
    return [CGROUP_MOUNT + path.rstrip("/") for path in found]


def root_of(stage: Stage, client: Client) -> str:
    """Return the directory that holds the cgroups of a server's jobs."""
    job_id = client.must_start("sleep", [unique_seconds()], label="start: whose root")
    root = str(PurePosixPath(cgroup_of(stage, client, job_id)).parent)
    client.must_stop(job_id, label="stop: whose root")
    return root


def read_files(stage: Stage, directory: str, *paths: str) -> dict[str, str | None]:
    """Return the content of some files below a directory; None for a missing one.

    Of one that cannot be read, as of an empty one, the content is ''.
    """
    # With the shell's own commands: an emulated machine takes long to start a program.
    show = (
        'show() { echo "== $1"; line=; { while IFS= read -r line || [ -n "$line" ]; '
        "do printf '%s\\n' \"$line\"; line=; done; } 2>/dev/null < \"$1\" || echo '!!'; }"
    )
    shown = [f"show {shlex.quote(path)} 2>/dev/null" for path in paths]
    script = "; ".join([f"cd {shlex.quote(directory)} || true", show, *shown])
    parts = re.split(r"^== (.*)\n", on_host(stage, script), flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {path: None if text == "!!\n" else text.strip() for path, text in pairs}


def read_counter(stage: Stage, directory: str, file: str, key: str) -> int:
    """Return one value of a flat keyed kernel file, such as `memory.events`; 0 if it is absent."""
    found = re.search(
        rf"^{key} (\d+)$", read_files(stage, directory, file)[file] or "", re.MULTILINE
    )
    return int(found[1]) if found else 0


def subdirectories(stage: Stage, directory: str) -> list[str]:
    """Return the names of the directories in a directory, sorted; if it is missing, none."""
    lines = on_host(stage, f"ls -1p {shlex.quote(directory)} 2>/dev/null | grep /$ || true")
    return sorted(line.rstrip("/") for line in lines.splitlines())


def exists(stage: Stage, path: str) -> bool:
    """Return whether a path exists on the server's machine."""
    return on_host(stage, f"if [ -e {shlex.quote(path)} ]; then echo yes; fi") == "yes\n"


def remove_cgroup(stage: Stage, path: str) -> None:
    """Kill all processes in a cgroup that a check made, and remove it if it exists."""
    on_host(
        stage,
        f"[ ! -d {path} ] || echo 1 > {path}/cgroup.kill; "
        f"until [ ! -d {path} ] || rmdir {path} 2>/dev/null; do sleep 0.1; done",
    )


def start_stranger(stage: Stage, cgroup: str, seconds: str) -> None:
    """Start a `sleep` in a cgroup, as a process of no server."""
    script = f"echo $$ > {cgroup}/cgroup.procs; exec sleep {seconds}"
    on_host(stage, f"setsid -f sh -c '{script}' < /dev/null > /dev/null 2>&1")
    wait_sleepers(stage, seconds, 1)


def unique_seconds() -> str:
    """Return an argument for `sleep` that identifies its processes: no other one sleeps so long.

    Random, and not from the run's seed: several runs of one seed may follow each other in a guest.
    """
    return str(10**8 + secrets.randbelow(9 * 10**8))


def host_path(what: str) -> str:
    """Return a path on the server's machine that is used by nothing else."""
    return f"/tmp/jobworker-{what}-{secrets.token_hex(6)}"  # noqa: S108 - cannot be guessed


def count_sleepers(stage: Stage, seconds: str) -> int:
    """Return the number of processes that sleep so long."""
    # -x: the whole command line, so the shell that runs pgrep does not count.
    return int(on_host(stage, f"pgrep -cxf 'sleep {seconds}' || true"))


def wait_sleepers(stage: Stage, seconds: str, count: int) -> None:
    """Wait until so many processes sleep so long.

    Raises:
        BrokenError: they do not in time.
    """
    poll_until(
        lambda: True if count_sleepers(stage, seconds) == count else None,
        _SETTLE_TIMEOUT_S,
        f"{count} processes of the job",
    )


def start_payload(
    client: Client, name: str, *arguments: str, limits: pb.ResourceLimits | None = None,
    label: str = "start",
) -> str:  # fmt: skip
    """Start a payload and return the job's id."""
    command, words = payload(name, *arguments)
    return client.must_start(command, words, limits=limits, label=label)


def wait_ready(client: Client, job_id: str) -> None:
    """Wait until a job has written something."""
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")


def host_payload(name: str, *arguments: str) -> str:
    """Return the shell command that runs a payload on the server's machine itself."""
    command, words = payload(name, *arguments)
    return shlex.join([command, *words])


def sample(
    stage: Stage, directories: Sequence[str], seconds: float, step_s: float, gate: str = ""
) -> dict[str, Samples]:
    """Sample cgroups on their host for some time, with the payload `cgroup_sampler`."""
    plan = {"directories": list(directories), "seconds": seconds, "step_s": step_s, "gate": gate}
    done = stage.host.run(
        host_payload("cgroup_sampler", json.dumps(plan)), seconds + HOST_TIMEOUT_S
    )
    return msgspec.json.decode(done.require("sampling cgroups"), type=dict[str, Samples])


def rates(samples: Samples, amount: Callable[[Counters], float]) -> list[tuple[float, float]]:
    """Return how fast an amount grew between each two samples, at the second's moment."""
    return [
        (later_s, (amount(after) - amount(before)) / (later_s - earlier_s))
        for (earlier_s, before), (later_s, after) in itertools.pairwise(samples)
        if later_s > earlier_s
    ]


def mean_rate(samples: Samples, amount: Callable[[Counters], float]) -> float:
    """Return how fast an amount grew from the first sample to the last.

    Raises:
        BrokenError: there are not two samples.
    """
    if len(samples) < 2:  # noqa: PLR2004 - a rate has two ends
        raise BrokenError(f"a cgroup was sampled {len(samples)} times; a rate takes two")
    (start_s, first), (end_s, last) = samples[0], samples[-1]
    return (amount(last) - amount(first)) / (end_s - start_s)


def cpu_s(counters: Counters) -> float:
    """Return the CPU time, in seconds."""
    return counters.cpu_us / 1e6


def usage_curve(
    title: str, unit: str, limit: float | None, points: Sequence[tuple[float, float]]
) -> UsageCurve:
    """Return a job's measured use over time, for the report's picture."""
    return UsageCurve(title, unit, limit, tuple((at_s, round(value, 4)) for at_s, value in points))


@contextmanager
def sleeping_job(client: Client) -> Iterator[str]:
    """Run a job that sleeps until the end of the context; yields its id."""
    job_id = client.must_start("sleep", [unique_seconds()], label="start: a sleeping job")
    try:
        yield job_id
    finally:
        client.stop(job_id, label="stop: a sleeping job")
