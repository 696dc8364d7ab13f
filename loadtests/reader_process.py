"""A process of the generator that reads streams; started by `generator`, ordered by its stdin.

The first line is a `ReaderOrder` in JSON. Then `go INSTANT` begins the late joiners' time, `leave`
makes the slow readers leave, and the end of input (the generator is gone) ends it at once. It says
`ready` before it reads, `{"joined": NUMBER}` when a stream has its first byte, `{"lost": NUMBER}`
when one ends without, and at the end its `ReaderReport`; the instants go into a file.

All streams share one thread, by grpc.aio: measured against a thread a stream it takes a third of
the processor time for a hundred streams, and leaves more to the server (docs/load.md). A second
thread takes the orders, and hands each to the event loop.
"""

import asyncio
import contextlib
import dataclasses
import json
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
import numpy as np

from harness.drive.client import MESSAGE_MAX_BYTES
from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from loadtests.checker import Checker
from loadtests.emitter import MONOTONIC
from loadtests.observe import Hiccups, measure_loop
from loadtests.record import LATE, LEFT, MESSAGE_COLUMNS, SLOW, StreamEnd


@dataclass(frozen=True, slots=True)
class StreamOrder:
    """One stream to read.

    Attributes:
        number: of the stream, among all of the load.
        job_id, seed, message_bytes: the job, and what it writes.
        kind: EARLY, LATE or SLOW.
        join_after_s: after the instant of `go`, for LATE ones.
        bytes_per_s: no faster, for SLOW ones.
        cut_every_bytes: leave and come back after so many; 0: never.
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
    """What a process is to read; `options` are gRPC's, for each connection."""

    address: str
    files: tuple[str, str, str]
    clock: str
    file: str
    options: tuple[tuple[str, int | str], ...]
    streams: tuple[StreamOrder, ...]


@dataclass(frozen=True, slots=True)
class ReaderReport:
    """What a process did; `cpu_s` and `wall_s` are of its time of work, after `go`."""

    file: str
    cpu_s: float
    wall_s: float
    streams: tuple[StreamEnd, ...]


class StreamReader:
    """Reads one stream, over as many connections as its order says."""

    def __init__(self, order: StreamOrder, process: "ReaderProcess") -> None:
        self.order = order
        self.checker = Checker(order.seed, order.message_bytes)
        self.arrivals = array("q")  # received_ns, bytes; flat
        self.call: Any = None
        self._process = process
        self._now_ns = process.now_ns
        self._due_ns = self._began_ns = self._first_ns = self._last_ns = 0
        self._connections = 0
        self._offsets_told = False

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
        except grpc.aio.AioRpcError as error:
            code, detail = error.code().name, error.details() or ""
        except asyncio.CancelledError:
            if not self._process.leaving.is_set():
                raise
            code = LEFT
        if not self._first_ns:
            say({"lost": self.order.number})
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
        """Read over one connection; tell whether to come back for more."""
        skip_bytes = 0 if self._offsets_told else self.checker.offset
        request = pb.StreamLogsRequest(
            job_id=self.order.job_id,
            from_offset=self.checker.offset if self._connections and self._offsets_told else None,
        )
        self._connections += 1
        until_bytes = self.checker.offset + (self.order.cut_every_bytes or sys.maxsize)
        async with self._process.channel() as channel:
            self.call = jobworker_pb2_grpc.JobWorkerStub(channel).StreamLogs(
                request, timeout=self.order.timeout_s
            )
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
        self._offsets_told = message.HasField("offset")
        if message.missed_bytes:
            self.checker.miss(message.missed_bytes)
        if not data:
            return skip_bytes
        self.checker.take(data, received_ns)
        self.arrivals.extend((received_ns, len(data)))
        self._last_ns = received_ns
        if not self._first_ns:
            self._first_ns = received_ns
            say({"joined": self.order.number})
        return skip_bytes

    async def _slow_down(self) -> None:
        """Wait as long as it takes to have read no faster than asked, or until told to leave."""
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
        read = [Path(name).read_bytes() for name in order.files]
        self._credentials = grpc.ssl_channel_credentials(read[0], read[2], read[1])
        self._zero = (time.process_time(), time.perf_counter())
        self._hiccups = Hiccups()
        self._readers = [StreamReader(each, self) for each in order.streams]

    def channel(self) -> grpc.aio.Channel:
        """Return a new connection."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
            *self.order.options,
        ]
        return grpc.aio.secure_channel(self.order.address, self._credentials, options)

    async def run(self) -> ReaderReport:
        """Read all streams to their end, and write down the instants."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), daemon=True).start()
        say({"ready": True})
        meter = asyncio.create_task(measure_loop(self._hiccups))
        # Stopping all readers at the first one's failure would hide what the others had.
        ends = await asyncio.gather(*(reader.run() for reader in self._readers))
        cpu_s = time.process_time() - self._zero[0]
        wall_s = time.perf_counter() - self._zero[1]
        meter.cancel()
        self._save()
        return ReaderReport(self.order.file, cpu_s, wall_s, tuple(ends))

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for line in sys.stdin:
            word, _, instant = line.strip().partition(" ")
            handle = partial(self._begin, int(instant)) if word == "go" else self._leave
            try:
                loop.call_soon_threadsafe(handle)
            except RuntimeError:
                return  # all streams have ended meanwhile
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
        """Write what can be folded again: a row a message, a row an arrival."""
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


def say(values: object) -> None:
    """Tell the generator."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _table(flat: "array[int]", width: int) -> Any:  # noqa: ANN401 - an array of numpy's
    return np.array(flat, np.int64).reshape(-1, width)


def order_from_json(line: str) -> ReaderOrder:
    """Return the order of a line."""
    values = json.loads(line)
    return ReaderOrder(
        values["address"],
        tuple(values["files"]),
        values["clock"],
        values["file"],
        tuple((name, value) for name, value in values["options"]),
        tuple(StreamOrder(**each) for each in values["streams"]),
    )


def main() -> None:
    """Take the order and carry it out."""
    process = ReaderProcess(order_from_json(sys.stdin.readline()))
    say({"report": dataclasses.asdict(asyncio.run(process.run()))})


if __name__ == "__main__":
    main()
