"""HTTP/2 below gRPC, over mutual TLS: well-formed calls with chosen windows, and arbitrary frames.

`Http2` is a client that keeps to the protocol (the library h2 ensures that) but lets its windows
and its number of streams be chosen. `RawHttp2` sends any bytes and only watches the server's
reaction.
"""

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Encoder

from harness.drive.net.tls_client import TlsConnection

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
FRAME_MAX_BYTES: Final = 16_384  # what every peer must accept (RFC 9113, 4.2)
STREAMS_UNBOUNDED: Final = 2**31 - 1
_FRAME_HEADER_BYTES: Final = 9
_STATUS_NAMES: Final = {str(code.value[0]): code.name for code in grpc.StatusCode}

Header = tuple[str, str]


class CallEnd(StrEnum):
    """How a call made below gRPC ended; the values are shown in findings."""

    STATUS = "status"  # by a gRPC status, or an HTTP status other than 200
    RESET = "RESET"
    GOAWAY = "GOAWAY"
    CLOSED = "closed"
    UNCONNECTED = "refused"  # the connection or its handshake failed
    ANSWERED = "an answer or a reset"  # frames that were counted and not decoded
    UNANSWERED = "no answer"


# The server ended the call without a status.
CUT_OFF: Final = frozenset({CallEnd.RESET, CallEnd.GOAWAY, CallEnd.CLOSED})


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """How a call made below gRPC ended.

    Attributes:
        end: how.
        detail: the status, or the error, by name; empty if unknown.
    """

    end: CallEnd
    detail: str = ""

    def __str__(self) -> str:
        if self.end is CallEnd.STATUS:
            return self.detail
        separator = ": " if self.end in {CallEnd.CLOSED, CallEnd.UNCONNECTED} else " "
        return f"{self.end}{separator}{self.detail}" if self.detail else str(self.end)

    def is_status(self, *names: str) -> bool:
        """Return whether the call ended with one of these statuses."""
        return self.end is CallEnd.STATUS and self.detail in names


UNANSWERED: Final = CallOutcome(CallEnd.UNANSWERED)


def grpc_headers(path: str, metadata: Sequence[Header] = ()) -> list[Header]:
    """Return the headers of a call (gRPC over HTTP/2, Requests)."""
    return [
        (":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost"),
        ("te", "trailers"), ("content-type", "application/grpc"), *metadata,
    ]  # fmt: skip


def grpc_message(message: bytes) -> bytes:
    """Return a message with its length before it (gRPC over HTTP/2, Length-Prefixed-Message)."""
    return struct.pack("!?I", False, len(message)) + message


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame (RFC 9113, 4.1)."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def header_block(headers: Sequence[Header]) -> bytes:
    """Return never-indexed headers (RFC 7541, 6.2.3), so that the same bytes can be sent again."""
    return bytes(Encoder().encode([(name, value, True) for name, value in headers], huffman=False))


def error_name(code: int | None) -> str:
    """Return the name of an HTTP/2 error."""
    try:
        return ErrorCodes(code or 0).name
    except ValueError:
        return str(code)


class Http2:
    """A client on a connection, which it does not close.

    Attributes:
        goaway: the error of the server's GOAWAY; empty before one came.
        streams_allowed: the announced maximum of concurrent calls; None: not announced.
    """

    def __init__(self, connection: TlsConnection, *, window_bytes: int | None = None) -> None:
        self._connection = connection
        self._h2 = H2Connection(
            H2Configuration(
                client_side=True, header_encoding="utf-8", validate_outbound_headers=False
            )
        )
        self._opens_windows = window_bytes is None
        if window_bytes is not None:
            values = {SettingCodes.INITIAL_WINDOW_SIZE: window_bytes}
            self._h2.local_settings = Settings(client=True, initial_values=values)
        self._h2.initiate_connection()
        self._outcomes: dict[int, CallOutcome] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._greeted = False
        self.goaway = ""
        self.streams_allowed: int | None = None

    def greet(self, timeout_s: float) -> bool:
        """Exchange settings; return whether the server sent its own."""
        return self._exchange(lambda: self._greeted, timeout_s)

    def ignore_stream_limit(self) -> None:
        """Ignore the maximum of concurrent calls that the server announced."""
        self._h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = STREAMS_UNBOUNDED
        self._h2.remote_settings.acknowledge()

    def open(self, path: str, message: bytes, metadata: Sequence[Header] = ()) -> int:
        """Begin a call with its whole request and return its stream; the next exchange sends it."""
        return self.open_raw(path, grpc_message(message), metadata)

    def open_raw(self, path: str, body: bytes, metadata: Sequence[Header] = ()) -> int:
        """Begin a call with a body that is sent unchanged, its length prefix included."""
        stream: int = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, grpc_headers(path, metadata))
        self._h2.send_data(stream, body, end_stream=True)
        return stream

    def open_half(self, path: str) -> int:
        """Begin a call without its request and return its stream; the next exchange sends it."""
        stream: int = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, grpc_headers(path))
        return stream

    def answer(self, stream: int, timeout_s: float) -> CallOutcome:
        """Wait for a call's end, and return how it ended."""
        self._exchange(lambda: stream in self._ended or bool(self.goaway), timeout_s)
        return self.outcome(stream)

    def outcome(self, stream: int) -> CallOutcome:
        """Return how a call has ended so far."""
        if stream in self._outcomes:
            return self._outcomes[stream]
        return _connection_end(self.goaway, self._connection) or UNANSWERED

    def call(self, path: str, message: bytes, timeout_s: float) -> CallOutcome:
        """Make a call and return how it ended."""
        return self.answer(self.open(path, message), timeout_s)

    def wait_begun(self, streams: Sequence[int], timeout_s: float) -> bool:
        """Wait until the server has begun to answer all these calls; return whether it has."""
        return self._exchange(lambda: self._begun.issuperset(streams), timeout_s)

    def wait_ended(self, streams: Sequence[int], timeout_s: float) -> bool:
        """Wait until all these calls have ended; return whether they have."""
        return self._exchange(
            lambda: self._ended.issuperset(streams) or bool(self.goaway), timeout_s
        )

    def flush(self, timeout_s: float) -> bool:
        """Send all calls that were begun; return whether all bytes were sent."""
        return self._exchange(lambda: True, timeout_s)

    def answer_pings(self, seconds: float) -> None:
        """Receive for some time, and acknowledge pings and settings."""
        self._exchange(lambda: False, seconds)

    def _exchange(self, done: Callable[[], bool], timeout_s: float) -> bool:
        return self._connection.exchange(self._h2.data_to_send(), self._take, done, timeout_s)

    def _take(self, data: bytes) -> bytes:
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as error:
            self.goaway = (
                self.goaway or f"after an invalid frame of its own: {type(error).__name__}"
            )
            return b""
        for event in events:
            self._note(event)
        return bytes(self._h2.data_to_send())

    def _note(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                self._greeted = True
                changed = event.changed_settings.get(SettingCodes.MAX_CONCURRENT_STREAMS)
                if changed is not None:
                    self.streams_allowed = changed.new_value
            case ResponseReceived() | TrailersReceived():
                self._note_headers(
                    event.stream_id, {str(name): str(value) for name, value in event.headers}
                )
            case DataReceived():
                if self._opens_windows:
                    self._h2.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
            case StreamReset():
                name = error_name(event.error_code)
                self._outcomes[event.stream_id] = CallOutcome(CallEnd.RESET, name)
                self._ended.add(event.stream_id)
            case StreamEnded():
                self._ended.add(event.stream_id)
            case ConnectionTerminated():
                self.goaway = error_name(event.error_code)
            case _:
                pass

    def _note_headers(self, stream: int, headers: dict[str, str]) -> None:
        self._begun.add(stream)
        status = headers.get("grpc-status")
        if status is not None:
            name = _STATUS_NAMES.get(status, status)
            self._outcomes[stream] = CallOutcome(CallEnd.STATUS, name)
        elif headers.get(":status", "200") != "200":
            self._outcomes[stream] = CallOutcome(CallEnd.STATUS, f"HTTP {headers[':status']}")


def _connection_end(goaway: str, connection: TlsConnection) -> CallOutcome | None:
    if goaway:
        return CallOutcome(CallEnd.GOAWAY, goaway)
    return CallOutcome(CallEnd.CLOSED, connection.closed) if connection.closed else None


class RawHttp2:
    """Sends any bytes on a connection, well-formed or not, and counts the frames that come back.

    Attributes:
        goaway: the error of the server's GOAWAY; empty before one came.
        frames: how many of each kind were received.
    """

    def __init__(self, connection: TlsConnection) -> None:
        self._connection = connection
        self._rest = b""
        self.goaway = ""
        self.frames: Counter[int] = Counter()

    @property
    def ended(self) -> CallOutcome | None:
        """How the server ended the connection; None while it is open."""
        return _connection_end(self.goaway, self._connection)

    @property
    def outcome(self) -> CallOutcome:
        """How the only call on the connection has ended so far."""
        if self.ended is not None:
            return self.ended
        answered = self.frames[RST_STREAM] or self.frames[HEADERS]
        return CallOutcome(CallEnd.ANSWERED) if answered else UNANSWERED

    def greet(self, timeout_s: float) -> bool:
        """Send the preface and empty settings; return whether the server sent its settings."""
        begin = PREFACE + frame(SETTINGS, 0, 0, b"")
        return self._connection.exchange(
            begin, self._take, lambda: self.frames[SETTINGS] > 0, timeout_s
        )

    def send(self, data: bytes, timeout_s: float) -> bool:
        """Send bytes; return whether the server accepted all and keeps the connection open."""
        return (
            self._connection.exchange(data, self._take, lambda: True, timeout_s) and not self.ended
        )

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the server has ended the connection; return whether it has."""
        self._connection.exchange(b"", self._take, lambda: self.ended is not None, timeout_s)
        return self.ended is not None

    def wait_frames(self, kind: int, count: int, timeout_s: float) -> bool:
        """Wait until so many frames of a kind were received; return whether they were."""

        def came() -> bool:
            return self.ended is not None or self.frames[kind] >= count

        self._connection.exchange(b"", self._take, came, timeout_s)
        return self.frames[kind] >= count

    def wait_answer(self, timeout_s: float) -> bool:
        """Wait for headers, a reset or the connection's end; return whether one was received."""

        def came() -> bool:
            return self.outcome.end is not CallEnd.UNANSWERED

        self._connection.exchange(b"", self._take, came, timeout_s)
        return came()

    def _take(self, data: bytes) -> bytes:
        self._rest += data
        answer = b""
        while len(self._rest) >= _FRAME_HEADER_BYTES:
            length = int.from_bytes(self._rest[:3])
            kind, flags = self._rest[3], self._rest[4]
            end = _FRAME_HEADER_BYTES + length
            if len(self._rest) < end:
                break
            payload, self._rest = self._rest[_FRAME_HEADER_BYTES:end], self._rest[end:]
            self.frames[kind] += 1
            if kind == GOAWAY:
                self.goaway = error_name(int.from_bytes(payload[4:8]))
            if kind == SETTINGS and not flags & ACK:
                answer += frame(SETTINGS, ACK, 0, b"")
            if kind == PING and not flags & ACK:  # an attacker stays connected
                answer += frame(PING, ACK, 0, payload)
        return answer
