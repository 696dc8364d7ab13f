"""The machine's clock is set an hour forward and back: what is measured in seconds goes on.

Only certificates are judged by the clock, since their validity is a matter of date. At each step a
stop waits for its grace period, an ended job for its time to live, output is held back for its
flush interval, and a call has a deadline. Afterwards the clock has its old distance from the time
since boot. Not covered: a clock that runs fast or slow; that a stream looks at the clock also
without a deny list, once a minute, which a unit test holds.
"""

import datetime as dt
import itertools
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.identity.host_files import HostFiles, make_host_files
from harness.drive.certificates import Authority, serial_number
from harness.drive.client import Client
from harness.drive.identities import client_spec
from harness.drive.receiver import StreamPlan
from harness.host.clock import seconds_until
from harness.judge.promises import answered, assumed, at_least, at_most_s, equal, in_time
from harness.record.history import History, Observation
from harness.record.scopes import separately
from harness.record.verdict import Finding, UnsupportedError
from harness.targets.target import RunningServer, Variant

# The steps, one after the other: an hour forward, and back again.
STEPS: Final = {"forward": 3600.0, "back": 0.0}
STEP_ERROR_S: Final = 1.0
CERTIFICATE_LIFE: Final = dt.timedelta(minutes=30)

# Of a grace period, a time to live and a deadline. A step takes a second on an emulated processor,
# and must fall between their begin and their end.
SPAN_S: Final = 4.0
SMALL_SPAN_S: Final = 12.0
FLUSH_S: Final = 0.5
LATE_S: Final = 5.0
LATE_WHY: Final = "for the timers of a busy server, and ours"
EARLY_S: Final = 0.2
EARLY_WHY: Final = "a call's start and end are seen by its client"
GAP_S: Final = 5.0
GAP_WHY: Final = "a line each 0.2 s, held back for 0.5 s; a busy machine is late"
ENDS_WITHIN_S: Final = 5.0
ENDS_WHY: Final = "with a deny list a stream's caller is checked each 0.75 s"
STREAM_TIMEOUT_S: Final = 110.0
UNAUTHENTICATED: Final = "UNAUTHENTICATED"
DENIED: Final = "denied"

# Sets the clock to a distance from the time since boot, and prints the distance of before.
_SET: Final = """
import sys, time
clock, boot = time.CLOCK_REALTIME, time.CLOCK_BOOTTIME
before = time.clock_gettime(clock) - time.clock_gettime(boot)
if len(sys.argv) > 1:
    try:
        time.clock_settime(clock, time.clock_gettime(boot) + float(sys.argv[1]))
    except PermissionError:
        sys.exit(3)
print(before)
"""
_NO_RIGHT: Final = 3
_STUBBORN: Final = (
    "trap 'echo TERM' TERM; echo ready; t=0; while [ $((t+=1)) -lt 1500 ]; do sleep 0.2; done"
)
_STUBBORN_BYTES: Final = len("ready\nTERM\n")
_TICKS: Final = "t=0; while [ $((t+=1)) -lt 1500 ]; do echo tick; sleep 0.2; done"


@dataclass(frozen=True, slots=True)
class ClockStep(Observation):
    """A step of the clock, and what waited meanwhile. Times are those of the records.

    Attributes:
        name: of the step; labels of its calls begin with it.
        wanted_s, seen_s: the clock's distance from where it was at first.
        span_s: of the grace period, the time to live and the deadline.
        began_s, done_s: when the step began and was done.
        forgotten_after_s: from an ended job's stream's end, just before the step, until the job was
            unknown; None: not in time.
    """

    name: str
    wanted_s: float
    seen_s: float
    span_s: float
    began_s: float
    done_s: float
    forgotten_after_s: float | None


class _Clock:
    """The clock of the server's machine."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._first_s = self._run()

    def step_to(self, seconds: float) -> float:
        """Set it to so far from where it was at first; return the distance that it then has."""
        self._run(f"{self._first_s + seconds:.6f}")
        return self._run() - self._first_s

    def _run(self, *words: str) -> float:
        done = self._stage.host.run(f"python3 -I -S -c '{_SET}' {' '.join(words)}")
        if done.exit_code == _NO_RIGHT:
            raise UnsupportedError("the right to set its machine's clock")
        return float(done.require("the clock of the server's machine"))


@contextmanager
def _clock(stage: Stage) -> Iterator[_Clock]:
    """Yield the clock, which is set right when the context ends."""
    clock = _Clock(stage)
    try:
        yield clock
    finally:
        clock.step_to(0.0)


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a step works with."""

    stage: Stage
    server: RunningServer
    admin: Client
    files: HostFiles
    clock: _Clock
    span_s: float


def run_clock_steps(stage: Stage) -> None:
    """Step the clock while a server is busy, and look at what it does."""
    span_s = stage.pick(full=SPAN_S, small=SMALL_SPAN_S)
    with (
        tempfile.TemporaryDirectory() as directory,
        make_host_files(stage) as files,
        _clock(stage) as clock,
        ThreadPoolExecutor(2) as pool,
    ):
        files.put(DENIED, "# none\n")
        variant = Variant(
            job_ttl_s=span_s, flush_interval_s=FLUSH_S, deny_serials=files.path(DENIED)
        )
        identities = stage.target.identities
        spec = client_spec(identities.scheme, "user", ends=CERTIFICATE_LIFE)
        short = Authority.load(identities.directory).write(Path(directory), "short", spec)
        with (
            stage.fresh_server(variant) as server,
            stage.client(server=server) as admin,
            stage.client_of(short, server) as user,
        ):
            ticking = admin.must_start("sh", ["-c", _TICKS])
            plan = StreamPlan(timeout_s=STREAM_TIMEOUT_S, may_time_out=True)
            ticks = admin.receiver(ticking, plan, label="ticks")
            expiring = user.receiver(ticking, plan, label="expiring")
            streaming = [pool.submit(each.run) for each in (ticks, expiring)]
            for each in (ticks, expiring):
                each.first_byte.wait(stage.join_timeout_s)
            scene = _Scene(stage, server, admin, files, clock, span_s)
            for name, seconds in STEPS.items():
                _step(scene, name, seconds)
                if seconds:
                    expiring.ended.wait(stage.patience(ENDS_WITHIN_S))
                user.query(ticking, label=f"{name}: short certificate")
                _deny(scene, ticking, name)
            admin.stop(ticking, label="stop the ticks")
            expiring.cancel()
            for one in streaming:
                one.result()


def _step(scene: _Scene, name: str, seconds: float) -> None:
    """Step the clock while a stop, a deadline and an ended job's time to live run."""
    stage, admin, now_s = scene.stage, scene.admin, scene.stage.recorder.now_s
    admin.output(admin.must_start("echo", ["ended"]), label=f"{name}: first")  # warms up
    stubborn = [admin.must_start("sh", ["-c", _STUBBORN]) for _ in range(2)]
    for job_id in stubborn:  # SIGTERM must not come before its trap
        admin.stream(job_id, StreamPlan(stop_after_bytes=1), label=f"{name}: ready")
    with ThreadPoolExecutor(2) as pool:
        stop = pool.submit(
            admin.stop, stubborn[0], label=f"{name}: stop", grace_s=scene.span_s, timeout_s=100
        )
        late = pool.submit(
            admin.stop, stubborn[1], label=f"{name}: deadline", grace_s=100, timeout_s=scene.span_s
        )
        for job_id in stubborn:
            plan = StreamPlan(stop_after_bytes=_STUBBORN_BYTES)
            admin.stream(job_id, plan, label=f"{name}: SIGTERM")
        ended = admin.must_start("true", label=f"{name}: start")
        admin.output(ended, label=f"{name}: its end")
        ended_s = now_s()
        seen_s = scene.clock.step_to(seconds)
        done_s = now_s()
        admin.query(ended, label=f"{name}: known")
        with stage.client(server=scene.server) as another:
            another.query(stubborn[0], label=f"{name}: new connection")
        forgotten = seconds_until(
            lambda: admin.query(ended, label="look").call.code == "NOT_FOUND",
            stage.patience(scene.span_s + LATE_S),
        )
        after_s = None if forgotten is None else now_s() - ended_s
        for call in (stop, late):
            call.result()
    admin.stop(stubborn[1], label=f"{name}: end", grace_s=0)
    stage.record(ClockStep(name, seconds, seen_s, scene.span_s, ended_s, done_s, after_s))


def _deny(scene: _Scene, job_id: str, name: str) -> None:
    """Deny another client's certificate, and admit it again."""
    serial = serial_number(scene.stage.target.identities.files("user"))
    with scene.stage.client("user", server=scene.server) as client:
        scene.files.put(DENIED, f"{serial}\n")
        client.query(job_id, label=f"{name}: denied")
        scene.files.put(DENIED, "# none\n")
        client.query(job_id, label=f"{name}: no longer denied")


def judge_clock_steps(history: History) -> Iterator[Finding]:
    """Seconds are seconds, and certificates go by the clock."""
    steps = history.all(ClockStep)
    yield assumed("the clock was stepped", true=len(steps) == len(STEPS), got=len(steps))
    yield from separately(_judge_step(history, each) for each in steps)
    yield from _judge_ticks(history)
    yield from _judge_certificates(history, steps)


def _judge_step(history: History, step: ClockStep) -> Iterator[Finding]:
    name, span_s = step.name, step.span_s
    error_s = abs(step.seen_s - step.wanted_s)
    stop, late = history.call(f"{name}: stop"), history.call(f"{name}: deadline")
    first_s = min(stop.started_s, late.started_s)
    was_set = error_s <= STEP_ERROR_S and step.done_s - first_s < span_s
    got = f"{step.seen_s:.1f} s, {step.done_s - first_s:.1f} s after the first wait began"
    yield assumed(f"{name}: the clock is set while all waits last", true=was_set, got=got)
    if not was_set:
        return
    took_s = stop.ended_s - stop.started_s
    yield answered(f"{name}: a stop ends after its grace", stop)
    yield at_least(f"{name}: seconds that it takes", took_s, span_s - EARLY_S, EARLY_WHY)
    yield at_most_s(f"{name}: seconds that it takes", took_s, span_s + LATE_S, LATE_WHY)
    yield equal(f"{name}: a call's deadline passes", late.code, "DEADLINE_EXCEEDED")
    waited_s = late.ended_s - late.started_s
    yield at_least(f"{name}: seconds until then", waited_s, span_s - EARLY_S, EARLY_WHY)
    yield at_most_s(f"{name}: seconds until then", waited_s, span_s + LATE_S, LATE_WHY)
    start, known = history.call(f"{name}: start"), history.call(f"{name}: known")
    early = known.ended_s - start.started_s < span_s
    yield assumed(f"{name}: the ended job is queried in its time", true=early, got=known.ended_s)
    if early:
        yield answered(f"{name}: an ended job is known for its time to live", known)
    promise = f"{name}: and forgotten then"
    yield in_time(promise, step.forgotten_after_s, span_s + LATE_S, LATE_WHY)
    yield answered(f"{name}: new connections are accepted", history.call(f"{name}: new connection"))
    denied = history.call(f"{name}: denied")
    yield answered(f"{name}: the deny list is reloaded", denied, UNAUTHENTICATED)
    yield answered(f"{name}: and again", history.call(f"{name}: no longer denied"))


def _judge_ticks(history: History) -> Iterator[Finding]:
    stream = history.stream("ticks")
    times_s = [stream.started_s, *(at_s for at_s, _ in stream.timeline), stream.ended_s]
    gap_s = max(later - earlier for earlier, later in itertools.pairwise(times_s))
    yield equal("a stream goes on through the steps", stream.code, "OK")
    yield at_most_s("seconds without a byte of its job's lines", gap_s, GAP_S, GAP_WHY)


def _judge_certificates(history: History, steps: list[ClockStep]) -> Iterator[Finding]:
    """A certificate is valid while the clock says so."""
    stream = history.stream("expiring")
    began_s, done_s = steps[0].began_s, steps[0].done_s
    promise = "a stream ends when the clock passes its certificate's end"
    yield equal(promise, stream.code, UNAUTHENTICATED)
    yield at_least("seconds from the step to its end", stream.ended_s - began_s, 0.0)
    late_s = stream.ended_s - done_s
    yield at_most_s("seconds from the step to its end", late_s, ENDS_WITHIN_S, ENDS_WHY)
    refused, valid = (history.call(f"{name}: short certificate") for name in STEPS)
    yield answered("the certificate is refused then", refused, UNAUTHENTICATED, "UNAVAILABLE")
    yield answered("it is valid again when the clock is back", valid)


CLOCK_STEPS: Final = Check(
    "lifecycle.clock-steps",
    "The clock is set an hour forward and back: grace periods, deadlines, times to live and "
    "streams keep their seconds; certificates are judged by the clock.",
    run_clock_steps,
    judge_clock_steps,
    needs=frozenset(
        {
            Need.GUEST, Need.HOST, Need.LAUNCH, Need.IDENTITIES, Need.PYTHON, Need.GRACE,
            Need.JOB_TTL, Need.DENY_LIST,
        }
    ),
    cites=("122",),
    time_limit_s=150,
    alone=True,
    ours=True,
)  # fmt: skip

CHECKS: Final = (CLOCK_STEPS,)
