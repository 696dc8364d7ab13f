"""Checks every byte of a load's stream on arrival, and reads the instants in it.

All messages have the same size, so an offset identifies the message: a stream may begin anywhere,
be interrupted anywhere and resumed, or miss what retention has dropped.
"""

import functools
import zlib
from array import array

from loadtests.emitter import CRC, FIELDS, HEAD_BYTES, MAGIC, PHASES, bodies

# One seed's bodies serve all readers of a job in a process.
_bodies = functools.lru_cache(maxsize=8)(bodies)


class Checker:
    """One stream's progress through a job's output.

    Attributes:
        offset: of the next byte.
        checked_bytes: bytes that were compared and correct.
        missed_bytes: bytes that the server dropped, as it reported.
        wrong: the first difference from what the job wrote; empty if all bytes are equal.
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
        self._kept = b""  # the begin of a message whose end has not arrived

    def miss(self, missed_bytes: int) -> None:
        """Continue after bytes that the server reported as dropped."""
        self.missed_bytes += missed_bytes
        self.offset += missed_bytes
        self._kept = b""

    def take(self, data: bytes, received_ns: int) -> None:
        """Check the next bytes."""
        begin = self.offset - len(self._kept)
        if self._kept:
            data = self._kept + data
        position = 0
        if begin % self._size:  # after a gap: only the end of this message arrived
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
        """Check the begin of a message whose end never arrived."""
        if self._kept and self.offset % self._size:
            self._compare_body_part(self._kept, self.offset - len(self._kept))

    def _take_message(self, data: bytes, position: int, number: int, received_ns: int) -> None:
        fields = FIELDS.unpack_from(data, position)
        magic, size, claimed, planned_ns, begun_ns, ready_ns = fields
        (crc,) = CRC.unpack_from(data, position + FIELDS.size)
        right = (
            magic == MAGIC
            and size == self._size
            and claimed == number
            and crc == zlib.crc32(data[position : position + FIELDS.size])
            and data.startswith(self._bodies[number % PHASES], position + HEAD_BYTES)
        )
        if not right:
            self._blame(number, f"message {claimed} of {size} bytes with magic {magic!r}")
            return
        self.checked_bytes += self._size
        self.rows.extend((number, planned_ns, begun_ns, ready_ns, received_ns))

    def _take_end(self, data: bytes, begin: int) -> int:
        """Check the end of a message whose head did not arrive; return its length."""
        rest = min(len(data), self._size - begin % self._size)
        self._compare_body_part(data[:rest], begin)
        return rest

    def _compare_body_part(self, part: bytes, begin: int) -> None:
        """Compare a part of one message, without the head, whose instants are unknown."""
        number, at = divmod(begin, self._size)
        known = part[max(0, HEAD_BYTES - at) :]
        start = max(0, at - HEAD_BYTES)
        if known and not self._bodies[number % PHASES].startswith(known, start):
            self._blame(number, "other bytes in a part of it")
            return
        self.checked_bytes += len(part)

    def _blame(self, number: int, got: str) -> None:
        if not self.wrong:
            self.wrong = f"at message {number} (offset {number * self._size}): {got}"
