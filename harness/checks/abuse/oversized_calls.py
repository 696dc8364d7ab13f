"""Metadata and messages that are too large, that claim to be, or that never end."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hpack import Encoder

from harness.checks.abuse.concurrent_victim import (
    NEEDS,
    judge_victim,
    peak_memory_bytes,
    run_abuse,
)
from harness.checks.abuse.http2_floods import FLOOD_TIMEOUT_S, REFUSED_WANT, is_refused
from harness.checks.check import Check, Need, Stage
from harness.checks.common import MIB
from harness.checks.raw_calls import (
    ANSWER_TIMEOUT_S,
    open_http2,
    open_raw_http2,
    unknown_query,
)
from harness.dialects.dialect import RawCall
from harness.drive.net.http2 import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    FRAME_MAX_BYTES,
    HEADERS,
    CallEnd,
    CallOutcome,
    frame,
    grpc_headers,
    header_block,
)
from harness.host.cert_files import CertFiles
from harness.judge.promises import answered, at_most, holds
from harness.record.history import History, Observation
from harness.record.terms import terms_of
from harness.record.verdict import Finding

OVERSIZED_NAME: Final = "abuse.oversized"
METADATA_BYTES: Final = 64 * 1024
MESSAGE_BYTES: Final = 8 * MIB
# Far more than the kernel buffers for a server that does not read (tcp_rmem: 32 MiB).
ENDLESS_BYTES: Final = 192 * MIB
BOMB_VALUE_BYTES: Final = 3900  # fits the initial dynamic table of 4096 bytes
BOMB_REFERENCES: Final = 64_000
MEMORY_BOUND_BYTES: Final = 128 * MIB
MEMORY_WHY: Final = (
    "a delayed server reads at once what the kernel has buffered, and TLS copies it; the bytes "
    "that were sent, unpacked or claimed are more"
)


@dataclass(frozen=True, slots=True)
class HeaderFlood:
    """Header fields of one call: how many bytes were sent, and how the call ended."""

    sent_bytes: int
    outcome: CallOutcome


@dataclass(frozen=True, slots=True)
class OversizedCalls(Observation):
    """Calls that are too large, beside the `large message`, which is recorded as a call.

    Attributes:
        large_metadata: a call with METADATA_BYTES of metadata.
        false_length: a call whose message claims to have 4 GiB.
        endless_headers: a call whose headers never end.
        header_bomb: a call with compressed headers that expand.
        memory_grown_bytes: by how much the server's peak grew; None: the harness cannot look.
    """

    large_metadata: CallOutcome
    false_length: CallOutcome
    endless_headers: HeaderFlood
    header_bomb: HeaderFlood
    memory_grown_bytes: int | None


def run_oversized(stage: Stage) -> None:
    """Make each oversized call on its own connection, and measure the server's memory."""
    files = stage.target.identities.files("admin")
    with run_abuse(stage) as server, stage.client(server=server) as client:
        measures = stage.target_has(Need.HOST) and server.pid is not None
        if measures:
            peak_memory_bytes(stage, server)  # resets the peak
        before = peak_memory_bytes(stage, server) if measures else 0
        client.start("true", ["x" * MESSAGE_BYTES], label="large message")
        query = unknown_query(stage.dialect)
        metadata = _call_with_metadata(server.address, files, query)
        false_length = _call_with_false_length(server.address, files, query)
        endless = _send_endless_headers(server.address, files, query.path)
        bomb = _send_header_bomb(server.address, files, query.path)
        grown = peak_memory_bytes(stage, server) - before if measures else None
        stage.record(OversizedCalls(metadata, false_length, endless, bomb, grown))


def _call_with_metadata(address: str, files: CertFiles, query: RawCall) -> CallOutcome:
    with open_http2(address, files) as http2:
        metadata = [("x-large", "x" * METADATA_BYTES)]
        return http2.answer(http2.open(*query, metadata), ANSWER_TIMEOUT_S)


def _call_with_false_length(address: str, files: CertFiles, query: RawCall) -> CallOutcome:
    with open_http2(address, files) as http2:
        stream = http2.open_raw(query.path, struct.pack("!?I", False, 2**32 - 1) + query.message)
        return http2.answer(stream, ANSWER_TIMEOUT_S)


def _send_endless_headers(address: str, files: CertFiles, path: str) -> HeaderFlood:
    """Send header fields in frame after frame without END_HEADERS (CVE-2024-27316)."""
    fields = header_block([(f"x-{number}", "x" * 100) for number in range(100)])
    more = b"".join(
        frame(CONTINUATION, 0, 1, fields[:FRAME_MAX_BYTES]) for _ in range(MIB // len(fields))
    )
    with open_raw_http2(address, files) as http2:
        http2.send(frame(HEADERS, 0, 1, header_block(grpc_headers(path))), FLOOD_TIMEOUT_S)
        sent = 0
        while sent < ENDLESS_BYTES and http2.send(more, FLOOD_TIMEOUT_S):
            sent += len(more)
        http2.send(frame(CONTINUATION, END_HEADERS, 1, b""), FLOOD_TIMEOUT_S)
        http2.wait_answer(ANSWER_TIMEOUT_S)
        return HeaderFlood(sent, http2.outcome)


def _send_header_bomb(address: str, files: CertFiles, path: str) -> HeaderFlood:
    """Send one large header and many references to it (RFC 7541, 7.3)."""
    encoder = Encoder()
    large = ("x-bomb", "x" * BOMB_VALUE_BYTES)
    block = bytes(encoder.encode(grpc_headers(path), huffman=False))
    block += bytes(encoder.encode([large], huffman=False))
    block += bytes(encoder.encode([large])) * BOMB_REFERENCES
    with open_raw_http2(address, files) as http2:
        parts = [block[i : i + FRAME_MAX_BYTES] for i in range(0, len(block), FRAME_MAX_BYTES)]
        frames = [frame(HEADERS, END_STREAM, 1, parts[0])]
        frames += [frame(CONTINUATION, 0, 1, part) for part in parts[1:]]
        frames.append(frame(CONTINUATION, END_HEADERS, 1, b""))
        http2.send(b"".join(frames), FLOOD_TIMEOUT_S)
        http2.wait_answer(ANSWER_TIMEOUT_S)
        return HeaderFlood(len(block), http2.outcome)


def judge_oversized(history: History) -> Iterator[Finding]:
    """Each is refused, by a status or by the connection's end, and none is kept in memory.

    Another kind of server may have higher limits: it may answer a call with large metadata, and
    refuse a large command since it cannot be run.
    """
    seen, terms = history.the(OversizedCalls), terms_of(history)
    limits = terms.has_promised(OVERSIZED_NAME)
    call = history.call("large message")
    promise = f"a request of {MESSAGE_BYTES} bytes is refused for its size"
    yield answered(promise, call, "RESOURCE_EXHAUSTED", *(() if limits else terms.bad_command))
    promise = "a false message length is refused"
    kept = is_refused(seen.false_length)
    yield holds(promise, kept=kept, got=str(seen.false_length), want=REFUSED_WANT)
    metadata = seen.large_metadata
    if limits:
        promise, kept, want = "large metadata is refused", is_refused(metadata), REFUSED_WANT
    else:
        promise, kept = "large metadata is answered", metadata.end is not CallEnd.UNANSWERED
        want = "a status, or the connection's end"
    yield holds(promise, kept=kept, got=str(metadata), want=want)
    for promise, flood in (
        ("endless headers are refused", seen.endless_headers),
        ("compressed headers that expand are refused", seen.header_bomb),
    ):
        kept = flood.outcome.end is not CallEnd.UNANSWERED
        got = str(flood.outcome) if kept else f"{flood.sent_bytes} bytes were accepted"
        yield holds(promise, kept=kept, got=got, want=REFUSED_WANT)
    if seen.memory_grown_bytes is not None:
        yield at_most(
            "growth of peak memory in bytes", seen.memory_grown_bytes, MEMORY_BOUND_BYTES,
            MEMORY_WHY,
        )  # fmt: skip
    yield from judge_victim(history)


OVERSIZED: Final = Check(
    OVERSIZED_NAME,
    "Metadata and messages that are too large, or claim to be, are refused in bounded memory.",
    run_oversized, judge_oversized, NEEDS, ("82",), 180,
)  # fmt: skip
