"""Where a stream starts: late joiners, replays after the job's end, offsets and tails."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WriterJob, open_gate, start_writer
from harness.checks.streams.plans import BURSTS, PYTHON, WITH_OFFSETS
from harness.drive.client import message_of
from harness.drive.receiver import StreamPlan
from harness.judge.promises import at_most_s, equal, holds
from harness.judge.streams import all_exact
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding
from jobworker.v1 import jobworker_pb2 as pb


def run_late_joiner(stage: Stage) -> None:
    """Let a second reader join after the first output and before the rest."""
    with stage.client() as client:
        writer = start_writer(stage, client, BURSTS, gated=True)
        plan = StreamPlan(pattern=writer.pattern)
        with ThreadPoolExecutor(2) as pool:
            early, late = (
                client.receiver(writer.job_id, plan, label=label) for label in ("early", "late")
            )
            first = pool.submit(early.run)
            early.first_byte.wait(stage.join_timeout_s)
            second = pool.submit(late.run)
            late.first_byte.wait(stage.join_timeout_s)
            open_gate(client, writer)
            first.result()
            second.result()


def judge_late_joiner(history: History) -> Iterator[Finding]:
    """Both have everything, and the late one had the start before the rest was written."""
    total = history.the(WriterJob).total_bytes
    late = history.stream("late")
    yield equal("a late joiner starts with the first byte that was logged", late.start_offset, 0)
    yield all_exact("early and late reader get every byte once", history.streams(), total)
    gate = history.call("open the gate")
    first_byte_s = late.first_byte_s if late.first_byte_s is not None else late.ended_s
    yield at_most_s(
        "logged output arrives at once, not with the next output (seconds after the gate opened)",
        first_byte_s - gate.started_s,
        0,
    )


LATE_JOINER: Final = Check(
    "streams.late-joiner",
    "A reader that joins late starts with everything logged so far, at once, and follows live.",
    run_late_joiner,
    judge_late_joiner,
    needs=PYTHON,
    cites=("64", "R-STREAM-1"),
)


def run_after_end(stage: Stage) -> None:
    """Stream a job live, and twice more after its end."""
    with stage.client() as client:
        writer = start_writer(stage, client, BURSTS)
        plan = StreamPlan(pattern=writer.pattern)
        client.stream(writer.job_id, plan, label="live")
        client.must_query(writer.job_id, label="ended")
        for number in range(2):
            client.stream(writer.job_id, plan, label=f"replay {number}")


def judge_after_end(history: History) -> Iterator[Finding]:
    """Each replay equals the live stream."""
    total = history.the(WriterJob).total_bytes
    status = message_of(history.call("ended"), pb.QueryJobResponse).status
    kept = terms_of(history).is_status(status, "exited")
    yield holds("the job has ended when its stream has", kept=kept, got=status, want="exited")
    yield all_exact("a stream of an ended job replays all of it", history.streams(), total)


AFTER_END: Final = Check(
    "streams.after-end",
    "A stream of a job that has ended replays all of its output.",
    run_after_end,
    judge_after_end,
    needs=PYTHON,
    cites=("65", "R-STREAM-1"),
)


@dataclass(frozen=True, slots=True)
class RequestedOffsets(Observation):
    """The offsets from which an ended job was streamed; the stream's label is `from OFFSET`."""

    offsets: tuple[int, ...]


def run_resume(stage: Stage) -> None:
    """Stream an ended job from several offsets, from its end, and from beyond its end."""
    with stage.client() as client:
        writer = start_writer(stage, client, BURSTS)
        total = writer.total_bytes
        client.stream(writer.job_id, label="whole")
        offsets = {1, 4096, 65_537, total - 1, stage.random.randrange(total), total}
        stage.record(RequestedOffsets(tuple(sorted(offsets))))
        for offset in sorted(offsets):
            plan = StreamPlan(pattern=writer.pattern, from_offset=offset)
            client.stream(writer.job_id, plan, label=f"from {offset}")
        beyond = StreamPlan(from_offset=total + 1)
        client.stream(writer.job_id, beyond, label="beyond")


def judge_resume(history: History) -> Iterator[Finding]:
    """Each stream starts at the requested offset and has the rest."""
    total = history.the(WriterJob).total_bytes
    offsets = history.the(RequestedOffsets).offsets
    streams = [history.stream(f"from {offset}") for offset in offsets]
    starts = tuple(stream.start_offset for stream in streams)
    yield equal("a stream starts at the requested offset", starts, offsets)
    silent = [s.label for s in streams if s.received_bytes and not s.offsets_reported]
    yield equal("output has its offset", silent, [])
    yield all_exact("a resumed stream has the rest, and nothing else", streams, total, None)
    code = history.stream("beyond").code
    yield equal("an offset beyond the end is rejected", code, "OUT_OF_RANGE")


RESUME: Final = Check(
    "streams.resume",
    "A stream can be resumed at any offset; one beyond the end is rejected.",
    run_resume,
    judge_resume,
    needs=WITH_OFFSETS,
    cites=("66", "R-STREAM-10"),
)

LINES: Final = "".join(f"line {number}\n" for number in range(1, 6))
AT_ONCE_S: Final = 4.0
AT_ONCE_WHY: Final = "the quickest of several, on a machine that may be busy"
# Each tail, and what it must contain.
TAIL_PLANS: Final = {
    "all": (StreamPlan(no_follow=True, keep_bytes=100), LINES),
    "2 lines": (StreamPlan(tail_lines=2, no_follow=True, keep_bytes=100), "line 4\nline 5\n"),
    "4 bytes": (StreamPlan(tail_bytes=4, no_follow=True, keep_bytes=100), "e 5\n"),
    "0 lines": (StreamPlan(tail_lines=0, no_follow=True, keep_bytes=100), ""),
    "9 lines": (StreamPlan(tail_lines=9, no_follow=True, keep_bytes=100), LINES),
}


def run_tails(stage: Stage) -> None:
    """Stream tails of a running job, without following it."""
    with stage.client() as client:
        job_id = client.must_start("sh", ["-c", f"printf '{LINES}'; exec sleep 100"])
        client.stream(job_id, StreamPlan(stop_after_bytes=len(LINES)), label="written")
        for label, (plan, _) in TAIL_PLANS.items():
            client.stream(job_id, plan, label=label)
        client.stop(job_id)


def judge_tails(history: History) -> Iterator[Finding]:
    """Each tail has exactly the last lines or bytes."""
    for label, (_, text) in TAIL_PLANS.items():
        stream = history.stream(label)
        yield equal(f"a stream of {label} without following has just that", stream.text, text)
        yield equal(f"a stream of {label} ends although the job is running", stream.code, "OK")
    streams = [history.stream(label) for label in TAIL_PLANS]
    quickest_s = min(stream.ended_s - stream.started_s for stream in streams)
    yield at_most_s("seconds until logged output has arrived", quickest_s, AT_ONCE_S, AT_ONCE_WHY)


TAILS: Final = Check(
    "streams.tails",
    "A stream can start with the last lines or bytes, and end without following.",
    run_tails,
    judge_tails,
    needs=frozenset({Need.OFFSETS}),
    cites=("R-STREAM-10",),
)

CHECKS: Final = (LATE_JOINER, AFTER_END, RESUME, TAILS)
