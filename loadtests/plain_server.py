"""What plain synchronous grpcio makes of a load: the server that figures are shares of.

It implements `jobworker.v1` as far as loads call it, and does nothing else that takes time: a start
is a pipe and a `posix_spawn` in the handler; each piece of output is encoded once for all readers;
each stream's thread waits for a queue of its own, in C. It has no authorization, audit, limits,
bound of memory or cancellation: a limit to compare with, not a server to use.

    python -m loadtests.plain_server --listen HOST:PORT --ca FILE --cert FILE --key FILE

Shared state and its guard: what `_Output` has from `_messages` on under its lock; of `_Service`
`_running`, `_early` and how each job ended under its lock. An entry of `_jobs` is written once,
before any client knows its id.
"""

import argparse
import fcntl
import os
import queue
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from harness.host.cert_files import CertFiles
from jobworker.v1 import jobworker_pb2 as pb
from loadtests.limits import listen

COMMAND: Final = (
    "{python} -m loadtests.plain_server --listen {listen} --ca {ca} --cert {cert} --key {key}"
)
# As large as the pipe, and as gRPC's clients accept them by default.
PIECE_BYTES: Final = 1024 * 1024
# A read allocates as much as it may return, so after a small one the next is not for a large one.
_READ_MIN_BYTES: Final = 64 * 1024
# More than a load's streams: their threads wait for output, and calls need some, too.
_THREADS_BESIDE_STREAMS: Final = 64


class _Output:
    """A job's output; it is read from the first stream or query on, or once the job has ended."""

    def __init__(self, pid: int, read_fd: int) -> None:
        self._pid = pid
        self._read_fd = read_fd
        self._lock = threading.Lock()
        self._messages: list[bytes] = []
        self._parts: list[bytes] = []  # the next message's, while no stream waits for it
        self._part_bytes = self._offset = 0
        self._followers: list[queue.SimpleQueue[bytes | None]] = []
        self._begun = self._ended = False

    def begin(self) -> None:
        """Read it on a thread of its own."""
        if self._begins():
            threading.Thread(target=self._read, daemon=True).start()

    def take_rest(self) -> None:
        """Read what an ended job left, unless it is being read."""
        if self._begins():
            self._read()

    def has_ended(self) -> bool:
        """Return whether all of it has been read, and the job has ended."""
        with self._lock:
            return self._ended

    def follow(self) -> Iterator[bytes]:
        """Yield it from its beginning, as encoded messages, until the job ends."""
        self.begin()
        follower: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with self._lock:
            self._finish_message()
            before, ended = list(self._messages), self._ended
            self._followers.append(follower)
        yield from before
        if not ended:
            yield from iter(follower.get, None)

    def _begins(self) -> bool:
        with self._lock:
            begins, self._begun = not self._begun, True
        return begins

    def _read(self) -> None:
        size_bytes = _READ_MIN_BYTES
        while part := os.read(self._read_fd, size_bytes):
            size_bytes = min(max(2 * len(part), _READ_MIN_BYTES), PIECE_BYTES)
            with self._lock:
                if self._part_bytes + len(part) > PIECE_BYTES:
                    self._finish_message()
                self._parts.append(part)
                self._part_bytes += len(part)
                if self._followers:
                    self._finish_message()
        os.close(self._read_fd)
        with suppress(ChildProcessError):  # it has been reaped
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._finish_message()
            self._ended = True
            for follower in self._followers:
                follower.put(None)

    def _finish_message(self) -> None:
        if not self._parts:
            return
        # Encoded by hand: the protobuf library would copy it twice.
        head = pb.StreamLogsResponse(offset=self._offset).SerializeToString()
        message = b"".join([head, b"\x0a", _varint(self._part_bytes), *self._parts])
        self._offset += self._part_bytes
        self._parts, self._part_bytes = [], 0
        self._messages.append(message)
        for follower in self._followers:
            follower.put(message)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits of each byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a process ended: its exit code, or the signal that ended it (the other is 0)."""

    exit_code: int
    signal: int


@dataclass(slots=True)
class _Job:
    """A process; `ending` once it has been reaped."""

    pid: int
    output: _Output
    ending: _Ending | None = None


class _Service:
    """The rpcs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._running: dict[int, _Job] = {}
        self._early: dict[int, _Ending] = {}  # of those reaped before their start went on

    def start(self, request: pb.StartJobRequest, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - the generated messages have no types
        """Start a process, and release those that have ended."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        with suppress(PermissionError):  # the user's limit on pipe memory is reached
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
        words = [request.command_name, *request.command_args]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write_fd, 1), (os.POSIX_SPAWN_DUP2, write_fd, 2),
        ]  # fmt: skip
        try:
            pid = os.posix_spawnp(
                words[0], words, {"PATH": os.environ["PATH"]}, file_actions=actions, setsid=True
            )
        except OSError as error:
            os.close(read_fd)
            context.abort(grpc.StatusCode.NOT_FOUND, f"{words[0]}: {error}")
        finally:
            os.close(write_fd)
        job = _Job(pid, _Output(pid, read_fd))
        with self._lock:
            job.ending = self._early.pop(pid, None)
            if job.ending is None:
                self._running[pid] = job
        if job.ending is not None:
            job.output.take_rest()
        job_id = str(uuid.uuid4())
        self._jobs[job_id] = job
        self._reap()
        return pb.StartJobResponse(job_id=job_id, message="started")

    def stop(self, request: pb.StopJobRequest, _context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - as above
        """End a job's main process."""
        job = self._jobs[request.job_id]
        with self._lock:
            if job.ending is None:
                os.kill(job.pid, signal.SIGTERM)
        with suppress(ChildProcessError):  # another call has reaped it
            os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
        self._reap()
        return pb.StopJobResponse(success=True, message="stopped")

    def query(self, request: pb.QueryJobRequest, _context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - as above
        """Return a job's status; it has ended once its output has."""
        job = self._jobs[request.job_id]
        job.output.begin()
        self._reap()
        ending = job.ending
        if ending is None or not job.output.has_ended():
            return pb.QueryJobResponse(status="running", pid=job.pid)
        return pb.QueryJobResponse(
            status="signaled" if ending.signal else "exited",
            pid=job.pid, exit_code=ending.exit_code, signal=ending.signal,
        )  # fmt: skip

    def stream(
        self, request: pb.StreamLogsRequest, _context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Send a job's whole output."""
        return self._jobs[request.job_id].output.follow()

    def _reap(self) -> None:
        ended = []
        with self._lock, suppress(ChildProcessError):  # no child is left
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                status = found.si_status
                by_itself = found.si_code == os.CLD_EXITED
                ending = _Ending(status, 0) if by_itself else _Ending(0, status)
                job = self._running.pop(found.si_pid, None)
                if job is None:
                    self._early[found.si_pid] = ending
                else:
                    job.ending = ending
                    ended.append(job)
        for job in ended:
            job.output.take_rest()


def _handlers(service: _Service) -> grpc.GenericRpcHandler:
    def unary(work: Callable[..., Any], request: Any) -> Any:  # noqa: ANN401 - as above
        return grpc.unary_unary_rpc_method_handler(
            work, request.FromString, lambda response: response.SerializeToString()
        )

    return grpc.method_handlers_generic_handler(
        "jobworker.v1.JobWorker",
        {
            "StartJob": unary(service.start, pb.StartJobRequest),
            "StopJob": unary(service.stop, pb.StopJobRequest),
            "QueryJob": unary(service.query, pb.QueryJobRequest),
            "StreamLogs": grpc.unary_stream_rpc_method_handler(
                service.stream, pb.StreamLogsRequest.FromString
            ),
        },
    )


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    for name in ("listen", "ca", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--streams", type=int, default=1000)
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(options.streams + _THREADS_BESIDE_STREAMS))
    server.add_generic_rpc_handlers((_handlers(_Service()),))
    files = CertFiles(*map(Path, (options.ca, options.cert, options.key)))
    listen(server, options.listen, files)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
