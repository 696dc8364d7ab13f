"""The rpcs of `jobworker.v1`, each by a program; see `command_line`.

Threads: any; a call's program is read by the thread that made the call. `close` ends what is left.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import grpc
from google.protobuf.message import Message

from harness.dialects.command_answers import (
    MismatchError,
    fill,
    fill_jobs,
    shown,
)
from harness.dialects.command_table import CommandTable
from harness.dialects.command_values import (
    id_values,
    list_values,
    start_values,
    stop_values,
    stream_values,
)
from harness.dialects.command_words import Values, expand, expand_text
from harness.dialects.identity_scheme import Rpc
from harness.dialects.programs import (
    CancelledError,
    LateError,
    Program,
    TooLongError,
    UnpassableError,
)
from harness.record.terms import NOT_SENT, OVER
from jobworker.v1 import jobworker_pb2 as pb

# A stream whose program never exits: how often the job is queried while nothing comes, and how long
# it must have been silent after its job had ended.
_LOOK_S: Final = 0.5
_SILENT_S: Final = 1.0


class ProgramCallError(grpc.RpcError):
    """A call that a program did not fulfil."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        """Return its status."""
        return self._code

    def details(self) -> str:
        """Return its text."""
        return self._details


class CommandStub:
    """See `harness.dialects.dialect.Stub`.

    Shared state and its guard: `_programs`, `_closed` under `_lock`.
    """

    def __init__(self, table: CommandTable, values: Mapping[str, str]) -> None:
        self._table = table
        self._values = dict(values)
        self._environment = {
            **os.environ,
            **{name: expand_text(text, values) for name, text in table.environment.items()},
        }
        self._lock = threading.Lock()
        self._programs: set[Program] = set()
        self._closed = False

    def StartJob(  # noqa: N802
        self, request: pb.StartJobRequest, timeout: float | None = None
    ) -> pb.StartJobResponse:
        """Start a job."""
        values = start_values(request)
        response = pb.StartJobResponse()
        if "{new_id}" in str(self._table.words("start")):
            response.job_id = str(values["new_id"])
        self._answer("start", values, response, timeout)
        return response

    def StopJob(  # noqa: N802
        self, request: pb.StopJobRequest, timeout: float | None = None
    ) -> pb.StopJobResponse:
        """Stop a job."""
        response = pb.StopJobResponse(success=True)
        self._answer("stop", stop_values(request), response, timeout)
        return response

    def QueryJob(  # noqa: N802
        self, request: pb.QueryJobRequest, timeout: float | None = None
    ) -> pb.QueryJobResponse:
        """Query a job."""
        response = pb.QueryJobResponse()
        self._answer("query", id_values(request), response, timeout)
        return response

    def DeleteJob(  # noqa: N802
        self, request: pb.DeleteJobRequest, timeout: float | None = None
    ) -> pb.DeleteJobResponse:
        """Delete a job."""
        response = pb.DeleteJobResponse()
        self._answer("delete", id_values(request), response, timeout)
        return response

    def ListJobs(  # noqa: N802
        self, request: pb.ListJobsRequest, timeout: float | None = None
    ) -> pb.ListJobsResponse:
        """List the jobs."""
        response = pb.ListJobsResponse()
        output, _ = self._run("list", list_values(request), timeout)
        with _mismatch_as_status("list"):
            fill_jobs(response, self._table.answer("list"), output, self._table.states)
        return response

    def StreamLogs(  # noqa: N802
        self, request: pb.StreamLogsRequest, timeout: float | None = None
    ) -> "_StreamCall":
        """Return a job's output, as messages."""
        has_ended = None
        if self._table.stream_end == "query":
            query = pb.QueryJobRequest(job_id=request.job_id)

            def has_ended() -> bool:
                return bool(self.QueryJob(query, timeout=timeout).status in OVER)

            has_ended()  # of an unknown job such a program prints nothing
        program = self._start("stream", stream_values(request))
        return _StreamCall(program, self._due_s(timeout), self._fail_stream, self._end, has_ended)

    def close(self) -> None:
        """End the programs of all calls, which end with CANCELLED; no more are started."""
        with self._lock:
            self._closed = True
            programs = list(self._programs)
        for program in programs:
            program.cancel()
        for program in programs:
            program.close()

    def _end(self, program: Program) -> None:
        program.close()
        with self._lock:
            self._programs.discard(program)

    def _answer(
        self,
        call: Rpc,
        values: Values,
        response: Message,
        timeout: float | None,
    ) -> None:
        output, errors = self._run(call, values, timeout)
        with _mismatch_as_status(call):
            fill(response, self._table.answer(call), output, errors, self._table.states)
            for name in ("job_id", "status"):
                if call in {"start", "query"} and getattr(response, name, "given") == "":
                    said = shown((output + errors).strip())
                    raise MismatchError(f"printed {said}, in which no {name} was found")

    def _run(self, call: Rpc, values: Values, timeout: float | None) -> tuple[str, str]:
        """Run a call's program to its exit, and return its output and errors."""
        program = self._start(call, values)
        try:
            output = program.read_all(self._due_s(timeout)).decode("utf-8", "replace")
            errors = program.errors()
            self._fail(call, program.exit_code(), output, errors)
        except LateError:
            raise _late(program) from None
        except CancelledError:
            raise _cancelled() from None
        except TooLongError as error:
            raise ProgramCallError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        finally:
            self._end(program)
        return output, errors

    def _start(self, call: Rpc, values: Values) -> Program:
        """Start a call's program, which `_end` or `close` ends."""
        words = self._table.words(call)
        if not words:
            raise ProgramCallError(
                grpc.StatusCode.UNIMPLEMENTED, f"the dialect has no program for {call}"
            )
        try:
            program = Program(expand(words, {**self._values, **values}), self._environment)
        except UnpassableError as error:
            raise ProgramCallError(grpc.StatusCode.INVALID_ARGUMENT, f"{NOT_SENT}{error}") from None
        with self._lock:
            self._programs.add(program)
            closed = self._closed
        if closed:
            self._end(program)
            raise _cancelled()
        return program

    def _due_s(self, timeout: float | None) -> float | None:
        return None if timeout is None else time.monotonic() + timeout + self._table.startup_s

    def _fail(self, call: Rpc, exit_code: int, output: str, errors: str) -> None:
        failure = self._table.failure(call, exit_code, output, errors)
        if failure is not None:
            raise ProgramCallError(*failure)

    def _fail_stream(self, program: Program) -> None:
        self._fail("stream", program.exit_code(), "", program.errors())


class _StreamCall:
    """A stream: an iterable of messages, for one thread, that any thread can cancel."""

    def __init__(
        self,
        program: Program,
        due_s: float | None,
        fail: Callable[[Program], None],
        end: Callable[[Program], None],
        has_ended: Callable[[], bool] | None,
    ) -> None:
        self._program = program
        self._due_s = due_s
        self._fail = fail
        self._end = end
        self._has_ended = has_ended
        self._is_read = False

    def cancel(self) -> None:
        """End the stream with CANCELLED; any thread may call this."""
        self._program.cancel()

    def __iter__(self) -> Iterator[pb.StreamLogsResponse]:
        if self._is_read:
            return
        self._is_read = True
        try:
            for data in self._pieces():
                yield pb.StreamLogsResponse(message=data)
        except LateError:
            raise _late(self._program) from None
        except CancelledError:
            raise _cancelled() from None
        finally:
            self._end(self._program)

    def _pieces(self) -> Iterator[bytes]:
        if self._has_ended is None:
            while data := self._program.read(self._due_s):
                yield data
            self._fail(self._program)
            return
        ended_s = None  # since when the job is known to have ended, and nothing came
        while True:
            try:
                data = self._program.read(self._soon_s())
            except LateError:
                if self._due_s is not None and time.monotonic() >= self._due_s:
                    raise
                if ended_s is None:
                    ended_s = time.monotonic() if self._has_ended() else None
                elif time.monotonic() - ended_s >= _SILENT_S:
                    return
                continue
            if not data:
                self._fail(self._program)
                return
            ended_s = None
            yield data

    def _soon_s(self) -> float:
        soon_s = time.monotonic() + _LOOK_S
        return soon_s if self._due_s is None else min(soon_s, self._due_s)


@contextmanager
def _mismatch_as_status(call: str) -> Iterator[None]:
    """Turn output that does not fit the dialect into a status that a check reports."""
    try:
        yield
    except MismatchError as error:
        raise ProgramCallError(grpc.StatusCode.UNKNOWN, f"{call} {error}") from None


def _cancelled() -> ProgramCallError:
    return ProgramCallError(grpc.StatusCode.CANCELLED, "cancelled by the reader")


def _late(program: Program) -> ProgramCallError:
    lines = program.errors().strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    return ProgramCallError(grpc.StatusCode.DEADLINE_EXCEEDED, f"the program did not end{last}")
