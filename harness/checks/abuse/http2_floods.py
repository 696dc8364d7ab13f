"""Floods of HTTP/2 frames over mutual TLS: resets, pings, settings, too many calls.

The abuser connects as an admin: an attacker may have a valid certificate.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.checks.abuse.concurrent_victim import NEEDS, judge_victim, run_abuse
from harness.checks.check import Check, Need, Stage
from harness.checks.raw_calls import (
    ANSWER_TIMEOUT_S,
    open_http2,
    open_raw_http2,
    stream_call,
    unknown_query,
)
from harness.drive.net.http2 import (
    CUT_OFF,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    CallEnd,
    CallOutcome,
    frame,
    grpc_headers,
    grpc_message,
    header_block,
)
from harness.judge.promises import answered, assumed, equal, floor, holds
from harness.record.history import History, Observation
from harness.record.verdict import Finding
from harness.targets.target import RunningServer, Variant

FLOOD_TIMEOUT_S: Final = 40.0
REFUSED: Final = ("RESOURCE_EXHAUSTED", "INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE")
REFUSED_WANT: Final = "a status, a reset, or the connection's end"
_CANCEL: Final = struct.pack("!I", 8)  # RFC 9113, 7


def is_refused(outcome: CallOutcome) -> bool:
    """Return whether the server refused a call, by a status or by cutting it off."""
    return outcome.end in CUT_OFF or outcome.is_status(*REFUSED)


RESETS: Final = 10_000
RESETS_AT_ONCE: Final = 100
WAVES: Final = 20
WAVE_STREAMS: Final = 50
RESETS_POOL_THREADS: Final = 1500  # a leak would leave ten thousand


@dataclass(frozen=True, slots=True)
class CallResets(Observation):
    """Calls that their client reset.

    Attributes:
        immediate: how many were reset as soon as they were made.
        connections_ended: how the server ended connections meanwhile.
        streaming: how many were reset after their first byte of output.
    """

    immediate: int
    connections_ended: tuple[CallOutcome, ...]
    streaming: int


def run_resets(stage: Stage) -> None:
    """Reset calls as soon as they are made, on as many connections as it takes; then streams."""
    with (
        run_abuse(stage, pool_threads=RESETS_POOL_THREADS) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        immediate, ends = _reset_at_once(stage, server)
        client.query(job_id, label="between the floods")
        streaming = _reset_streaming(stage, server, job_id)
        stage.record(CallResets(immediate, tuple(ends), streaming))
        client.must_stop(job_id)


def _reset_at_once(stage: Stage, server: RunningServer) -> tuple[int, list[CallOutcome]]:
    """Make calls and reset each before it can be answered, on as many connections as it takes."""
    files = stage.target.identities.files("admin")
    wanted = stage.pick(full=RESETS, small=RESETS // 10)
    headers, message = _whole_call(*unknown_query(stage.dialect))
    sent, ends = 0, list[CallOutcome]()
    while sent < wanted and len(ends) < wanted // RESETS_AT_ONCE:
        with open_raw_http2(server.address, files) as http2:
            first = 1
            while sent < wanted and not http2.ended:
                streams = range(first, first + 2 * RESETS_AT_ONCE, 2)
                calls = [_at(stream, headers, message) + _reset(stream) for stream in streams]
                if http2.send(b"".join(calls), FLOOD_TIMEOUT_S):
                    sent += RESETS_AT_ONCE
                first += 2 * RESETS_AT_ONCE
            if http2.ended:
                ends.append(http2.ended)
    return sent, ends


def _reset_streaming(stage: Stage, server: RunningServer, job_id: str) -> int:
    """Open streams, in waves, and reset each after its first byte; return how many."""
    files = stage.target.identities.files("admin")
    headers, message = _whole_call(*stream_call(stage.dialect, job_id))
    reset = 0
    with open_raw_http2(server.address, files) as http2:
        for wave in range(stage.pick(full=WAVES, small=2)):
            first = 1 + 2 * WAVE_STREAMS * wave
            streams = range(first, first + 2 * WAVE_STREAMS, 2)
            http2.send(b"".join(_at(each, headers, message) for each in streams), FLOOD_TIMEOUT_S)
            if not http2.wait_frames(DATA, reset + WAVE_STREAMS, ANSWER_TIMEOUT_S):
                break
            http2.send(b"".join(map(_reset, streams)), FLOOD_TIMEOUT_S)
            reset += WAVE_STREAMS
    return reset


def _whole_call(path: str, request: bytes) -> tuple[bytes, bytes]:
    return header_block(grpc_headers(path)), grpc_message(request)


def _at(stream: int, headers: bytes, message: bytes) -> bytes:
    begin = frame(HEADERS, END_HEADERS, stream, headers)
    return begin + frame(DATA, END_STREAM, stream, message)


def _reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, _CANCEL)


def judge_resets(history: History) -> Iterator[Finding]:
    """Reset calls leave nothing behind, and other clients are answered."""
    seen = history.the(CallResets)
    yield answered(
        "another client is answered between two floods", history.call("between the floods")
    )
    yield from judge_victim(history)
    yield floor("calls that were made and reset", seen.immediate, RESETS // 10)
    yield floor("streams that were reset after their first byte", seen.streaming, WAVE_STREAMS)


CALL_RESETS: Final = Check(
    "abuse.resets",
    "Ten thousand calls that are reset at once leave nothing behind, and disturb no other client.",
    run_resets, judge_resets, NEEDS, ("82", "R-STREAM-4"), 180,
)  # fmt: skip


CONTROL_FRAMES: Final = 20_000
CONTROL_FRAMES_AT_ONCE: Final = 500
END_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class FrameFlood:
    """Frames of one kind on a connection that does nothing else.

    Attributes:
        sent: how many the server accepted.
        ended: how it ended the connection; None: it did not.
    """

    sent: int
    ended: CallOutcome | None


@dataclass(frozen=True, slots=True)
class ControlFloods(Observation):
    """A flood of pings and one of settings, each on its own connection."""

    pings: FrameFlood
    settings: FrameFlood


def run_pings(stage: Stage) -> None:
    """Send pings, and then settings, on a connection that does nothing else."""
    with run_abuse(stage) as server:
        pings = _flood(stage, server, frame(PING, 0, 0, b"jobworkr"), END_TIMEOUT_S)
        settings = _flood(stage, server, frame(SETTINGS, 0, 0, b""), None)
        stage.record(ControlFloods(pings, settings))


def _flood(
    stage: Stage, server: RunningServer, one: bytes, end_timeout_s: float | None
) -> FrameFlood:
    """Send a frame many times; then wait for the connection's end, if a timeout is given."""
    wanted = stage.pick(full=CONTROL_FRAMES, small=CONTROL_FRAMES // 10)
    with open_raw_http2(server.address, stage.target.identities.files("admin")) as http2:
        sent = 0
        while sent < wanted and http2.send(one * CONTROL_FRAMES_AT_ONCE, FLOOD_TIMEOUT_S):
            sent += CONTROL_FRAMES_AT_ONCE
        if not http2.ended and end_timeout_s is not None:
            http2.wait_ended(end_timeout_s)  # the last frames are still on their way
        return FrameFlood(sent, http2.ended)


def judge_pings(history: History) -> Iterator[Finding]:
    """A flood of pings ends the connection; a flood of settings may."""
    seen = history.the(ControlFloods)
    ended = seen.pings.ended
    yield holds(
        "a connection that only sends pings is ended", kept=ended is not None,
        got=f"{seen.pings.sent} were accepted" if ended is None else str(ended),
        want="GOAWAY, or closed",
    )  # fmt: skip
    yield from judge_victim(history)
    settings = seen.settings
    yield assumed(
        "settings were sent, or ended the connection",
        true=settings.sent > 0 or settings.ended is not None, got=settings.sent,
    )  # fmt: skip


PINGS: Final = Check(
    "abuse.pings",
    "A flood of pings ends its connection; a flood of settings harms no other client.",
    run_pings, judge_pings, NEEDS, ("82",), 180,
)  # fmt: skip


CALLS_ALLOWED: Final = 10
CALLS_OVER: Final = 5
MANY_CALLS: Final = 5000


@dataclass(frozen=True, slots=True)
class CallsOverMaximum(Observation):
    """More concurrent calls on a connection than the server allows.

    Attributes:
        announced: the server's maximum; None: it announced none.
        over: how the calls over the maximum ended; empty if it is too large to exceed.
    """

    announced: int | None
    over: tuple[CallOutcome, ...]


def run_streams(stage: Stage) -> None:
    """Make more concurrent calls on a connection than the server allows."""
    settable = stage.target_has(Need.CALLS_A_CONNECTION)
    variant = Variant(calls_a_connection=CALLS_ALLOWED) if settable else Variant()
    threads = 2 * CALLS_ALLOWED if settable else MANY_CALLS
    files = stage.target.identities.files("admin")
    with (
        run_abuse(stage, variant, pool_threads=threads) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        request = stream_call(stage.dialect, job_id)
        over: tuple[CallOutcome, ...] = ()
        with open_http2(server.address, files) as http2:
            allowed = http2.streams_allowed
            if allowed is not None and allowed <= MANY_CALLS:
                http2.ignore_stream_limit()
                calls = [http2.open(*request) for _ in range(allowed + CALLS_OVER)]
                http2.wait_ended(calls[allowed:], ANSWER_TIMEOUT_S)
                over = tuple(http2.outcome(call) for call in calls[allowed:])
        stage.record(CallsOverMaximum(allowed, over))
        client.must_stop(job_id)


def judge_streams(history: History) -> Iterator[Finding]:
    """The server announces a maximum, and enforces it on a client that ignores it."""
    seen = history.the(CallsOverMaximum)
    bounded = seen.announced is not None and seen.announced <= MANY_CALLS
    yield holds(
        "the server announces its maximum of concurrent calls per connection", kept=bounded,
        got=seen.announced, want=f"at most {MANY_CALLS}",
    )  # fmt: skip
    if not bounded:
        return
    yield floor("calls over the maximum", len(seen.over), CALLS_OVER)
    served = sum(outcome.end is CallEnd.UNANSWERED for outcome in seen.over)
    yield equal("calls over the maximum that are served", served, 0)
    yield holds(
        "calls over the maximum are refused", kept=all(map(is_refused, seen.over)),
        got=sorted(set(map(str, seen.over))), want=REFUSED_WANT,
    )  # fmt: skip
    yield from judge_victim(history)


CALL_MAXIMUM: Final = Check(
    "abuse.streams",
    "A connection has a maximum of concurrent calls, which the server enforces.",
    run_streams, judge_streams, NEEDS, ("79", "R-STREAM-9"),
    alone=True,  # on a shared server, other checks would be refused
    ours=True,
)  # fmt: skip
