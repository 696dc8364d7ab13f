"""HTTP/2 put to what it was not made for, over real mutual TLS: floods, and what is too large."""

import struct
from collections.abc import Iterator
from typing import Final

from hpack import Encoder

from harness.checks.abuse.concurrent_victim import NEEDS, abused, peak_memory_bytes, unharmed
from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.raw_calls import (
    ANSWER_TIMEOUT_S,
    GREET_TIMEOUT_S,
    QUERY_PATH,
    STREAM_PATH,
    UNKNOWN_QUERY,
)
from harness.drive.net.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_MAX_BYTES,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Http2,
    RawHttp2,
    frame,
    grpc_headers,
    grpc_message,
    header_block,
)
from harness.drive.net.tls_client import TlsLine, client_context
from harness.judge.promises import answered, at_most, equal, floor, holds
from harness.record.history import History, Json
from harness.record.verdict import Finding, UnmetError, Verdict
from harness.targets.target import RunningServer, Variant
from jobworker.v1 import jobworker_pb2 as pb

FLOOD_TIMEOUT_S: Final = 40.0
# How a call ends that is not answered by a status.
ENDS: Final = ("RESET", "GOAWAY", "closed")
_CANCEL: Final = struct.pack("!I", 8)  # RFC 9113, 7


def _line(stage: Stage, server: RunningServer) -> TlsLine:
    """Connect as an admin: whoever abuses may well have a good certificate.

    Raises:
        UnmetError: the server does not take the connection.
    """
    try:
        return TlsLine(server.address, client_context(stage.target.identities.files("admin")))
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise UnmetError(Finding(Verdict.FAIL, "new connections are taken", got)) from error


RESETS: Final = 10_000
RESETS_AT_ONCE: Final = 100
WAVES: Final = 20
WAVE_STREAMS: Final = 50
RESETS_POOL_THREADS: Final = 1500  # a leak would leave ten thousand


def run_resets(stage: Stage) -> None:
    """Calls that are reset as soon as they are made, on as many connections as it takes."""
    with (
        abused(stage, pool_threads=RESETS_POOL_THREADS) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        sent, ends = _reset_at_once(stage, server)
        stage.fact("resets", sent)
        stage.fact("connections ended by", ends)
        client.query(job_id, label="between the floods")
        stage.fact("begun and reset", _reset_begun(stage, server, job_id))
        client.must_stop(job_id)


def _reset_at_once(stage: Stage, server: RunningServer) -> tuple[int, list[Json]]:
    """Make calls and reset each before it can be answered; on as many connections as it takes."""
    wanted = stage.pick(full=RESETS, small=RESETS // 10)
    headers, message = _whole_call(QUERY_PATH, UNKNOWN_QUERY)
    sent, ends = 0, list[Json]()
    while sent < wanted and len(ends) < wanted // RESETS_AT_ONCE:
        with _line(stage, server) as line:
            http2 = RawHttp2(line)
            http2.greet(GREET_TIMEOUT_S)
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


def _reset_begun(stage: Stage, server: RunningServer, job_id: str) -> int:
    """Open streams, in waves, and reset each when its first byte is there; return how many."""
    request = pb.StreamLogsRequest(job_id=job_id).SerializeToString()
    headers, message = _whole_call(STREAM_PATH, request)
    begun = 0
    with _line(stage, server) as line:
        http2 = RawHttp2(line)
        http2.greet(GREET_TIMEOUT_S)
        for wave in range(stage.pick(full=WAVES, small=2)):
            first = 1 + 2 * WAVE_STREAMS * wave
            streams = range(first, first + 2 * WAVE_STREAMS, 2)
            http2.send(b"".join(_at(each, headers, message) for each in streams), FLOOD_TIMEOUT_S)
            if not http2.wait_frames(DATA, begun + WAVE_STREAMS, ANSWER_TIMEOUT_S):
                break
            http2.send(b"".join(map(_reset, streams)), FLOOD_TIMEOUT_S)
            begun += WAVE_STREAMS
    return begun


def _whole_call(path: str, request: bytes) -> tuple[bytes, bytes]:
    return header_block(grpc_headers(path)), grpc_message(request)


def _at(stream: int, headers: bytes, message: bytes) -> bytes:
    begin = frame(HEADERS, END_HEADERS, stream, headers)
    return begin + frame(DATA, END_STREAM, stream, message)


def _reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, _CANCEL)


def judge_resets(history: History) -> Iterator[Finding]:
    """Nothing remains of them."""
    yield floor("calls that were made and reset", history.number("resets"), RESETS // 10)
    begun = history.number("begun and reset")
    yield floor("streams that had begun when they were reset", begun, WAVE_STREAMS)
    yield answered(
        "another client is answered between two floods", history.call("between the floods")
    )
    yield from unharmed(history)


PINGS: Final = 20_000
PINGS_AT_ONCE: Final = 500
CUT_OFF_TIMEOUT_S: Final = 10.0


def run_pings(stage: Stage) -> None:
    """Pings, and then settings, without end on a connection that does nothing else."""
    with abused(stage) as server:
        for name, one in (
            ("pings", frame(PING, 0, 0, b"jobworkr")), ("settings", frame(SETTINGS, 0, 0, b""))
        ):  # fmt: skip
            wanted = stage.pick(full=PINGS, small=PINGS // 10)
            with _line(stage, server) as line:
                http2 = RawHttp2(line)
                http2.greet(GREET_TIMEOUT_S)
                sent = 0
                while sent < wanted and http2.send(one * PINGS_AT_ONCE, FLOOD_TIMEOUT_S):
                    sent += PINGS_AT_ONCE
                if not http2.ended and name == "pings":
                    http2.wait_ended(CUT_OFF_TIMEOUT_S)  # what was sent is still on its way
                stage.fact(f"{name} sent", sent)
                stage.fact(f"{name}: ended by", http2.ended)


def judge_pings(history: History) -> Iterator[Finding]:
    """Who floods with pings is cut off; whoever does with settings may be."""
    ended = str(history.fact("pings: ended by"))
    yield holds(
        "a connection that is nothing but pings is ended", kept=bool(ended),
        got=ended or f"{history.fact('pings sent')} were borne", want="GOAWAY, or hung up",
    )  # fmt: skip
    yield floor("settings, or as many as were borne", history.number("settings sent"), 0)
    yield from unharmed(history)


METADATA_BYTES: Final = 64 * 1024
MESSAGE_BYTES: Final = 8 * MIB
# Far more than the kernel keeps on its way to a server that is held up (tcp_rmem: 32 MiB).
ENDLESS_BYTES: Final = 192 * MIB
BOMB_VALUE_BYTES: Final = 3900  # an entry of the table of 4096 bytes that all begin with
BOMB_REFERENCES: Final = 64_000
MEMORY_BOUND_BYTES: Final = 128 * MIB
MEMORY_WHY: Final = (
    "what the kernel held back while the server was held up is read at once, and copied by TLS; "
    "what was sent, what it unpacks to, and claims to be, is more"
)
CUT_OFF: Final = "a status, a reset, or the connection's end"
REFUSED: Final = ("RESOURCE_EXHAUSTED", "INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE")


def run_oversized(stage: Stage) -> None:
    """Metadata and messages that are too large, that claim to be, or that never end."""
    with abused(stage) as server, stage.client(server=server) as client:
        looks = stage.target_has(Need.HOST) and server.pid is not None
        before = peak_memory_bytes(stage, server) if looks else 0
        before = peak_memory_bytes(stage, server) if looks else 0  # since the look before
        client.start("true", ["x" * MESSAGE_BYTES], label="large message")
        stage.fact("large metadata", _large_metadata(stage, server))
        stage.fact("a length that lies", _lying_length(stage, server))
        stage.fact("headers without end", _endless_headers(stage, server))
        stage.fact("headers that unpack", _header_bomb(stage, server))
        if looks:
            stage.fact("memory", peak_memory_bytes(stage, server) - before)


def _large_metadata(stage: Stage, server: RunningServer) -> str:
    with _line(stage, server) as line:
        http2 = Http2(line)
        http2.greet(GREET_TIMEOUT_S)
        metadata = [("x-large", "x" * METADATA_BYTES)]
        return http2.answer(http2.open(QUERY_PATH, UNKNOWN_QUERY, metadata), ANSWER_TIMEOUT_S)


def _lying_length(stage: Stage, server: RunningServer) -> str:
    with _line(stage, server) as line:
        http2 = Http2(line)
        http2.greet(GREET_TIMEOUT_S)
        stream = http2.open_raw(QUERY_PATH, struct.pack("!?I", False, 2**32 - 1) + UNKNOWN_QUERY)
        return http2.answer(stream, ANSWER_TIMEOUT_S)


def _endless_headers(stage: Stage, server: RunningServer) -> str:
    """Send header fields in frame after frame, none of which is the last (CVE-2024-27316)."""
    fields = header_block([(f"x-{number}", "x" * 100) for number in range(100)])
    more = b"".join(
        frame(CONTINUATION, 0, 1, fields[:FRAME_MAX_BYTES]) for _ in range(MIB // len(fields))
    )
    with _line(stage, server) as line:
        http2 = RawHttp2(line)
        http2.greet(GREET_TIMEOUT_S)
        http2.send(frame(HEADERS, 0, 1, header_block(grpc_headers(QUERY_PATH))), FLOOD_TIMEOUT_S)
        sent = 0
        while sent < ENDLESS_BYTES and http2.send(more, FLOOD_TIMEOUT_S):
            sent += len(more)
        http2.send(frame(CONTINUATION, END_HEADERS, 1, b""), FLOOD_TIMEOUT_S)
        http2.wait_answer(ANSWER_TIMEOUT_S)
        return http2.ended or _reset_or_borne(http2, sent)


def _reset_or_borne(http2: RawHttp2, sent: int) -> str:
    if http2.frames[RST_STREAM] or http2.frames[HEADERS]:
        return "the call was refused"
    return f"{sent} bytes were borne"


def _header_bomb(stage: Stage, server: RunningServer) -> str:
    """Send one large header and many references to it (RFC 7541, 7.3)."""
    encoder = Encoder()
    large = ("x-bomb", "x" * BOMB_VALUE_BYTES)
    block = bytes(encoder.encode(grpc_headers(QUERY_PATH), huffman=False))
    block += bytes(encoder.encode([large], huffman=False))
    block += bytes(encoder.encode([large])) * BOMB_REFERENCES
    with _line(stage, server) as line:
        http2 = RawHttp2(line)
        http2.greet(GREET_TIMEOUT_S)
        parts = [block[i : i + FRAME_MAX_BYTES] for i in range(0, len(block), FRAME_MAX_BYTES)]
        frames = [frame(HEADERS, END_STREAM, 1, parts[0])]
        frames += [frame(CONTINUATION, 0, 1, part) for part in parts[1:]]
        frames.append(frame(CONTINUATION, END_HEADERS, 1, b""))
        http2.send(b"".join(frames), FLOOD_TIMEOUT_S)
        http2.wait_answer(ANSWER_TIMEOUT_S)
        return http2.ended or _reset_or_borne(http2, len(block))


def judge_oversized(history: History) -> Iterator[Finding]:
    """Each refused, by a status or by the end of the connection, and none kept in memory."""
    call = history.call("large message")
    promise = f"a request of {MESSAGE_BYTES} bytes is refused for its size"
    yield answered(promise, call, "RESOURCE_EXHAUSTED")
    for label in ("large metadata", "a length that lies"):
        got = str(history.fact(label))
        yield holds(
            f"{label} is refused", kept=got in REFUSED or got.startswith(ENDS),
            got=got, want=CUT_OFF,
        )  # fmt: skip
    for label in ("headers without end", "headers that unpack"):
        got = str(history.fact(label))
        yield holds(
            f"{label} are refused", kept="borne" not in got, got=got, want=CUT_OFF
        )  # fmt: skip
    for fact in history.facts("memory"):
        grown = history.number(fact.label)
        yield at_most("bytes of memory at the worst", grown, MEMORY_BOUND_BYTES, MEMORY_WHY)
    yield from unharmed(history)


CALLS_ALLOWED: Final = 10
CALLS_OVER: Final = 5
MANY_CALLS: Final = 5000


def run_streams(stage: Stage) -> None:
    """More calls at a time on a connection than the server allows."""
    settable = stage.target_has(Need.CALLS_A_CONNECTION)
    variant = Variant(calls_a_connection=CALLS_ALLOWED) if settable else Variant()
    threads = 2 * CALLS_ALLOWED if settable else MANY_CALLS
    with (
        abused(stage, variant, pool_threads=threads) as server,
        stage.client(server=server) as client,
    ):
        job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
        request = pb.StreamLogsRequest(job_id=job_id).SerializeToString()
        with _line(stage, server) as line:
            http2 = Http2(line)
            http2.greet(GREET_TIMEOUT_S)
            allowed = http2.streams_allowed
            stage.fact("allowed", allowed)
            if allowed is None or allowed > MANY_CALLS:
                return
            http2.ignore_stream_limit()
            calls = [http2.open(STREAM_PATH, request) for _ in range(allowed + CALLS_OVER)]
            http2.wait_ended(calls[allowed:], ANSWER_TIMEOUT_S)
            outcomes: list[Json] = [http2.outcome(call) for call in calls]
            stage.fact("outcomes", outcomes)
        client.must_stop(job_id)


def judge_streams(history: History) -> Iterator[Finding]:
    """A maximum is announced, and kept also when the client does not."""
    allowed = history.fact("allowed")
    bounded = isinstance(allowed, int) and allowed <= MANY_CALLS
    yield holds(
        "the server announces how many calls at a time a connection may have", kept=bounded,
        got=allowed, want=f"at most {MANY_CALLS}",
    )  # fmt: skip
    if not bounded:
        return
    outcomes = history.fact("outcomes")
    listed = [str(each) for each in outcomes] if isinstance(outcomes, list) else []
    over = listed[int(str(allowed)) :]
    yield floor("calls over the maximum", len(over), CALLS_OVER)
    borne = [each for each in over if each == "no answer"]
    yield equal("calls over it that are served all the same", len(borne), 0)
    kinds = sorted(set(over))
    refused = all(each.startswith(ENDS) or each in REFUSED for each in over)
    yield holds("they are refused", kept=refused, got=kinds, want=CUT_OFF)
    yield from unharmed(history)


CHECKS: Final = (
    Check(
        "abuse.resets",
        "Ten thousand calls that are reset at once leave nothing behind, and disturb nobody.",
        run_resets, judge_resets, NEEDS, ("82", "R-STREAM-4"), 180,
    ),
    Check(
        "abuse.pings",
        "A connection that floods with pings is ended; one that floods with settings hurts nobody.",
        run_pings, judge_pings, NEEDS, ("82",), 180,
    ),
    Check(
        "abuse.oversized",
        "Metadata and messages that are too large, or claim to be, are refused in bounded memory.",
        run_oversized, judge_oversized, NEEDS, ("82",), 180,
    ),
    Check(
        "abuse.streams",
        "A connection has a maximum of calls, which holds also for a client that ignores it.",
        run_streams, judge_streams, NEEDS, ("79", "R-STREAM-9"),
        alone=True,  # where all share one server, others would find it full
    ),
)  # fmt: skip
