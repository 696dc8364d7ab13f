"""A process of the generator that reads streams; `generator` starts it and controls it by stdin.

The first line is a `ReaderOrder` in JSON. Then `go INSTANT` begins the late joiners' time, `leave`
makes the slow readers disconnect, and the end of input (the generator died) ends it at once. It
writes `WorkerMessage`s: ready before it reads, joined when a stream has its first byte, lost when
one ends without, its report at the end. The instants go into a file.

All streams share one thread, by grpc.aio: compared with a thread per stream it uses a third of the
processor time for a hundred streams, and leaves more to the server (docs/load.md). A second thread
reads stdin, and hands each line to the event loop.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from array import array
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np

from harness.dialects.channel import MESSAGE_MAX_BYTES, NO_PROXY
from harness.dialects.load import load_dialect
from harness.host.cert_files import CertFiles
from jobworker.v1 import jobworker_pb2 as pb
from loadtests.checker import Checker
from loadtests.emitter import MONOTONIC
from loadtests.observe import Hiccups, measure_loop
from loadtests.record import LATE, LEFT, MESSAGE_COLUMNS, SLOW, StreamEnd
from loadtests.worker_message import WorkerMessage, WorkerReport, say


@dataclass(frozen=True, slots=True)
class StreamOrder:
    """One stream to read.

    Attributes:
        number: of the stream, among all of the load.
        job_id, seed, message_bytes: the job and its output.
        kind: EARLY, LATE or SLOW.
        join_after_s: after the instant of `go`; for LATE ones.
        bytes_per_s: largest rate; for SLOW ones.
        cut_every_bytes: disconnect and resume after this many; 0: never.
        timeout_s: the deadline of each call.
    """

    number: int
    job_id: str
    seed: str
    message_bytes: int
    kind: str
    timeout_s: float
    join_after_s: float = 0.0
    bytes_per_s: float = 0.0
    cut_every_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ReaderOrder:
    """The streams of a process; `options` are gRPC's, for each connection.

    `dialect` is how the server is spoken to, see `Dialect.source`.
    """

    address: str
    files: tuple[str, str, str]
    dialect: str
    clock: str
    file: str
    options: tuple[tuple[str, int | str], ...]
    streams: tuple[StreamOrder, ...]


class StreamReader:
    """Reads one stream, over one connection or several."""

    def __init__(self, order: StreamOrder, process: "ReaderProcess") -> None:
        self.order = order
        self.checker = Checker(order.seed, order.message_bytes)
        self.arrivals = array("q")  # received_ns, bytes; flat
        self.call: Any = None
        self._process = process
        self._now_ns = process.now_ns
        self._due_ns = self._began_ns = self._first_ns = self._last_ns = 0
        self._connections = 0
        self._has_offsets = False

    async def run(self) -> StreamEnd:
        """Read to the end."""
        if self.order.kind == LATE:
            await self._process.go.wait()
            self._due_ns = self._process.go_ns + round(self.order.join_after_s * 1e9)
            await asyncio.sleep(max(0.0, (self._due_ns - self._now_ns()) / 1e9))
        code, detail = "OK", ""
        self._began_ns = self._now_ns()
        self._due_ns = self._due_ns or self._began_ns
        try:
            while await self._connection():
                pass
        except grpc.RpcError as error:
            code, detail = error.code().name, error.details() or ""
        except asyncio.CancelledError:
            if not self._process.leaving.is_set():
                raise
            code = LEFT
        if not self._first_ns:
            say(WorkerMessage(lost=self.order.number))
        self.checker.finish()
        order, checker = self.order, self.checker
        return StreamEnd(
            number=order.number,
            kind=order.kind,
            code=code,
            detail=detail,
            wrong=checker.wrong,
            checked_bytes=checker.checked_bytes,
            missed_bytes=checker.missed_bytes,
            connections=self._connections,
            began_ns=self._began_ns,
            first_ns=self._first_ns,
            last_ns=self._last_ns,
            due_ns=self._due_ns,
        )

    async def _connection(self) -> bool:
        """Read over one connection; return whether to reconnect."""
        skip_bytes = 0 if self._has_offsets else self.checker.offset
        request = pb.StreamLogsRequest(
            job_id=self.order.job_id,
            from_offset=self.checker.offset if self._connections and self._has_offsets else None,
        )
        self._connections += 1
        until_bytes = self.checker.offset + (self.order.cut_every_bytes or sys.maxsize)
        async with self._process.channel() as channel:
            self.call = self._process.transport.follow(channel, request, self.order.timeout_s)
            async for message in self.call:
                skip_bytes = self._take(message, skip_bytes)
                if self.checker.offset >= until_bytes:
                    self.call.cancel()
                    return True
                if self.order.kind == SLOW:
                    await self._slow_down()
        return False

    def _take(self, message: pb.StreamLogsResponse, skip_bytes: int) -> int:
        received_ns = self._now_ns()
        data = message.message
        if skip_bytes:
            dropped = min(skip_bytes, len(data))
            data, skip_bytes = data[dropped:], skip_bytes - dropped
        self._has_offsets = message.HasField("offset")
        if message.missed_bytes:
            self.checker.miss(message.missed_bytes)
        if not data:
            return skip_bytes
        self.checker.take(data, received_ns)
        self.arrivals.extend((received_ns, len(data)))
        self._last_ns = received_ns
        if not self._first_ns:
            self._first_ns = received_ns
            say(WorkerMessage(joined=self.order.number))
        return skip_bytes

    async def _slow_down(self) -> None:
        """Wait until the next read keeps the rate, or until `leave`."""
        due_ns = self._began_ns + self.checker.offset / self.order.bytes_per_s * 1e9
        wait_s = max(0.0, (due_ns - self._now_ns()) / 1e9)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.leaving.wait(), wait_s)


class ReaderProcess:
    """All streams of this process."""

    def __init__(self, order: ReaderOrder) -> None:
        self.order = order
        self.now_ns = time.monotonic_ns if order.clock == MONOTONIC else time.time_ns
        self.go = asyncio.Event()
        self.go_ns = 0
        self.leaving = asyncio.Event()
        dialect = load_dialect(order.dialect)
        self.transport = dialect.transport
        # Where the server describes itself: once, before the load.
        dialect.connect(order.address, CertFiles(*map(Path, order.files))).close()
        read = [Path(name).read_bytes() for name in order.files]
        self._credentials = grpc.ssl_channel_credentials(read[0], read[2], read[1])
        self._zero = (time.process_time(), time.perf_counter())
        self._hiccups = Hiccups()
        self._readers = [StreamReader(each, self) for each in order.streams]

    def channel(self) -> grpc.aio.Channel:
        """Return a new connection."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            NO_PROXY,
            ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
            *self.order.options,
        ]
        return grpc.aio.secure_channel(self.order.address, self._credentials, options)

    async def run(self) -> WorkerReport:
        """Read all streams to their end, and save the instants."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), daemon=True).start()
        say(WorkerMessage(ready=True))
        meter = asyncio.create_task(measure_loop(self._hiccups))
        # To stop all readers at the first failure would hide the others' results.
        ends = await asyncio.gather(*(reader.run() for reader in self._readers))
        cpu_s = time.process_time() - self._zero[0]
        wall_s = time.perf_counter() - self._zero[1]
        meter.cancel()
        self._save()
        return WorkerReport(self.order.file, cpu_s, wall_s, tuple(ends))

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for line in sys.stdin:
            word, _, instant = line.strip().partition(" ")
            handle = partial(self._begin, int(instant)) if word == "go" else self._leave
            try:
                loop.call_soon_threadsafe(handle)
            except RuntimeError:
                return  # all streams have ended
        os._exit(1)

    def _begin(self, go_ns: int) -> None:
        self.go_ns = go_ns
        self._zero = (time.process_time(), time.perf_counter())
        del self._hiccups.lateness_ns[:]  # connecting was not the load
        self.go.set()

    def _leave(self) -> None:
        self.leaving.set()
        for reader in self._readers:
            if reader.order.kind == SLOW and reader.call is not None:
                reader.call.cancel()

    def _save(self) -> None:
        """Save the instants: a row per message, a row per arrival."""
        width = len(MESSAGE_COLUMNS)
        rows = [_table(reader.checker.rows, width) for reader in self._readers]
        arrivals = [_table(reader.arrivals, 2) for reader in self._readers]
        numbers = np.array([reader.order.number for reader in self._readers], np.int32)
        np.savez(
            self.order.file,
            rows=np.concatenate(rows),
            row_stream=np.repeat(numbers, [len(each) for each in rows]),
            arrivals=np.concatenate(arrivals),
            hiccups=np.array(self._hiccups.lateness_ns, np.int64),
        )


def _table(flat: "array[int]", width: int) -> Any:  # noqa: ANN401 - an array of numpy's
    return np.array(flat, np.int64).reshape(-1, width)


def main() -> None:
    """Read the order and carry it out."""
    process = ReaderProcess(msgspec.json.decode(sys.stdin.readline(), type=ReaderOrder))
    say(WorkerMessage(report=asyncio.run(process.run())))


if __name__ == "__main__":
    main()
