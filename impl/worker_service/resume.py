"""A job's output as one stream over as many connections as it takes, each resumed by offset.

Guarantees:
- Each byte is yielded once, in order. Those that the server dropped while no connection existed are
  counted by `Output.missed_bytes`, like those that it dropped before.
- Only errors that another attempt may mend are followed by one, and not for ever: see `Patience`.
- A dead connection is not taken for a silent job: after some silence the job is queried on the same
  connection, and without an answer the stream is resumed on another. gRPC's pings take too long:
  by default servers refuse clients that send them more often than every five minutes.
- Every attempt has a connection of its own, and reads the certificates anew.

Shared state and its guard: `_Attempt.dead` and `answers` are written by the timers' thread only,
`outputs` by the thread that reads; `_call` is one reference. `cancel` is for any thread.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Final

import grpc

from worker_service.client import CallError, Client, ClientOptions, Job, Output, Start, StreamCall
from worker_service.timers import Timers

_NO_ANSWER: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# What another attempt may mend. Everything else would be answered in the same way again, or was
# requested. Streams have no deadline: a query was not answered.
MENDABLE: Final = _NO_ANSWER | {grpc.StatusCode.RESOURCE_EXHAUSTED}
_DOUBLINGS_MAX: Final = 30  # a larger power is beyond every bound, and at last beyond a float


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to try again, and for how long. Pure: it has no clock and draws no random number.

    Progress is output, or the answer to a query while the stream is open.

    Attributes:
        give_up_after_s: time without progress after which no further attempt is made. One that
            runs is not cut short. 0: only one attempt is made.
        first_pause_s: upper bound of the pause after the first failure; it doubles each time.
        longest_pause_s: upper bound of every pause.
        silence_s: time without output after which the connection is checked.
    """

    give_up_after_s: float = 60.0
    first_pause_s: float = 0.2
    longest_pause_s: float = 5.0
    silence_s: float = 30.0

    def pause_s(
        self, code: grpc.StatusCode, failures: int, without_progress_s: float, luck: float
    ) -> float | None:
        """Return how long to wait before the next attempt; None: there must not be another.

        Args:
            code: of the last failure.
            failures: attempts that have failed since the last progress, at least 1.
            without_progress_s: time since then.
            luck: random, from 0 up to 1; spreads clients that were cut off together.
        """
        left_s = self.give_up_after_s - without_progress_s
        if code not in MENDABLE or left_s <= 0:
            return None
        doubled_s = self.first_pause_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX)
        # At least half: a server that refuses at once is not called again at once.
        return min(min(doubled_s, self.longest_pause_s) * (1 + luck) / 2, left_s)


ONCE: Final = Patience(give_up_after_s=0)


class StreamBrokenError(CallError):
    """A stream ended early; `code` is the last failure's.

    Attributes:
        received_bytes: how much was yielded.
        next_offset: where to resume; None: where it was to start, since nothing was received.
        attempts: how many failed since the last progress.
        without_progress_s: time since then.
    """

    def __init__(
        self, error: CallError, stream: "ResumedStream", without_progress_s: float
    ) -> None:
        self.received_bytes = stream.received_bytes
        self.next_offset = stream.next_offset
        self.attempts = stream.failures
        self.without_progress_s = without_progress_s
        text = str(error)
        if stream.retried:
            text += (
                f"; received {self.received_bytes} bytes, then failed attempts: {self.attempts}, "
                f"in {without_progress_s:.1f} s"
            )
        super().__init__(error.code, text)


class JobGoneError(StreamBrokenError):
    """The server that answers now does not know the job: its output cannot be resumed."""


class _Attempt:
    """What one connection has shown."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.outputs = 0
        self.answers = 0
        self.dead = ""


class ResumedStream:
    """A job's output until the job has ended. Iterate once; an error is a `StreamBrokenError`.

    Args:
        options: how to connect.
        job_id: the job.
        start: where to start; a tail begins where it was at the first attempt, or, if the server
            cannot say where that is before it sends output, at the first output.
        follow: whether to wait for more output.
        patience: see `Patience`.
        on_break: called after each failure that is followed by another attempt.

    Attributes:
        next_offset: that of the next byte; None while a tail's is unknown.
        received_bytes: how much was yielded.
        failures: attempts that have failed since the last progress.
        retried: whether more than one attempt was made.
    """

    def __init__(
        self,
        options: ClientOptions,
        job_id: str,
        start: Start | None = None,
        *,
        follow: bool = True,
        patience: Patience = ONCE,
        on_break: Callable[[StreamBrokenError], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._job_id = job_id
        self._start = start or Start()
        self._follow = follow
        self._patience = patience
        self._on_break = on_break
        self._tail = self._start.tail_bytes is not None or self._start.tail_lines is not None
        self._broken_at_s = 0.0
        self._cancelled = threading.Event()
        self._call: StreamCall | None = None
        self.next_offset = None if self._tail else self._start.from_offset or 0
        self.received_bytes = 0
        self.failures = 0
        self.retried = False

    def cancel(self) -> None:
        """End the stream with the status CANCELLED; from any thread."""
        self._cancelled.set()
        if self._call is not None:
            self._call.cancel()

    def __iter__(self) -> Iterator[Output]:
        """Yield the output; see the class."""
        with closing(Timers()) if self._patience.give_up_after_s else nullcontext() as timers:
            while True:
                attempt = _Attempt()
                try:
                    yield from self._connected(attempt, timers)
                except CallError as error:
                    self._pause(error, attempt)
                else:
                    return

    def query(self) -> Job:
        """Return the job's state, with the same patience."""
        while True:
            attempt = _Attempt()
            try:
                with Client(self._options) as client:
                    return client.query(self._job_id)
            except CallError as error:
                self._pause(error, attempt)

    def _connected(self, attempt: _Attempt, timers: Timers | None) -> Iterator[Output]:
        """Yield what one connection brings."""
        with Client(self._options) as client:
            if timers is not None:
                self._fix_tail(client)
            start = self._start
            if self.next_offset is not None:
                start = Start(from_offset=self.next_offset)
            outputs = client.stream(
                self._job_id, start, follow=self._follow, on_call=self._set_call
            )
            silence_s = self._patience.silence_s
            look = self._look(client, attempt)
            watch = timers.calling(look, silence_s) if timers is not None else nullcontext()
            with watch:
                for output in outputs:
                    new = following(output, self.next_offset)
                    if not new.data and not new.missed_bytes:
                        continue
                    attempt.outputs += 1
                    self.next_offset = new.offset + len(new.data)
                    self.received_bytes += len(new.data)
                    yield new

    def _fix_tail(self, client: Client) -> None:
        """Replace a tail by its offset, if that is known before any output has arrived.

        Otherwise a stream that breaks before its first output would later start at another tail.
        """
        if self.next_offset is not None:
            return
        job = client.query(self._job_id)
        if job.log_size_bytes is None:
            return  # the server has no tails, which the stream reports
        if self._start.tail_bytes is not None:
            kept_bytes = job.log_size_bytes - (job.log_first_offset or 0)
            self.next_offset = job.log_size_bytes - min(self._start.tail_bytes, kept_bytes)
        elif job.log_size_bytes == 0 or self._start.tail_lines == 0:
            self.next_offset = job.log_size_bytes

    def _set_call(self, call: StreamCall) -> None:
        self._call = call
        if self._cancelled.is_set():
            call.cancel()

    def _look(self, client: Client, attempt: _Attempt) -> Callable[[], float]:
        """Return a timer's callback that cancels the call of a dead connection."""
        seen, silence_s = 0, self._patience.silence_s

        def look() -> float:
            nonlocal seen
            if seen != attempt.outputs:
                seen = attempt.outputs
                return silence_s
            try:
                client.query(self._job_id)
            except CallError as error:
                if error.code in _NO_ANSWER:
                    attempt.dead = (
                        f"no output for {silence_s:g} s, and no answer to a query on the connection"
                    )
                    if self._call is not None:
                        self._call.cancel()
                    return math.inf
            except ValueError:  # the connection was closed: the attempt is over
                return math.inf
            attempt.answers += 1
            return silence_s

        return look

    def _pause(self, error: CallError, attempt: _Attempt) -> None:
        """Wait before the next attempt.

        Raises:
            StreamBrokenError: there must not be another.
        """
        now_s = time.monotonic()
        if attempt.dead and not self._cancelled.is_set():
            error = CallError(grpc.StatusCode.UNAVAILABLE, attempt.dead)
        if attempt.outputs or attempt.answers:
            self.failures = 0
            self._broken_at_s = now_s
        elif not self.failures:
            self._broken_at_s = attempt.started_s
        self.failures += 1
        without_progress_s = now_s - self._broken_at_s
        luck = random.random()  # noqa: S311 - nothing secret
        pause_s = self._patience.pause_s(error.code, self.failures, without_progress_s, luck)
        broken = StreamBrokenError(error, self, without_progress_s)
        if error.code is grpc.StatusCode.NOT_FOUND and self.retried:
            broken = JobGoneError(
                CallError(
                    error.code,
                    f"job {self._job_id} is gone: the server that answers now does not know it, "
                    f"since it was started anew, or the job was deleted or has expired ({error})",
                ),
                self,
                without_progress_s,
            )
        if pause_s is None:
            raise broken from None
        self.retried = True
        self._on_break(broken)
        if self._cancelled.wait(pause_s):
            raise StreamBrokenError(
                CallError(grpc.StatusCode.CANCELLED, "cancelled"), self, without_progress_s
            ) from None


def following(output: Output, next_offset: int | None) -> Output:
    """Return what an output adds to those before it: nothing twice, and what it leaves out.

    Args:
        output: as the server sent it.
        next_offset: where the previous output ended; None: it is the first.
    """
    if next_offset is None:
        return output
    repeated_bytes = min(max(0, next_offset - output.offset), len(output.data))
    offset = output.offset + repeated_bytes
    return Output(offset, output.data[repeated_bytes:], max(0, offset - next_offset))
