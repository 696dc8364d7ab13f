"""Standard output and standard error that lose nothing and end no program with a traceback.

Guarantees:
- Output is never dropped: a write to a full, non-blocking descriptor waits until there is room.
  Any other failed write of standard output is an `OutputError`. Errors of standard error are
  ignored.
- A character that the encoding lacks is escaped.
"""

import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final, TextIO

from harness.record.verdict import BrokenError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STANDARD_ERROR: Final = 2


class OutputError(BrokenError):
    """Standard output cannot be written."""


class NoReaderError(OutputError):
    """Standard output is a pipe whose reader has closed it, like that of `head`."""


def _write_some(descriptor: int, data: memoryview) -> int:
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()
        except BrokenPipeError:
            raise NoReaderError("standard output was closed by its reader") from None
        except OSError as error:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None


class _Descriptor(io.RawIOBase):
    """A standard stream that writes all bytes; standard error as many as possible."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view:
                view = view[_write_some(self._descriptor, view) :]
        except OutputError:
            if self._descriptor != _STANDARD_ERROR:
                raise
        return size


def install_streams() -> None:
    """Replace Python's standard output and error.

    Closed descriptors are opened first, so that no file or socket of the program becomes its
    standard output; writing there still fails.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= _STANDARD_ERROR:
        continue
    os.close(descriptor)
    sys.stdout = text_stream(1, sys.stdout)
    sys.stderr = text_stream(_STANDARD_ERROR, sys.stderr)


def text_stream(descriptor: int, previous: TextIO | None) -> TextIO:
    """Return a stream for a descriptor, in the encoding of the one that it replaces."""
    # Python has no stream if the descriptor was closed when the program started.
    encoding = previous.encoding if previous is not None else "utf-8"
    return io.TextIOWrapper(
        _Descriptor(descriptor),  # type: ignore[type-var]
        encoding=encoding,
        errors="backslashreplace",
        write_through=True,
    )
