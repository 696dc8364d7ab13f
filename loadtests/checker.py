"""Checks every byte of a load's stream as it comes, and takes the instants out of it.

Messages have one size, so the offset of a byte tells which message it belongs to: a stream may
begin anywhere, be cut anywhere and taken up again, or miss what retention has dropped.
"""

import functools
import zlib
from array import array

from loadtests.emitter import CRC, FIELDS, HEAD_BYTES, MAGIC, PHASES, bodies

# One seed's bodies serve all readers of a job in a process.
_bodies = functools.lru_cache(maxsize=8)(bodies)


class Checker:
    """One stream's way through a job's output.

    Attributes:
        offset: of the next byte.
        checked_bytes: how many bytes were compared and found right.
        missed_bytes: how many the server said that it dropped.
        wrong: what was not as the job wrote it; empty when nothing was.
        rows: per whole message `number, planned_ns, begun_ns, ready_ns, received_ns`, flat.
    """

    def __init__(self, seed: str, message_bytes: int) -> None:
        self.offset = 0
        self.checked_bytes = 0
        self.missed_bytes = 0
        self.wrong = ""
        self.rows = array("q")
        self._size = message_bytes
        self._bodies = _bodies(seed, message_bytes)
        self._kept = b""  # the begin of a message whose end has not come yet

    def miss(self, missed_bytes: int) -> None:
        """Go on after bytes that the server dropped, as it said."""
        self.missed_bytes += missed_bytes
        self.offset += missed_bytes
        self._kept = b""

    def take(self, data: bytes, received_ns: int) -> None:
        """Check the next bytes."""
        begin = self.offset - len(self._kept)
        if self._kept:
            data = self._kept + data
        position = 0
        if begin % self._size:  # after a gap: a message of which only the end is here
            position = self._take_end(data, begin)
        end = len(data)
        number = (begin + position) // self._size
        while end - position >= self._size:
            self._take_message(data, position, number, received_ns)
            position += self._size
            number += 1
        self.offset = begin + end
        self._kept = data[position:]

    def finish(self) -> None:
        """Check what is left of a message that was cut off."""
        if self._kept and self.offset % self._size:
            self._compare_body_part(self._kept, self.offset - len(self._kept))

    def _take_message(self, data: bytes, position: int, number: int, received_ns: int) -> None:
        fields = FIELDS.unpack_from(data, position)
        magic, size, said, planned_ns, begun_ns, ready_ns = fields
        (crc,) = CRC.unpack_from(data, position + FIELDS.size)
        right = (
            magic == MAGIC
            and size == self._size
            and said == number
            and crc == zlib.crc32(data[position : position + FIELDS.size])
            and data.startswith(self._bodies[number % PHASES], position + HEAD_BYTES)
        )
        if not right:
            self._blame(number, f"message {said} of {size} bytes with magic {magic!r}")
            return
        self.checked_bytes += self._size
        self.rows.extend((number, planned_ns, begun_ns, ready_ns, received_ns))

    def _take_end(self, data: bytes, begin: int) -> int:
        """Check the end of a message whose head is not here; return how long it is."""
        rest = min(len(data), self._size - begin % self._size)
        self._compare_body_part(data[:rest], begin)
        return rest

    def _compare_body_part(self, part: bytes, begin: int) -> None:
        """Compare a part of one message; what of it is in the head cannot be known."""
        number, at = divmod(begin, self._size)
        known = part[max(0, HEAD_BYTES - at) :]
        start = max(0, at - HEAD_BYTES)
        if known and not self._bodies[number % PHASES].startswith(known, start):
            self._blame(number, "a part with other bytes")
            return
        self.checked_bytes += len(part)

    def _blame(self, number: int, got: str) -> None:
        if not self.wrong:
            self.wrong = f"at message {number} (offset {number * self._size}): {got}"
