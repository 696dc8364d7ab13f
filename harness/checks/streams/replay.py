"""Where a stream starts: late joiners, replays after the job's end, offsets and tails."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import WriterJob, new_gate, open_gate, open_gate_at, start_writer
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

# Output that grows: after each piece, and after the job's end, it is streamed from many starts. The
# first piece ends within a line.
PIECES: Final = ("line 1\nline 2\nli", "ne 3\n\nline 5\n")
AT_ONCE_S: Final = 4.0
AT_ONCE_WHY: Final = "the quickest of several, on a machine that may be busy"
ENDED: Final = "ended"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream is to start: the request's field, and its value."""

    field: str
    value: int

    def of(self, text: str) -> str:
        """Return what a stream of a text has from here on."""
        if self.field == "from_offset":
            return text[self.value :]
        parts = text.splitlines(keepends=True) if self.field == "tail_lines" else text
        return "".join(parts[max(0, len(parts) - self.value) :])


def _starts(text: str) -> tuple[Start, ...]:
    """Return starts in a text: nothing, little, all but a little, all, and more than there is."""
    size, lines = len(text), len(text.splitlines())
    values = {
        "tail_lines": (0, 1, 2, lines - 1, lines, lines + 1, size + 1),
        "tail_bytes": (0, 1, 4, size - 1, size, size + 1),
        "from_offset": (0, 1, size // 2, size - 1, size),
    }
    return tuple(Start(field, value) for field in values for value in sorted(set(values[field])))


def _looks() -> Iterator[tuple[str, str, Start]]:
    """Yield the label, the output so far, and the start of each stream."""
    text = ""
    for number, piece in enumerate(PIECES, 1):
        text += piece
        for start in _starts(text):
            yield f"{number}: {start.field}={start.value}", text, start
    for start in _starts(text):
        yield f"{ENDED}: {start.field}={start.value}", text, start


def run_tails(stage: Stage) -> None:
    """Stream a job from many starts without following it, as it writes more; then once more."""
    gate, (first, second) = new_gate(), PIECES
    script = (
        f"printf %s '{first}'; mkfifo {gate}; read _ < {gate}; rm {gate}; "
        f"printf %s '{second}'; exec sleep 100"
    )
    with stage.client() as client:
        job_id, written_bytes = client.must_start("sh", ["-c", script]), 0
        stopped = False
        for label, text, start in _looks():
            ended = label.startswith(ENDED)
            if len(text) > written_bytes:
                if written_bytes:
                    open_gate_at(client, gate)
                written_bytes = len(text)
                client.stream(job_id, StreamPlan(stop_after_bytes=written_bytes), label="written")
            if ended and not stopped:
                client.stop(job_id)
                stopped = True
            plan = StreamPlan(keep_bytes=100, no_follow=not ended)
            value = {start.field: start.value}
            client.stream(job_id, dataclasses.replace(plan, **value), label=label)  # type: ignore[arg-type]


def judge_tails(history: History) -> Iterator[Finding]:
    """Each stream has exactly what follows its start, its offset, and an end."""
    streams = {label: (history.stream(label), start.of(text)) for label, text, start in _looks()}
    wrong = [f"{k}: {s.text!r}, not {want!r}" for k, (s, want) in streams.items() if s.text != want]
    yield equal("a stream has just the output from its start on", wrong[:5], [])
    starts = {label: len(text) - len(start.of(text)) for label, text, start in _looks()}
    moved = [
        f"{label}: {stream.start_offset}" if stream.offsets_reported else f"{label}: no offset"
        for label, (stream, want) in streams.items()
        if want and (stream.start_offset, stream.offsets_reported) != (starts[label], True)
    ]
    yield equal("its output has its offset, from the first message on", moved[:5], [])
    gaps = [label for label, (stream, _) in streams.items() if stream.missed_bytes or stream.gap]
    yield equal("and misses nothing", gaps, [])
    codes = {label: stream.code for label, (stream, _) in streams.items() if stream.code != "OK"}
    yield equal("a stream that does not follow ends although the job is running", codes, {})
    quickest_s = min(stream.ended_s - stream.started_s for stream, _ in streams.values())
    yield at_most_s("seconds until logged output has arrived", quickest_s, AT_ONCE_S, AT_ONCE_WHY)


TAILS: Final = Check(
    "streams.tails",
    "A stream can start at any offset or with the last lines or bytes, and end without following.",
    run_tails,
    judge_tails,
    needs=frozenset({Need.OFFSETS}),
    cites=("R-STREAM-10",),
)

CHECKS: Final = (LATE_JOINER, AFTER_END, RESUME, TAILS)
