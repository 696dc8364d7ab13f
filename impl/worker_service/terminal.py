"""The command's output, errors and exit codes.

Guarantees:
- Output is never dropped: a write to a full, non-blocking descriptor waits until there is room.
  Any other failed write of standard output is an error, not a traceback.
- Text stays on its line: control characters, which servers could use to forge lines or to send
  commands to the terminal, are escaped. A job's output is written unchanged, by `write_some`.
- A character that the encoding lacks is escaped.
- A failure is one line on standard error and an exit code. Errors of standard error are ignored.
"""

import dataclasses
import datetime as dt
import io
import json
import os
import select
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGPIPE
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

import grpc

from worker_service.client import CallError, Job, Output
from worker_service.errors import JobWorkerError
from worker_service.resume import JobGoneError, StreamBrokenError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_FOUND: Final = 3
EXIT_NOT_ALLOWED: Final = 4
EXIT_UNREACHABLE: Final = 5
EXIT_INTERRUPTED: Final = 128 + SIGINT
EXIT_NO_READER: Final = 128 + SIGPIPE

_EXIT_CODES: Final = {
    grpc.StatusCode.NOT_FOUND: EXIT_NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_NOT_ALLOWED,
    grpc.StatusCode.PERMISSION_DENIED: EXIT_NOT_ALLOWED,
    grpc.StatusCode.UNAVAILABLE: EXIT_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: EXIT_UNREACHABLE,
}


class OutputError(JobWorkerError):
    """Standard output cannot be written."""


class NoReaderError(JobWorkerError):
    """Standard output is a pipe whose reader has closed it, like that of `head`."""


def write_some(descriptor: int, data: "ReadableBuffer") -> int:
    """Write at least one byte, and return how many; wait for room if necessary.

    Raises:
        OutputError, NoReaderError: nothing was written.
    """
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
    """A standard stream: writes all bytes or, if they are not required, as many as possible."""

    def __init__(self, descriptor: int, *, required: bool) -> None:
        self._descriptor = descriptor
        self._required = required

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
                view = view[write_some(self._descriptor, view) :]
        except (OutputError, NoReaderError):
            if self._required:
                raise
        return size


def install_streams() -> None:
    """Replace Python's standard output and error, which lose data or raise where these do not."""
    sys.stdout = _text_stream(1, sys.stdout, required=True)
    sys.stderr = _text_stream(2, sys.stderr, required=False)


def _text_stream(descriptor: int, previous: TextIO | None, *, required: bool) -> TextIO:
    # Python has no stream if the descriptor was closed when the program started.
    encoding = previous.encoding if previous is not None else "utf-8"
    return io.TextIOWrapper(
        _Descriptor(descriptor, required=required),  # type: ignore[type-var]
        encoding=encoding,
        errors="backslashreplace",
        write_through=True,
    )


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """Write one line, with all unprintable characters escaped."""
    stream = sys.stderr if to_stderr else sys.stdout
    stream.write("".join(map(_visible, text)) + "\n")
    stream.flush()


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def print_json(value: dict[str, object], *, to_stderr: bool = False) -> None:
    """Write one line of JSON, in ASCII if the text would not arrive as it is."""
    stream = sys.stderr if to_stderr else sys.stdout
    text = json.dumps(value, ensure_ascii=False)
    encoding = stream.encoding or "utf-8"
    if not text.isprintable() or text.encode(encoding, "ignore").decode(encoding) != text:
        text = json.dumps(value)
    stream.write(text + "\n")
    stream.flush()


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """End the program with one line and an exit code if the work fails."""
    try:
        yield
    except CallError as error:
        fail(f"{error} [{error.code.name}]", _EXIT_CODES.get(error.code, EXIT_FAILED))
    except NoReaderError:
        sys.exit(EXIT_NO_READER)
    except JobWorkerError as error:
        fail(str(error), EXIT_FAILED)


def fail(text: str, exit_code: int) -> NoReturn:
    """Report an error as one line, and end the program."""
    warn(" ".join(text.split()))
    sys.exit(exit_code)


def warn(text: str) -> None:
    """Write one line about the command itself to standard error."""
    print_line(f"worker-service: {text}", to_stderr=True)


def copy_output(outputs: Iterable[Output]) -> None:
    """Write output as it arrives; if that breaks, report where to resume."""
    next_offset = None
    descriptor = sys.stdout.fileno()
    try:
        for output in outputs:
            if output.missed_bytes:
                warn(
                    f"{output.missed_bytes} bytes before offset {output.offset} are no longer kept "
                    "by the server"
                )
            next_offset = output.offset
            view = memoryview(output.data)
            while view:
                written = write_some(descriptor, view)
                view = view[written:]
                next_offset += written
    except (CallError, OutputError) as error:
        if next_offset is not None and not isinstance(error, JobGoneError):
            error.args = (f"{error}; resume with --from-offset {next_offset}",)
        raise


def warn_of_break(broken: StreamBrokenError) -> None:
    """Report an interruption once, however many attempts it takes to resume."""
    if broken.attempts == 1:
        warn(f"interrupted after {broken.received_bytes} bytes, reconnecting: {broken}")


JOB_ROW_HEADER: Final = (
    f"{'JOB ID':36}  {'STATE':12}  {'STARTED (UTC)':19}  {'OUTPUT KEPT':>15}  COMMAND"
)


def job_row(job: Job) -> str:
    """Return a job as a row of a list."""
    state = job.status if job.running else f"{job.status} {job.signal or job.exit_code}"
    started = f"{job.started_at:%Y-%m-%d %H:%M:%S}" if job.started_at else "-"
    output = f"{job.log_first_offset or 0}..{job.log_size_bytes or 0}"
    return f"{job.job_id:36}  {state:12}  {started:19}  {output:>15}  {shlex.join(job.command)}"


def as_dict(job: Job) -> dict[str, object]:
    """Return a job for printing: times as text, absent values as None."""

    def plain(value: object) -> object:
        if isinstance(value, dt.datetime):
            return value.isoformat()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return value

    return {each.name: plain(getattr(job, each.name)) for each in dataclasses.fields(job)}


def details(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each present value with its name, like `limits.cpu_millicores`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from details(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            numbered = {f"{name}[{index}]": item for index, item in enumerate(value)}
            yield from details(numbered, prefix)
        elif value not in {None, ""}:
            yield f"{prefix}{name}", value
