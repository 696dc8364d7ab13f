"""A server under lasting work: memory, descriptors and threads must not grow with each round.

Each round starts jobs, streams, stops and cancels over its own connection, resumes a stream over
another, and deletes its jobs; at times the server's certificate is renewed, and a client's denied
while it streams. The server is measured once the round's connections are gone. What is judged is
the slope, not the level. By design a finished job stays in the server's memory, with its record and
its output, until it is deleted: these jobs write little, and what they may leave is allowed per
job.

A minute shows no slower leaks; `python -m harness soak` works for hours. However long it takes, all
rounds together may leave as much as those of the short run. Of further rounds only the records that
show a fault are kept.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, MIB
from harness.checks.identity.host_files import make_host_files
from harness.checks.streams.soak_work import (
    DENIED,
    JOBS,
    LOG_BYTES,
    NO_ONE,
    REFUSED,
    ROUND_BYTES,
    Soak,
    can_deny,
    start_writers,
)
from harness.host.clock import Deadline, seconds_until
from harness.judge.promises import at_most, equal, floor
from harness.judge.streams import all_exact
from harness.record.history import (
    History,
    Observation,
    UsageCurve,
)
from harness.record.verdict import Finding
from harness.targets.launching import CGROUP_MOUNT
from harness.targets.target import RunningServer, Variant

# The first rounds fill pools and allocators; they are not judged.
WARM_UP_ROUNDS: Final = 10
ROUNDS: Final = 40
REST_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ServerResources:
    """What a server has.

    Attributes:
        at_s: when, on the run's own clock.
        memory_bytes: anonymous memory, which is the server's alone.
        kept_output_bytes: in its memfds.
        descriptors, threads: of its process.
        children: of all its threads, zombies included.
        sockets: how many of the descriptors are sockets.
        cgroups: below its root; 0 if it has none.
    """

    at_s: float
    memory_bytes: int
    kept_output_bytes: int
    descriptors: int
    threads: int
    children: int
    sockets: int
    cgroups: int = 0


@dataclass(frozen=True, slots=True)
class SoakRounds(Observation):
    """The server after each round.

    Attributes:
        after: what it had, once the round's connection was gone.
        sockets_left: sockets still open REST_TIMEOUT_S after the last round; if there are any, the
            soak ended with that round.
        jobs: how many were started.
        dropped_bytes: of streams whose records were not kept.
        deletes: whether ended jobs were deleted.
        rotations, rotations_shown: renewed certificates, and those that new connections got.
    """

    after: tuple[ServerResources, ...]
    sockets_left: int
    jobs: int = 0
    dropped_bytes: int = 0
    deletes: bool = False
    rotations: int = 0
    rotations_shown: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """How much of something may remain of each round, and why."""

    what: str
    of: Callable[[ServerResources], int]
    most: float
    why: str


JOB_RECORD_BYTES: Final = 8 * KIB
HEAP_NOISE_BYTES: Final = 64 * KIB
MEMORY_WHY: Final = (
    f"{JOB_RECORD_BYTES // KIB} KiB for each of {JOBS} jobs, which the server remembers, and "
    f"{HEAP_NOISE_BYTES // KIB} KiB for the noise of a heap"
)
KEPT_BYTES: Final = 128 * KIB
KEPT_WHY: Final = "one log is kept, and one is truncated in steps of 1 MiB"
COUNT_SLOPE: Final = 0.25
COUNT_WHY: Final = "one left in four rounds: a pool may still grow once"
BOUNDS: Final = (
    Bound(
        "bytes of memory",
        lambda server: server.memory_bytes,
        JOBS * JOB_RECORD_BYTES + HEAP_NOISE_BYTES,
        MEMORY_WHY,
    ),
    Bound("bytes of kept output", lambda server: server.kept_output_bytes, KEPT_BYTES, KEPT_WHY),
    Bound("descriptors", lambda server: server.descriptors, COUNT_SLOPE, COUNT_WHY),
    Bound("threads", lambda server: server.threads, COUNT_SLOPE, COUNT_WHY),
    Bound("children", lambda server: server.children, COUNT_SLOPE, COUNT_WHY),
    Bound("cgroups", lambda server: server.cgroups, COUNT_SLOPE, COUNT_WHY),
)
LONG_WHY: Final = f"all rounds together may leave as much as {ROUNDS}"
# More than a curve needs; all pairs of many thousand points would take minutes.
POINTS_MAX: Final = 200
NOTE_EACH_S: Final = 60.0


def run_soak(stage: Stage) -> None:
    """Work in rounds, and measure the server after each."""
    after: list[ServerResources] = []
    sockets_left = 0
    with ExitStack() as stack:
        files = stack.enter_context(make_host_files(stage)) if can_deny(stage) else None
        variant = Variant(retention_bytes=LOG_BYTES)
        if files is not None:
            files.put(DENIED, NO_ONE)
            variant = dataclasses.replace(variant, deny_serials=files.path(DENIED))
        own = files.certificates if files is not None else None
        server = stack.enter_context(stage.fresh_server(variant, files=own))
        client = stack.enter_context(stage.client(server=server))
        whole, flow = start_writers(stage, client)
        soak = Soak(stage, server, files, whole=whole, flow=flow, keeps=WARM_UP_ROUNDS + ROUNDS)
        at_first = _measure(stage, server).sockets

        def sockets_added() -> int:
            return _measure(stage, server).sockets - at_first

        for number in _rounds(stage, soak, after):
            soak.work(number)
            timeout_s = stage.patience(REST_TIMEOUT_S)
            if seconds_until(lambda: sockets_added() <= 0, timeout_s) is None:
                sockets_left = max(1, sockets_added())  # one may close just now
                break
            after.append(_measure(stage, server))
        stage.record(
            SoakRounds(
                tuple(after), sockets_left, soak.jobs, soak.dropped_bytes, soak.deletes,
                soak.rotations, soak.rotations_shown,
            )
        )  # fmt: skip
        client.must_stop(soak.flow.job_id, label="stop the flow")
    samples = tuple((each.at_s, each.memory_bytes) for each in after)
    title = "Memory of a server after each round of work"
    stage.record(UsageCurve(title, "bytes", None, samples))


def _rounds(stage: Stage, soak: Soak, after: Sequence[ServerResources]) -> Iterator[int]:
    """Yield the numbers of the rounds; in a long run, show a line each minute."""
    extent = stage.extent
    count = WARM_UP_ROUNDS + (extent.rounds or ROUNDS)
    whole, minute = Deadline(extent.lasting_s), Deadline(NOTE_EACH_S)
    started_s = stage.recorder.now_s()
    for number in itertools.count():
        if whole.passed() if extent.lasting_s else number >= count:
            return
        if minute.passed() and (extent.lasting_s or extent.rounds):
            passed_s = stage.recorder.now_s() - started_s
            left_s = whole.left_s() if extent.lasting_s else passed_s * (count / number - 1)
            stage.note(_note(passed_s, left_s, soak, after))
            minute = Deadline(NOTE_EACH_S)
        yield number


def _note(passed_s: float, left_s: float, soak: Soak, after: Sequence[ServerResources]) -> str:
    now = after[-1]
    return (
        f"soak: {passed_s / 60:.0f} min, about {left_s / 60:.0f} min left; {len(after)} rounds, "
        f"{soak.jobs} jobs ({soak.jobs / passed_s * 3600:.0f} an hour); "
        f"memory {now.memory_bytes / MIB:.1f} MiB, output {now.kept_output_bytes / MIB:.1f} MiB, "
        f"{now.descriptors} descriptors, {now.threads} threads, {now.cgroups} cgroups"
    )


def _measure(stage: Stage, server: RunningServer) -> ServerResources:
    process = f"/proc/{server.pid}"
    script = (
        f"awk '/^RssAnon/ {{print $2 * 1024}}' {process}/status; "
        f"find {process}/fd -lname '/memfd:*' -exec stat -L -c %b {{}} + | awk '{{s += $1}} "
        "END {print s * 512}'; "
        f"ls -l {process}/fd | grep -c -e '->'; ls {process}/task | wc -l; "
        f"cat {process}/task/*/children | wc -w; ls -l {process}/fd | grep -c socket:; "
        # The server holds its root open; the roots of its jobs' files sort behind it.
        f"root=$(find {process}/fd -lname '{CGROUP_MOUNT}/*' -printf '%l\\n' | sort | head -n 1); "
        '[ -z "$root" ] && echo 0 || find "$root" -mindepth 1 -type d | wc -l'
    )
    numbers = [int(float(word)) for word in stage.host.run(script).stdout.split()]
    return ServerResources(stage.recorder.now_s(), *numbers)


def slope(values: Sequence[float]) -> float:
    """Return by how much a series grows in a step: the median over all pairs (Theil and Sen).

    A few outliers do not change it.
    """
    points = list(enumerate(values))
    return statistics.median(
        (after - before) / (later - earlier)
        for (earlier, before), (later, after) in itertools.combinations(points, 2)
    )


def growth(values: Sequence[float]) -> float:
    """Return by how much a series grows in a step in both halves: one jump is in one half only."""
    size = -(-len(values) // POINTS_MAX)
    last = len(values) - len(values) % size
    points = [statistics.median(values[at : at + size]) for at in range(0, last, size)]
    middle = len(points) // 2
    return min(slope(points[:middle]), slope(points[middle:])) / size


def judge_soak(history: History) -> Iterator[Finding]:
    """The server does not grow, and all streams were right."""
    seen = history.the(SoakRounds)
    promise = f"sockets still open {REST_TIMEOUT_S:g} s after a round's clients have left"
    yield equal(promise, seen.sockets_left, 0)
    yield all_exact("whole streams are whole", history.streams("whole"), LOG_BYTES)
    resumed = history.streams("resumed")
    yield all_exact("resumed streams end with their output's last byte", resumed, LOG_BYTES, None)
    denied = {each.code for each in history.streams(DENIED)} - {REFUSED}
    yield equal("a denied client's stream ends otherwise", sorted(denied), [])
    promise = "renewed certificates that new connections get"
    yield equal(promise, seen.rotations_shown, seen.rotations)
    failed = [f"{each.rpc}: {each.code}" for each in history.calls() if each.code != "OK"]
    yield equal("calls that fail", failed[:5], [])
    for label in ("half", "interrupted", "flow", "left", "stopped", DENIED):
        wrong = [each for each in history.streams(label) if each.wrong_at is not None or each.gap]
        yield equal(f"no byte of the streams {label!r} is wrong", len(wrong), 0)
    if seen.sockets_left:
        return
    judged = seen.after[WARM_UP_ROUNDS:]
    yield floor("rounds after the first ones", len(judged), ROUNDS)
    streamed = sum(each.received_bytes for each in history.streams()) + seen.dropped_bytes
    yield floor("bytes streamed", streamed, 0.9 * len(judged) * ROUND_BYTES)
    if len(judged) < ROUNDS:
        return
    for bound in BOUNDS:
        series = [bound.of(server) for server in judged]
        most, why = bound.most, bound.why
        if len(judged) > ROUNDS and (seen.deletes or bound.why != MEMORY_WHY):
            most, why = most * ROUNDS / len(judged), f"{why}; {LONG_WHY}"
        yield at_most(f"{bound.what} that each round adds", growth(series), most, why)


SOAK: Final = Check(
    "streams.soak",
    "Round after round of jobs, streams, stops and cancels: memory, descriptors and threads "
    "do not grow.",
    run_soak,
    judge_soak,
    needs=frozenset(
        {Need.LAUNCH, Need.HOST, Need.PYTHON, Need.RETENTION, Need.OFFSETS, Need.NATIVE}
    ),
    cites=("83",),
    time_limit_s=300,
    round_limit_s=15,
    alone=True,
)

CHECKS: Final = (SOAK,)
