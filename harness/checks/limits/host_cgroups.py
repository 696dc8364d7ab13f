"""What the checks of limits share: a job's cgroup as its host's kernel shows it, and starting anew.

Everything here looks at the kernel's own files, never at what a server says of itself.
"""

import itertools
import json
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import PurePosixPath
from typing import Final, Protocol, runtime_checkable

from harness.checks.check import Stage
from harness.drive.client import Client
from harness.drive.identities import CertFiles
from harness.drive.receiver import StreamPlan
from harness.host.clock import poll_until
from harness.payloads import payload
from harness.record.history import Json
from harness.record.verdict import BrokenError, UnsupportedError
from harness.targets.target import DEFAULT, RunningServer, Variant
from jobworker.v1 import jobworker_pb2 as pb

MIB: Final = 1024 * 1024
CGROUP_MOUNT: Final = "/sys/fs/cgroup"
HOST_TIMEOUT_S: Final = 120.0
_SETTLE_TIMEOUT_S: Final = 60.0

Samples = list[tuple[float, dict[str, int]]]


@runtime_checkable
class RootedTarget(Protocol):
    """A target that starts servers on cgroup roots of the caller's choice, as a guest does."""

    def launched(
        self,
        variant: Variant = DEFAULT,
        *,
        files: CertFiles | None = None,
        descriptors: int | None = None,
        cgroup_root: str | None = None,
        flags: Sequence[str] = (),
    ) -> AbstractContextManager[RunningServer]:
        """Start a server."""

    def command_line(
        self, cgroup_root: str, flags: Sequence[str] = (), files: CertFiles | None = None
    ) -> str:
        """Return the shell command that starts one."""

    def new_root(self) -> str:
        """Return a root that no server has had."""


def rooted(stage: Stage) -> RootedTarget:
    """Return the target, as one whose servers' roots can be chosen.

    Raises:
        UnsupportedError: it is none.
    """
    if not isinstance(stage.target, RootedTarget):
        raise UnsupportedError("cgroup roots of the harness's choice (a guest of its own)")
    return stage.target


def launched_again(stage: Stage, root: str) -> AbstractContextManager[RunningServer]:
    """Start a server on the cgroup root of an earlier one.

    A launch command of the user's names its root itself, the same one every time.
    """
    if isinstance(stage.target, RootedTarget):
        return stage.target.launched(cgroup_root=root)
    return stage.target.launched()


def on_host(stage: Stage, script: str) -> str:
    """Run a script that must succeed on the server's machine, and return its output.

    Raises:
        BrokenError: it failed.
    """
    return stage.host.run(script, HOST_TIMEOUT_S).require(f"on the server's host: {script}")


def cgroup_of(stage: Stage, client: Client, job_id: str) -> str:
    """Return the cgroup directory of a running job's main process, by what the kernel says.

    Raises:
        BrokenError: its host does not know the process.
    """
    return cgroups_of(stage, client, [job_id])[0]


def cgroups_of(stage: Stage, client: Client, jobs: Sequence[str]) -> list[str]:
    """Return the cgroup directories of some running jobs, as `cgroup_of` does.

    Raises:
        BrokenError: their host does not know one of the processes.
    """
    pids = [client.must_query(job_id, label="query: whose cgroup").pid for job_id in jobs]
    told = on_host(stage, f"cat {' '.join(f'/proc/{pid}/cgroup' for pid in pids)}")
    found = re.findall(r"^0::(/.*)$", told, flags=re.MULTILINE)
    if len(found) != len(pids):
        raise BrokenError(f"processes {pids} are not each in a cgroup v2: {told!r}")
    return [CGROUP_MOUNT + path.rstrip("/") for path in found]


def root_of(stage: Stage, client: Client) -> str:
    """Return the directory that holds the cgroups of a server's jobs."""
    job_id = client.must_start("sleep", [sleeping()], label="start: whose root")
    root = str(PurePosixPath(cgroup_of(stage, client, job_id)).parent)
    client.must_stop(job_id, label="stop: whose root")
    return root


def files_of(stage: Stage, directory: str, *names: str) -> dict[str, Json]:
    """Return the content of some files of a directory; None for one that is not there."""
    return contents(stage, directory, names)


def contents(stage: Stage, directory: str, paths: Sequence[str]) -> dict[str, Json]:
    """Return the content of some files below a directory; None for one that is not there."""
    lines = [
        f"echo '== {path}'; cat {shlex.quote(path)} 2>/dev/null || echo '!!'" for path in paths
    ]
    script = "; ".join([f"cd {shlex.quote(directory)} || true", *lines])
    parts = re.split(r"^== (.*)\n", on_host(stage, script), flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {path: None if text == "!!\n" else text.strip() for path, text in pairs}


def subdirectories(stage: Stage, directory: str) -> list[str]:
    """Return the names of the directories in a directory, sorted; a missing one has none."""
    told = on_host(stage, f"ls -1p {shlex.quote(directory)} 2>/dev/null | grep /$ || true")
    return sorted(line.rstrip("/") for line in told.splitlines())


def is_there(stage: Stage, path: str) -> bool:
    """Tell whether a path exists on the server's machine."""
    return on_host(stage, f"if [ -e {shlex.quote(path)} ]; then echo yes; fi") == "yes\n"


def remove_cgroup(stage: Stage, path: str) -> None:
    """End all processes in a cgroup that a check made, and remove it; a missing one is no error."""
    on_host(
        stage,
        f"[ ! -d {path} ] || echo 1 > {path}/cgroup.kill; "
        f"until [ ! -d {path} ] || rmdir {path} 2>/dev/null; do sleep 0.1; done",
    )


def sleeping() -> str:
    """Return seconds that nobody else sleeps: `sleep` processes are known by them.

    By true chance, not by the run's seed: in one guest, several runs of a seed follow each other.
    """
    return str(10**8 + secrets.randbelow(9 * 10**8))


def host_path(what: str) -> str:
    """Return a path on the server's machine that nobody else uses."""
    return f"/tmp/jobworker-{what}-{secrets.token_hex(6)}"  # noqa: S108 - cannot be guessed


def sleepers(stage: Stage, seconds: str) -> int:
    """Return how many processes sleep these seconds."""
    # -x: the whole command line, so the looking shell does not count.
    return int(on_host(stage, f"pgrep -cxf 'sleep {seconds}' || true"))


def wait_sleepers(stage: Stage, seconds: str, count: int) -> None:
    """Wait until so many processes sleep.

    Raises:
        BrokenError: they do not in time.
    """
    poll_until(
        lambda: True if sleepers(stage, seconds) == count else None,
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
    """Wait until a job has said something."""
    client.stream(job_id, StreamPlan(stop_after_bytes=1), label="ready")


def host_payload(name: str, *arguments: str) -> str:
    """Return the shell command that runs a payload on the server's machine itself."""
    command, words = payload(name, *arguments)
    return shlex.join([command, *words])


def sampled(
    stage: Stage, directories: Sequence[str], seconds: float, step_s: float, gate: str = ""
) -> dict[str, Samples]:
    """Sample cgroups on their host for a while, as the payload `cgroup_sampler` does."""
    plan = {"directories": list(directories), "seconds": seconds, "step_s": step_s, "gate": gate}
    told = stage.host.run(
        host_payload("cgroup_sampler", json.dumps(plan)), seconds + HOST_TIMEOUT_S
    )
    found: dict[str, Samples] = json.loads(told.require("sampling cgroups"))
    return {each: [(at_s, now) for at_s, now in found[each]] for each in directories}


def usage_fact(
    stage: Stage,
    title: str,
    unit: str,
    limit: float | None,
    points: Sequence[tuple[float, float]],
) -> None:
    """Record what a job used over time, for the report's picture."""
    values: list[Json] = [[at_s, round(value, 4)] for at_s, value in points]
    stage.fact(f"usage {title}", {"title": title, "unit": unit, "limit": limit, "samples": values})


def rates(samples: Samples, counter: str, scale: float) -> list[tuple[float, float]]:
    """Return how fast a counter grew between each two samples, at the second's moment."""
    pairs = itertools.pairwise(samples)
    return [
        (later_s, (after[counter] - before[counter]) / scale / (later_s - earlier_s))
        for (earlier_s, before), (later_s, after) in pairs
        if later_s > earlier_s
    ]


def mean_rate(samples: Samples, counter: str, scale: float) -> float:
    """Return how fast a counter grew from the first sample to the last.

    Raises:
        BrokenError: there are not two samples.
    """
    if len(samples) < 2:  # noqa: PLR2004 - a rate has two ends
        raise BrokenError(f"a cgroup was sampled {len(samples)} times; a rate takes two")
    (start_s, first), (end_s, last) = samples[0], samples[-1]
    return (last[counter] - first[counter]) / scale / (end_s - start_s)


@contextmanager
def sleeping_job(client: Client) -> Iterator[str]:
    """Run a job that only sleeps for as long as the context lasts; yields its id."""
    job_id = client.must_start("sleep", [sleeping()], label="start: a sleeping job")
    try:
        yield job_id
    finally:
        client.stop(job_id, label="stop: a sleeping job")


def counter(text: Json, key: str) -> int:
    """Return one value of a flat keyed kernel file, such as `memory.events`; 0 when absent."""
    found = re.search(rf"^{key} (\d+)$", text if isinstance(text, str) else "", re.MULTILINE)
    return int(found[1]) if found else 0


def told(response: Mapping[str, Json], *path: str) -> Json:
    """Return a field inside a recorded response, or None where a part of the way is absent."""
    value: Json = dict(response)
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
