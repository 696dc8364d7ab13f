"""HTTP/2 by hand over mutual TLS: calls whose frames are seen, and frames that no client sends.

`Http2` is a client that keeps to the protocol (the library h2 sees to that) but lets its windows
and its number of streams be chosen. `RawHttp2` sends any bytes and only watches how the server
takes them.
"""

import struct
from collections import Counter
from collections.abc import Callable, Sequence
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

from harness.drive.net.tls_client import TlsLine

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
FRAME_MAX_BYTES: Final = 16_384  # what every peer must take (RFC 9113, 4.2)
STREAMS_UNBOUNDED: Final = 2**31 - 1
_FRAME_HEADER_BYTES: Final = 9
_STATUS_NAMES: Final = {str(code.value[0]): code.name for code in grpc.StatusCode}
NO_ANSWER: Final = "no answer"

Header = tuple[str, str]


def grpc_headers(path: str, metadata: Sequence[Header] = ()) -> list[Header]:
    """Return what begins a call (gRPC over HTTP/2, Requests)."""
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
    """Return headers that no table remembers, so that the same bytes can be sent again."""
    return bytes(Encoder().encode([(name, value, True) for name, value in headers], huffman=False))


def error_name(code: int | None) -> str:
    """Return the name of an HTTP/2 error."""
    try:
        return ErrorCodes(code or 0).name
    except ValueError:
        return str(code)


class Http2:
    """A client on a connection; not its owner.

    Attributes:
        goaway: the error that the server ended the connection with; empty while it did not.
        streams_allowed: how many calls at a time the server announced; None: it did not.
    """

    def __init__(self, line: TlsLine, *, window_bytes: int | None = None) -> None:
        self._line = line
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
        self._status: dict[int, str] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._greeted = False
        self.goaway = ""
        self.streams_allowed: int | None = None

    def greet(self, timeout_s: float) -> bool:
        """Exchange settings; tell whether the server did."""
        return self._exchange(lambda: self._greeted, timeout_s)

    def ignore_stream_limit(self) -> None:
        """Go on as if the server had announced no maximum of calls."""
        self._h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = STREAMS_UNBOUNDED
        self._h2.remote_settings.acknowledge()

    def open(self, path: str, message: bytes, metadata: Sequence[Header] = ()) -> int:
        """Begin a call with its whole request, and return its stream; sent by what follows."""
        return self.open_raw(path, grpc_message(message), metadata)

    def open_raw(self, path: str, body: bytes, metadata: Sequence[Header] = ()) -> int:
        """Begin a call whose body is given as it is, its length included."""
        stream: int = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, grpc_headers(path, metadata))
        self._h2.send_data(stream, body, end_stream=True)
        return stream

    def open_half(self, path: str) -> int:
        """Begin a call without its request, and return its stream; sent by what follows."""
        stream: int = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, grpc_headers(path))
        return stream

    def answer(self, stream: int, timeout_s: float) -> str:
        """Wait for a call's end, and return its status by name, or how it was cut off."""
        self._exchange(lambda: stream in self._ended or bool(self.goaway), timeout_s)
        return self.outcome(stream)

    def outcome(self, stream: int) -> str:
        """Return how a call has ended so far."""
        if stream in self._status:
            return self._status[stream]
        if self.goaway:
            return f"GOAWAY {self.goaway}"
        return f"closed: {self._line.closed}" if self._line.closed else NO_ANSWER

    def call(self, path: str, message: bytes, timeout_s: float) -> str:
        """Make a call and return its status by name, or how it was cut off."""
        return self.answer(self.open(path, message), timeout_s)

    def wait_begun(self, streams: Sequence[int], timeout_s: float) -> bool:
        """Wait until all these calls are being answered; tell whether they are."""
        return self._exchange(lambda: self._begun.issuperset(streams), timeout_s)

    def wait_ended(self, streams: Sequence[int], timeout_s: float) -> bool:
        """Wait until all these calls have ended; tell whether they have."""
        return self._exchange(
            lambda: self._ended.issuperset(streams) or bool(self.goaway), timeout_s
        )

    def flush(self, timeout_s: float) -> bool:
        """Send what was begun; tell whether all of it went."""
        return self._exchange(lambda: True, timeout_s)

    def answer_pings(self, seconds: float) -> None:
        """Take what comes for some time, and answer what of it must be."""
        self._exchange(lambda: False, seconds)

    def _exchange(self, done: Callable[[], bool], timeout_s: float) -> bool:
        return self._line.exchange(self._h2.data_to_send(), self._take, done, timeout_s)

    def _take(self, data: bytes) -> bytes:
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as error:
            self.goaway = self.goaway or f"after a fault in what it sent: {type(error).__name__}"
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
                self._status[event.stream_id] = f"RESET {error_name(event.error_code)}"
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
            self._status[stream] = _STATUS_NAMES.get(status, status)
        elif headers.get(":status", "200") != "200":
            self._status[stream] = f"HTTP {headers[':status']}"


class RawHttp2:
    """Bytes of HTTP/2 on a connection, well-formed or not, and a look at what comes back.

    Attributes:
        goaway: the error that the server ended the connection with; empty while it did not.
        frames: how many of each kind came.
    """

    def __init__(self, line: TlsLine) -> None:
        self._line = line
        self._rest = b""
        self.goaway = ""
        self.frames: Counter[int] = Counter()

    @property
    def ended(self) -> str:
        """How the server ended the connection; empty while it has not."""
        return f"GOAWAY {self.goaway}" if self.goaway else self._line.closed

    def greet(self, timeout_s: float) -> bool:
        """Begin, with no settings of one's own; tell whether the server told its own."""
        begin = PREFACE + frame(SETTINGS, 0, 0, b"")
        return self._line.exchange(begin, self._take, lambda: self.frames[SETTINGS] > 0, timeout_s)

    def send(self, data: bytes, timeout_s: float) -> bool:
        """Send bytes, as far as the server takes them; tell whether it took all and goes on."""
        return self._line.exchange(data, self._take, lambda: True, timeout_s) and not self.ended

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the server has ended the connection; tell whether it has."""
        self._line.exchange(b"", self._take, lambda: bool(self.ended), timeout_s)
        return bool(self.ended)

    def wait_frames(self, kind: int, count: int, timeout_s: float) -> bool:
        """Wait until so many frames of a kind have come; tell whether they have."""

        def came() -> bool:
            return bool(self.ended) or self.frames[kind] >= count

        self._line.exchange(b"", self._take, came, timeout_s)
        return self.frames[kind] >= count

    def wait_answer(self, timeout_s: float) -> bool:
        """Wait for headers, a reset or the connection's end; tell whether one came."""

        def came() -> bool:
            return bool(self.ended or self.frames[HEADERS] or self.frames[RST_STREAM])

        self._line.exchange(b"", self._take, came, timeout_s)
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
            if kind == PING and not flags & ACK:  # an attacker that wants to stay connected
                answer += frame(PING, ACK, 0, payload)
        return answer
