"""Tails whose start is found by reading the log: a client that has gone pays no more of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.drive.receiver import Receiver, StreamPlan
from harness.host.clock import measured_window, seconds_until
from harness.judge.promises import at_most, floor, in_time
from harness.record.history import History, Observation
from harness.record.terms import OVER
from harness.record.verdict import Finding
from harness.targets.target import RunningServer, Variant

LOG_BYTES: Final = 512 * MIB
LINES: Final = LOG_BYTES // 2  # of yes(1): "y", and the newline
# More lines than the log has, and most of them.
TAILS: Final = {"a huge tail": 1 << 40, "a large tail": LINES * 3 // 4}
# A fast machine searches the large tail in a quarter of a second: these outlast GIVES_UP_S by far.
READERS: Final = 24
GIVES_UP_S: Final = 1.0
WRITTEN_S: Final = 60.0
ADMITTED_S: Final = 5.0
ADMITTED_WHY: Final = "a busy machine"
WINDOW_S: Final = 2.0
CPU_MAX_S: Final = 0.5
CPU_WHY: Final = "what the server does besides; to read the log this often takes four times this"


@dataclass(frozen=True, slots=True)
class GivenUpTails(Observation):
    """Tails whose clients gave up at once, on a server for as many streams.

    Attributes:
        label: which tails.
        log_bytes: of the job's output.
        admitted_after_s: how long until another stream was admitted; None: not in time.
        cpu_s: processor time that the server took from when the clients had gone, in WINDOW_S.
    """

    label: str
    log_bytes: int
    admitted_after_s: float | None
    cpu_s: float


def _cpu_s(stage: Stage, server: RunningServer) -> float:
    """Return how much processor time a server has taken: fields 14 and 15 of proc_pid_stat(5)."""
    script = (
        f"sed 's/.*) //' /proc/{server.pid}/stat | "
        "awk -v hz=$(getconf CLK_TCK) '{print ($12 + $13) / hz}'"
    )
    return float(stage.host.run(script).require("the server's processor time"))


def run_tail_cancel(stage: Stage) -> None:
    """Request tails of a large log from several clients that give up at once, of each size."""
    with (
        stage.fresh_server(Variant(max_streams=READERS)) as server,
        stage.client(server=server) as client,
        ThreadPoolExecutor(READERS) as pool,
    ):
        job_id = client.must_start("sh", ["-c", f"yes | head -c {LOG_BYTES}"])
        seconds_until(lambda: client.must_query(job_id).status in OVER, WRITTEN_S)
        log_bytes = client.must_query(job_id).log_size_bytes

        def is_admitted() -> bool:
            plan = StreamPlan(tail_bytes=1, no_follow=True)
            return client.stream(job_id, plan, label="another").code == "OK"

        for label, lines in TAILS.items():
            plan = StreamPlan(
                tail_lines=lines, timeout_s=GIVES_UP_S, may_time_out=True, stop_after_bytes=1
            )
            readers = [client.receiver(job_id, plan, label=label) for _ in range(READERS)]
            list(pool.map(Receiver.run, readers))
            before_s, gone_s = _cpu_s(stage, server), stage.recorder.now_s()
            admitted_s = seconds_until(is_admitted, ADMITTED_S)
            measured_window(max(0.0, WINDOW_S - (stage.recorder.now_s() - gone_s)))
            cpu_s = _cpu_s(stage, server) - before_s
            stage.record(GivenUpTails(label, log_bytes, admitted_s, cpu_s))


def judge_tail_cancel(history: History) -> Iterator[Finding]:
    """The slots are free at once, and the server has nothing left to do."""
    seen = history.all(GivenUpTails)
    yield floor("sizes of tails", len(seen), len(TAILS))
    for tails in seen:
        yield floor("bytes of output", tails.log_bytes, LOG_BYTES)
        if tails.log_bytes < LOG_BYTES:
            continue  # the server was still reading it
        admitted_s = tails.admitted_after_s
        promise = f"a stream is admitted after clients gave up {tails.label}"
        yield in_time(promise, admitted_s, ADMITTED_S, ADMITTED_WHY)
        promise = f"seconds of processor time after clients gave up {tails.label}"
        yield at_most(promise, tails.cpu_s, CPU_MAX_S, CPU_WHY)


TAIL_CANCEL: Final = Check(
    "streams.tail-cancel",
    "A large tail whose client has gone costs no more processor time, and no slot.",
    run_tail_cancel,
    judge_tail_cancel,
    needs=frozenset(
        {Need.LAUNCH, Need.HOST, Need.STREAM_CAP, Need.OFFSETS, Need.LOG_SIZES, Need.NATIVE}
    ),
    cites=("104",),
    alone=True,
)

CHECKS: Final = (TAIL_CANCEL,)
