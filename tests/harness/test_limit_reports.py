"""The checks of reported limits and usage notice every wire mutant of these fields.

A model takes the place of a server with cgroup v2 and of its kernel's files, so that all of them
are judged in seconds. `python -m harness wire --target vm` judges them with a real server.
"""

import dataclasses
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import grpc
import pytest
from google.protobuf.message import Message

from harness.checks.check import Check, Need, Scale, Stage
from harness.checks.limits.host_cgroups import read_files
from harness.checks.limits.reports import (
    REPORTED,
    USAGE,
    JobLimits,
    ReportedUsage,
    UsageCounters,
    limits_of_files,
)
from harness.dialects.dialect import CANONICAL, CanonicalTransport, Connection
from harness.host.cert_files import CertFiles
from harness.host.processes import Done
from harness.record.history import History, Recorder
from harness.record.verdict import UnmetError, Verdict
from harness.wire.equivalents import reason_for
from harness.wire.mutants import FieldMutant, generate
from harness.wire.tap import MutantTap, Tap
from harness.wire.target import SERVICE
from jobworker.v1 import jobworker_pb2 as pb
from worker_service.cgroup import DEFAULT_LIMITS, Limits
from worker_service.errors import InvalidRequestError
from worker_service.wire import limits_from_message, limits_to_message

DISKS: Final = {"/dev/vda": "254:0", "/dev/vdb": "254:16"}
LIMIT_FILES: Final = {"cpu.max": "max 100000", "memory.max": "max", "pids.max": "max"}
RATES: Final = ("rbps", "wbps", "riops", "wiops")
# The counters of a job before and after it has worked, in the order of the API.
RESTS: Final = (10, 1, 3, 4096, 8192, 0, 0, 0, 1)
WORKED: Final = (1_856_213, 33, 1_485_532, 3_567_616, 50_331_648, 1, 49_152, 20_480, 3)
UNSEEN_HERE: Final = {
    "wire.QueryJobResponse.limits.invented",
    "wire.QueryJobResponse.usage.invented",
}
FIELDS: Final = re.compile(r"\.(limits|usage|oom_killed)\.")
MUTANTS: Final = [
    mutant
    for mutant in generate(SERVICE)
    if isinstance(mutant, FieldMutant) and FIELDS.search(mutant.name)
]


class RefusedError(grpc.RpcError):
    """The error of a call with limits that are not possible."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INVALID_ARGUMENT

    def details(self) -> str:
        return "the limits are not possible"


class Output:
    """A stream of output."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._messages = [pb.StreamLogsResponse(message=part) for part in parts]

    def __iter__(self) -> Iterator[pb.StreamLogsResponse]:
        return iter(self._messages)

    def cancel(self) -> None:
        """Do nothing: it ends by itself."""


@dataclasses.dataclass(slots=True)
class Job:
    """A job of the model."""

    job_id: str
    pid: int
    limits: Limits
    counters: tuple[int, ...] = RESTS
    status: str = "running"


class Model:
    """A server with one relay in front of it, and its machine."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._jobs: dict[str, Job] = {}

    def StartJob(self, request: pb.StartJobRequest, timeout: float) -> Message:  # noqa: N802, ARG002
        seen = self._passed(request)
        for each in seen.limits.io_max:
            each.device = DISKS.get(each.device, each.device)
            if each.device not in DISKS.values():
                raise RefusedError
        given = limits_from_message(seen.limits)
        try:
            given.validate()
        except InvalidRequestError as error:
            raise RefusedError from error
        requested = {
            each.name: value for each in dataclasses.fields(Limits)
            if (value := getattr(given, each.name))
        }  # fmt: skip
        limits = dataclasses.replace(DEFAULT_LIMITS, **requested)
        job = Job(str(uuid.uuid4()), 100 + len(self._jobs), limits)
        self._jobs[job.job_id] = job
        return self._passed(pb.StartJobResponse(job_id=job.job_id))

    def QueryJob(self, request: pb.QueryJobRequest, timeout: float) -> Message:  # noqa: N802, ARG002
        job = self._jobs[request.job_id]
        names = pb.ResourceUsage.DESCRIPTOR.fields_by_name
        response = pb.QueryJobResponse(
            status=job.status,
            pid=job.pid,
            oom_killed=job.counters[5] > 0,
            limits=limits_to_message(job.limits),
            usage=pb.ResourceUsage(**dict(zip(names, job.counters, strict=True))),
        )
        return self._passed(response)

    def StopJob(self, request: pb.StopJobRequest, timeout: float) -> Message:  # noqa: N802, ARG002
        self._jobs[request.job_id].status = "signaled"
        return self._passed(pb.StopJobResponse(success=True))

    def StreamLogs(self, request: pb.StreamLogsRequest, timeout: float) -> Output:  # noqa: N802, ARG002
        return Output([b"ready\n", b"done\n"])

    def run(self, script: str, timeout_s: float = 60.0) -> Done:
        """Run one of the checks' scripts on the machine."""
        del timeout_s
        return Done(0, self._output(script), "")

    def _output(self, script: str) -> str:
        if script.startswith("cd /sys/block"):
            return "".join(f"{path} {number}\n" for path, number in DISKS.items())
        if script.startswith("cat /proc/"):
            return "".join(
                f"0::/jobs/{job.job_id}\n"
                for pid in map(int, re.findall(r"/proc/(\d+)/", script))
                for job in self._jobs.values()
                if job.pid == pid
            )
        if "oom.group" in script:
            next(iter(self._jobs.values())).counters = WORKED
            return ""
        directory = script.removeprefix("cd ").partition(" ||")[0]
        paths = re.findall(r"show (\S+) 2>", script)
        return "".join(f"== {path}\n{self._file(f'{directory}/{path}')}\n" for path in paths)

    def _file(self, path: str) -> str:
        _, _, job_id, name = path.rsplit("/", 3)
        job = self._jobs[job_id]
        cpu_us, periods, throttled_us, current, peak, kills, read, written, pids = job.counters
        counters = {
            "cpu.stat": f"usage_usec {cpu_us}\nuser_usec 9\nnr_periods 40\nnr_throttled {periods}\n"
            f"throttled_usec {throttled_us}",
            "memory.events": f"oom 1\noom_kill {kills}\noom_group_kill 0",
            "io.stat": f"254:0 rbytes={read} wbytes={written} rios=1 wios=1",
            "memory.current": f"{current}",
            "memory.peak": f"{peak}",
            "pids.current": f"{pids}",
        }
        files = {**LIMIT_FILES, **counters, **dict(job.limits.kernel_files())}
        lines = [text for name, text in job.limits.kernel_files() if name == "io.max"]
        return "\n".join(map(_whole_line, lines)) if name == "io.max" else files[name]

    def _passed[Kind: Message](self, message: Kind) -> Kind:
        """Return a message as it is after the relay."""
        copied = type(message).FromString(message.SerializeToString())
        self._tap.message(copied)
        return copied


def _whole_line(line: str) -> str:
    """Return a line of `io.max` as the kernel shows it, with the rates that are not limited."""
    device, *rates = line.split()
    given = dict(rate.split("=") for rate in rates)
    return " ".join([device, *(f"{key}={given.get(key, 'max')}" for key in RATES)])


class ModelTransport(CanonicalTransport):
    """Connects to a model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def connect(self, address: str, files: CertFiles, options: object = ()) -> Connection:
        del address, files, options
        return Connection(cast("Any", self._model), lambda: None)


def verdicts(check: Check, tap: Tap) -> set[Verdict]:
    """Run a check on a model, and return the verdicts of its findings."""
    model, recorder = Model(tap), Recorder()
    files = CertFiles(Path("ca"), Path("cert"), Path("key"))
    target: Any = SimpleNamespace(
        host=model,
        identities=SimpleNamespace(files=lambda _: files),
        dialect=dataclasses.replace(CANONICAL, transport=ModelTransport(model)),
    )
    server: Any = SimpleNamespace(address="model:1")
    stage = Stage(
        target, server, recorder, scale=Scale.FULL, seed="1", has=lambda need: need is Need.DISK
    )
    try:
        check.run(stage)
    except UnmetError as error:
        return {error.finding.verdict}
    return {finding.verdict for finding in check.judge(recorder.history())}


@pytest.mark.parametrize("check", [REPORTED, USAGE], ids=lambda check: check.name)
def test_model_keeps_every_promise(check: Check) -> None:
    assert verdicts(check, Tap()) == {Verdict.PASS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_noticed_unless_it_is_equivalent(mutant: FieldMutant) -> None:
    found = [verdicts(check, MutantTap(mutant)) for check in (REPORTED, USAGE)]
    noticed = any(Verdict.FAIL in each for each in found)
    assert noticed is not (bool(reason_for(mutant.name)) or mutant.name in UNSEEN_HERE)


def machine_stage() -> Stage:
    """Return a stage whose server's machine is this one."""

    def run(script: str, _: float) -> Done:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return cast("Stage", SimpleNamespace(host=SimpleNamespace(run=run)))


def test_files_are_read_whole_or_are_empty_or_missing(tmp_path: Path) -> None:
    (tmp_path / "whole").write_text("a b\n c\\n\n")
    (tmp_path / "unended").write_text("first\nlast")
    (tmp_path / "empty").touch()
    (tmp_path / "unreadable").mkdir()
    names = ("whole", "unended", "unreadable", "empty", "missing")
    found = read_files(machine_stage(), str(tmp_path), *names)
    assert found == dict(zip(names, ("a b\n c\\n", "first\nlast", "", "", None), strict=True))


@pytest.mark.parametrize("content", ["", None])
def test_limit_whose_file_has_no_content_is_none(content: str | None) -> None:
    files = dict.fromkeys(("cpu.max", "memory.max", "io.weight", "pids.max", "io.max"), content)
    assert limits_of_files(files) == JobLimits(None, None, None, None, ())


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("io_read_bytes", Verdict.FAIL),
        ("io_write_bytes", Verdict.FAIL),
        ("oom_kills", Verdict.FAIL),
        ("cpu_usage_us", Verdict.PASS),
    ],
)
def test_counter_that_the_end_does_not_move_is_as_before_it(name: str, verdict: Verdict) -> None:
    counters = UsageCounters(*WORKED)
    final = dataclasses.replace(counters, **{name: 2 * getattr(counters, name)})
    oom_killed = (False, True, True)
    usage = ReportedUsage(counters, counters, counters, final, oom_killed, uses_disk=True)
    findings = {each.promise: each.verdict for each in USAGE.judge(History([usage]))}
    assert findings.pop(f"{name} is reported after the end, too") is verdict
    assert set(findings.values()) == {Verdict.PASS}
