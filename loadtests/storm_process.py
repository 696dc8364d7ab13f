"""A process of the generator that starts jobs: stops them, too, at planned instants, or does not.

Its stdin: a `StormOrder` in JSON, then `go INSTANT`, when its plan begins; the end of input ends it
at once. It writes `WorkerMessage`s: ready, and its report at the end. The instants go into a file.
Each start is due by the plan alone; a stop is due when its start has returned. If all callers wait
for answers, the next start is late; its latency counts from the plan and so includes the delay.
Without a plan each caller starts a job that ends by itself as soon as its last start has returned.

Threads: the callers, one for orders, one that measures how late this process is. Shared state: the
next call's number and the rows, under `_lock`.
"""

import os
import sys
import threading
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import msgspec
import numpy as np

from harness.dialects.dialect import Stub
from harness.dialects.load import load_dialect
from harness.host.cert_files import CertFiles
from jobworker.v1 import jobworker_pb2 as pb
from loadtests.emitter import MONOTONIC
from loadtests.observe import HiccupMeter
from loadtests.pacer import Pace
from loadtests.record import CALL_COLUMNS
from loadtests.worker_message import WorkerMessage, WorkerReport, say

_CALL_TIMEOUT_S: Final = 30.0
_JOB: Final = ("sleep", "300")
_JOB_THAT_ENDS: Final = ("/bin/true",)


@dataclass(frozen=True, slots=True)
class StormOrder:
    """The starts and stops of a process: one of each per due instant of `pace`.

    Without a pace, starts for so many seconds.
    """

    address: str
    files: tuple[str, str, str]
    dialect: str
    clock: str
    file: str
    pace: Pace | None
    duration_s: float
    callers: int


class StormProcess:
    """All callers of this process."""

    def __init__(self, order: StormOrder) -> None:
        self._order = order
        self._now_ns = time.monotonic_ns if order.clock == MONOTONIC else time.time_ns
        self._lock = threading.Lock()
        self._next = 0
        self._rows = array("q")
        self._failures: Counter[str] = Counter()
        self._zero_ns = 0

    def run(self) -> WorkerReport:
        """Make all calls, and save the instants."""
        dialect = load_dialect(self._order.dialect)
        files = CertFiles(*map(Path, self._order.files))
        with dialect.connect(self._order.address, files) as connection:
            if connection.channel is not None:
                grpc.channel_ready_future(connection.channel).result(_CALL_TIMEOUT_S)
            stub = connection.stub
            say(WorkerMessage(ready=True))
            _, _, instant = sys.stdin.readline().partition(" ")
            threading.Thread(target=_end_with_input, daemon=True).start()
            zero = (time.process_time(), time.perf_counter())
            self._zero_ns = int(instant)
            threads = [
                threading.Thread(target=self._call, args=(stub,), name=f"caller {number}")
                for number in range(self._order.callers)
            ]
            with HiccupMeter() as meter:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        rows = np.array(self._rows, np.int64).reshape(-1, len(CALL_COLUMNS))
        np.savez(
            self._order.file, calls=rows, hiccups=np.array(meter.hiccups.lateness_ns, np.int64)
        )
        cpu_s, wall_s = time.process_time() - zero[0], time.perf_counter() - zero[1]
        return WorkerReport(self._order.file, cpu_s, wall_s, failures=dict(self._failures))

    def _call(self, stub: Stub) -> None:
        if (pace := self._order.pace) is not None:
            self._call_when_due(stub, pace)
            return
        end_ns = self._zero_ns + round(self._order.duration_s * 1e9)
        while (now_ns := self._now_ns()) < end_ns:
            self._start(stub, now_ns, _JOB_THAT_ENDS, stop=False)

    def _call_when_due(self, stub: Stub, pace: Pace) -> None:
        while True:
            with self._lock:
                number = self._next
                self._next += 1
            if number >= pace.count:
                return
            wait_ns = pace.wait_ns(number, self._now_ns() - self._zero_ns)
            if wait_ns:
                threading.Event().wait(wait_ns / 1e9)
            self._start(stub, self._zero_ns + pace.due_ns(number), _JOB, stop=True)

    def _start(self, stub: Stub, planned_ns: int, job: tuple[str, ...], *, stop: bool) -> None:
        command, *arguments = job
        begun_ns = self._now_ns()
        started_ns = stopped_ns = 0
        failure = "start"
        try:
            request = pb.StartJobRequest(command_name=command, command_args=arguments)
            job_id = stub.StartJob(request, timeout=_CALL_TIMEOUT_S).job_id
            started_ns = self._now_ns()
            failure = "stop"
            if stop:
                stub.StopJob(pb.StopJobRequest(job_id=job_id), timeout=_CALL_TIMEOUT_S)
                stopped_ns = self._now_ns()
            failure = ""
        except grpc.RpcError as error:
            failure += f" {error.code().name}"
        with self._lock:
            self._rows.extend((planned_ns, begun_ns, started_ns, stopped_ns))
            if failure:
                self._failures[failure] += 1


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Read the order and carry it out."""
    order = msgspec.json.decode(sys.stdin.readline(), type=StormOrder)
    say(WorkerMessage(report=StormProcess(order).run()))


if __name__ == "__main__":
    main()
