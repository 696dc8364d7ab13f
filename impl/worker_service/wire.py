"""Conversions between messages and limits, usage and times, for server and client."""

import datetime as dt
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.v1 import jobworker_pb2 as pb
from worker_service.cgroup import IoMax, Limits, Usage
from worker_service.log import Chunk


def limits_to_message(limits: Limits | None) -> pb.ResourceLimits | None:
    """Return the message; None stays None."""
    if limits is None:
        return None
    ceilings = [
        pb.IoMax(
            device=ceiling.device,
            read_bytes_per_second=ceiling.read_bytes_per_second,
            write_bytes_per_second=ceiling.write_bytes_per_second,
            read_operations_per_second=ceiling.read_operations_per_second,
            write_operations_per_second=ceiling.write_operations_per_second,
        )
        for ceiling in limits.io_max
    ]
    return pb.ResourceLimits(
        cpu_millicores=limits.cpu_millicores,
        memory_max_bytes=limits.memory_max_bytes,
        io_weight=limits.io_weight,
        io_max=ceilings,
        pids_max=limits.pids_max,
    )


def limits_from_message(message: pb.ResourceLimits) -> Limits:
    """Return the limits; an absent field is None."""
    return Limits(
        cpu_millicores=_present(message, "cpu_millicores"),
        memory_max_bytes=_present(message, "memory_max_bytes"),
        io_weight=_present(message, "io_weight"),
        io_max=tuple(
            IoMax(
                device=ceiling.device,
                read_bytes_per_second=_present(ceiling, "read_bytes_per_second"),
                write_bytes_per_second=_present(ceiling, "write_bytes_per_second"),
                read_operations_per_second=_present(ceiling, "read_operations_per_second"),
                write_operations_per_second=_present(ceiling, "write_operations_per_second"),
            )
            for ceiling in message.io_max
        ),
        pids_max=_present(message, "pids_max"),
    )


def usage_to_message(usage: Usage | None) -> pb.ResourceUsage | None:
    """Return the message; None stays None."""
    if usage is None:
        return None
    return pb.ResourceUsage(**{name: getattr(usage, name) for name in Usage.__slots__})


def usage_from_message(message: pb.ResourceUsage) -> Usage:
    """Return the usage; message and class use the same names."""
    return Usage(**{name: getattr(message, name) for name in Usage.__slots__})


def timestamp(seconds: float | None) -> Timestamp | None:
    """Return a timestamp for seconds since the epoch; None stays None."""
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def moment(message: object, field: str) -> dt.datetime | None:
    """Return a message's timestamp field in UTC, or None if it is absent."""
    if not message.HasField(field):  # type: ignore[attr-defined]
        return None
    stamp: dt.datetime = getattr(message, field).ToDatetime(dt.UTC)
    return stamp


# Tags of StreamLogsResponse: message = 1 (bytes), offset = 16 and missed_bytes = 17 (varints).
_MESSAGE_TAG: Final = b"\x0a"
_OFFSET_TAG: Final = b"\x80\x01"
_MISSED_BYTES_TAG: Final = b"\x88\x01"


def encode_output(chunk: Chunk) -> bytes:
    """Return a serialized `StreamLogsResponse`.

    Encoded by hand, because all output passes here: this is the only copy of it. Protobuf would
    copy it into a message, and copy it again to serialize that.
    """
    parts: list[bytes | memoryview] = [_OFFSET_TAG, _varint(chunk.offset)]
    if chunk.data:
        parts = [_MESSAGE_TAG, _varint(len(chunk.data)), chunk.data, *parts]
    if chunk.missed_bytes:
        parts += [_MISSED_BYTES_TAG, _varint(chunk.missed_bytes)]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _present(message: pb.ResourceLimits | pb.IoMax, field: str) -> int | None:
    return int(getattr(message, field)) if message.HasField(field) else None
