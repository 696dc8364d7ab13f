"""Receives one stream as planned, compares every byte at its offset, and records the stream.

Threads: `run` belongs to one thread; `cancel` may come from any other.
"""

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from harness.dialects.dialect import Stub
from harness.payloads.burst_writer import Pattern
from harness.record.history import Outcome, Stream
from jobworker.v1 import jobworker_pb2 as pb

_TIMELINE_STEP_S: Final = 0.1
_TIMELINE_POINTS_MAX: Final = 400
# Long: a machine may be busy. Short, once a stream has not ended: the check has others to read.
QUIET_S: Final = 5.0
NEXT_QUIET_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """How a reader reads.

    Attributes:
        pattern: what the job writes, to compare every byte with; None: unknown.
        from_offset, tail_bytes, tail_lines, no_follow: as in the API; None and False: absent.
        keep_bytes: how much of the output to keep in the record.
        timeout_s: the deadline of the call; a slow target gets more.
        may_time_out: whether the check expects the deadline; otherwise it is a broken promise.
        stop_after_bytes: cancel when so much was received; None: never.
        bytes_per_s: read at most this fast on average; None: unlimited.
        skip_bytes: count and compare only what comes after so many bytes: how to resume a stream of
            a server that knows no offsets.
    """

    pattern: Pattern | None = None
    from_offset: int | None = None
    tail_bytes: int | None = None
    tail_lines: int | None = None
    no_follow: bool = False
    keep_bytes: int = 0
    timeout_s: float = 20.0
    may_time_out: bool = False
    stop_after_bytes: int | None = None
    bytes_per_s: float | None = None
    skip_bytes: int = 0

    def resumed_at(self, offset: int, *, offsets: bool) -> "StreamPlan":
        """Return a plan for the rest from an offset on, of a server that knows offsets or not."""
        return dataclasses.replace(
            self,
            stop_after_bytes=None,
            from_offset=offset if offsets else None,
            skip_bytes=0 if offsets else offset,
        )

    def request(self, job_id: str) -> pb.StreamLogsRequest:
        """Return the request."""
        return pb.StreamLogsRequest(
            job_id=job_id,
            from_offset=self.from_offset,
            tail_bytes=self.tail_bytes,
            tail_lines=self.tail_lines,
            no_follow=self.no_follow,
        )


def outcome_of(error: grpc.RpcError) -> tuple[Outcome, str, str]:
    """Return how a failed call ended."""
    code: grpc.StatusCode = error.code()
    late = code is grpc.StatusCode.DEADLINE_EXCEEDED
    return Outcome.UNKNOWN if late else Outcome.ERROR, code.name, error.details() or ""


@dataclass(slots=True)
class EndWatch:
    """Lets readers finish although streams do not end; several readers may share one.

    Attributes:
        job_has_ended: asks the server about a job; False if it does not know.
        quiet_s: a stream is cancelled once its job was seen to have ended twice, this far apart,
            and nothing came between. After the first such stream it is short.
    """

    job_has_ended: Callable[[str], bool]
    quiet_s: float


class Receiver:
    """One reader of one stream. With a watch, it also finishes when the stream does not end."""

    def __init__(  # noqa: PLR0917 - independent values
        self,
        stub: Stub,
        job_id: str,
        plan: StreamPlan,
        label: str,
        now_s: Callable[[], float],
        record: Callable[[Stream], None],
        on_first_byte: Callable[[], None] | None = None,
        watch: EndWatch | None = None,
    ) -> None:
        self._stub = stub
        self._job_id = job_id
        self._plan = plan
        self._label = label
        self._now_s = now_s
        self._record = record
        self._on_first_byte = on_first_byte
        self._end_watch = watch
        self._gave_up = False
        self._unended = False
        self._call: Any = None
        self._cancelled = threading.Event()
        self.first_byte = threading.Event()  # set at the first byte, and at the end
        self.ended = threading.Event()
        self.received_bytes = 0
        self._largest_message_bytes = 0
        self._digest = hashlib.sha256()
        self._text = bytearray()
        self._start_offset = plan.from_offset or plan.skip_bytes
        self._skip_bytes = plan.skip_bytes
        self._next_offset: int | None = None
        self._offsets_reported = False
        self._missed_bytes = 0
        self._wrong_at: int | None = None
        self._gap = ""
        self._first_byte_s: float | None = None
        self._last_byte_s: float | None = None
        self._timeline: list[tuple[float, int]] = []
        self._timeline_step_s = _TIMELINE_STEP_S

    def run(self) -> Stream:
        """Receive until the stream ends or the plan is done; record and return the stream."""
        started_s = self._now_s()
        outcome, code, detail = Outcome.OK, "OK", ""
        watching = None
        if self._end_watch is not None:
            watching = threading.Thread(target=self._watch, args=(self._end_watch,), daemon=True)
            watching.start()
        try:
            self._call = self._stub.StreamLogs(
                self._plan.request(self._job_id), timeout=self._plan.timeout_s
            )
            if self._cancelled.is_set():
                self._call.cancel()
            for message in self._call:
                self._take(message)
                if self._is_done():
                    self._call.cancel()
                    outcome, code = Outcome.OK, "CANCELLED"
                    break
                self._slow_down(started_s)
        except grpc.RpcError as error:
            outcome, code, detail = outcome_of(error)
            # It may also have ended by itself at that moment.
            self._unended = self._gave_up and code == "CANCELLED"
            if self._unended:
                outcome, code, detail = Outcome.OK, "OK", "its end did not come"
        finally:
            self.first_byte.set()
            self.ended.set()
        stream = self._stream(outcome, code, detail, started_s)
        if watching is not None:
            watching.join()  # after the end was timed: its query may take long
        self._record(stream)
        return stream

    def cancel(self) -> None:
        """Cancel the stream; any thread may call this."""
        self._cancelled.set()
        call = self._call
        if call is not None:
            call.cancel()

    def _watch(self, watch: EndWatch) -> None:
        """Cancel the stream if it does not end with its job; return when the stream has ended."""
        had_ended, seen_bytes = False, 0
        while not self.ended.wait(watch.quiet_s):
            has_ended = watch.job_has_ended(self._job_id)
            if has_ended and had_ended and seen_bytes == self.received_bytes:
                watch.quiet_s = min(watch.quiet_s, NEXT_QUIET_S)
                self._gave_up = True
                self.cancel()
                return
            had_ended, seen_bytes = has_ended, self.received_bytes

    def _is_done(self) -> bool:
        limit = self._plan.stop_after_bytes
        return limit is not None and self.received_bytes >= limit

    def _take(self, message: pb.StreamLogsResponse) -> None:
        data = message.message
        self._largest_message_bytes = max(self._largest_message_bytes, len(data))
        has_offset = message.HasField("offset")
        self._offsets_reported = self._offsets_reported or has_offset
        self._missed_bytes += message.missed_bytes
        if self._next_offset is None:
            self._begin(message.offset if has_offset else None)
        elif (
            has_offset
            and message.offset != self._next_offset + message.missed_bytes
            and not self._gap
        ):
            self._gap = (
                f"offset {message.offset} after {self._next_offset} with "
                f"{message.missed_bytes} bytes missed"
            )
        if has_offset:
            self._next_offset = message.offset
        if self._skip_bytes:
            dropped = min(self._skip_bytes, len(data))
            self._skip_bytes -= dropped
            data = data[dropped:]
        if data:
            self._compare(data)

    def _begin(self, reported_offset: int | None) -> None:
        """Take the offset at which the stream starts from its first message."""
        if reported_offset is not None:
            self._start_offset = self._next_offset = reported_offset
            self._skip_bytes = 0
        else:
            self._next_offset = self._start_offset

    def _compare(self, data: bytes) -> None:
        now_s = self._now_s()
        offset = self._next_offset or 0
        if self._plan.pattern is not None and self._wrong_at is None:
            wrong = self._plan.pattern.first_difference(offset, data)
            self._wrong_at = None if wrong is None else offset + wrong
        self._next_offset = offset + len(data)
        self.received_bytes += len(data)
        self._digest.update(data)
        if len(self._text) < self._plan.keep_bytes:
            self._text += data[: self._plan.keep_bytes - len(self._text)]
        if self._first_byte_s is None:
            self._first_byte_s = now_s
            self.first_byte.set()
            if self._on_first_byte is not None:
                self._on_first_byte()
        self._last_byte_s = now_s
        if not self._timeline or now_s - self._timeline[-1][0] >= self._timeline_step_s:
            self._timeline.append((round(now_s, 3), self.received_bytes))
            if len(self._timeline) >= _TIMELINE_POINTS_MAX:
                self._timeline = self._timeline[::2]
                self._timeline_step_s *= 2

    def _slow_down(self, started_s: float) -> None:
        rate = self._plan.bytes_per_s
        if rate is None:
            return
        due_s = started_s + self.received_bytes / rate
        # This wait is the load, not synchronisation; `cancel` ends it at once.
        self._cancelled.wait(max(0.0, due_s - self._now_s()))

    def _stream(self, outcome: Outcome, code: str, detail: str, started_s: float) -> Stream:
        ended_s = self._now_s()
        if self._timeline and self._last_byte_s is not None:
            self._timeline.append((round(self._last_byte_s, 3), self.received_bytes))
        return Stream(
            label=self._label,
            job_id=self._job_id,
            outcome=outcome,
            code=code,
            detail=detail,
            received_bytes=self.received_bytes,
            largest_message_bytes=self._largest_message_bytes,
            sha256=self._digest.hexdigest(),
            started_s=started_s,
            ended_s=ended_s,
            start_offset=self._start_offset,
            missed_bytes=self._missed_bytes,
            wrong_at=self._wrong_at,
            gap=self._gap,
            unended=self._unended,
            offsets_reported=self._offsets_reported,
            text=bytes(self._text).decode("latin-1"),
            first_byte_s=self._first_byte_s,
            last_byte_s=self._last_byte_s,
            timeline=tuple(self._timeline),
        )
