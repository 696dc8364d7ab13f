"""A process of readers, started by `streamers.Crowd`; its orders come on standard input.

The first line is JSON: the server, the certificates, the harness's clock, the readers. Then `go`
begins the late joiners' time, and `leave` (or the end of input: the harness is gone) ends them all.
What it says on standard output: a line when a reader has its first byte, a record for each stream.

Threads: one a reader, one for the orders. Shared state and its guard: `_receivers` under `_lock`,
standard output under `_out_lock`; the rest is events.
"""

import dataclasses
import functools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from harness.drive.client import open_channel
from harness.drive.identities import CertFiles
from harness.drive.receiver import Receiver, StreamPlan
from harness.drive.streamers import Reader
from harness.payloads.burst_writer import Pattern
from harness.record.history import Stream, to_json
from jobworker.v1 import jobworker_pb2_grpc

_STACK_BYTES: Final = 512 * 1024  # there may be hundreds of threads


class StreamerProcess:
    """All readers of this process."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._address: str = order["address"]
        self._files = CertFiles(*map(Path, order["files"]))
        self._zero_s: float = order["zero_s"]
        self._lock = threading.Lock()
        self._out_lock = threading.Lock()
        self._receivers: list[Receiver] = []
        self._go = threading.Event()
        self._leaving = threading.Event()
        # One seed's bytes serve all readers of a job.
        self._pattern = functools.cache(Pattern)
        self._threads = [
            threading.Thread(target=self._read, args=(Reader(**each),)) for each in order["readers"]
        ]

    def run(self) -> None:
        """Read until all readers are done."""
        threading.Thread(target=self._listen, daemon=True).start()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() != "go":
                break
            self._go.set()
        self._leaving.set()
        self._go.set()
        with self._lock:
            receivers = list(self._receivers)
        for receiver in receivers:
            receiver.cancel()

    def _say(self, line: str) -> None:
        with self._out_lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def _read(self, reader: Reader) -> None:
        if reader.late_s is not None:
            self._go.wait()
            self._leaving.wait(reader.late_s)
        plan = StreamPlan(
            pattern=self._pattern(reader.seed),
            timeout_s=reader.timeout_s,
            bytes_per_s=reader.bytes_per_s,
            stop_after_bytes=reader.cut_after_bytes,
        )
        first = self._stream(reader, plan, reader.label)
        if reader.cut_after_bytes is None or first.code != "CANCELLED" or self._leaving.is_set():
            return
        at = first.start_offset + first.received_bytes
        rest = dataclasses.replace(
            plan,
            stop_after_bytes=None,
            from_offset=at if reader.offsets else None,
            skip_bytes=0 if reader.offsets else at,
        )
        self._stream(reader, rest, f"{reader.label} resumed")

    def _stream(self, reader: Reader, plan: StreamPlan, label: str) -> Stream:
        with open_channel(self._address, self._files) as channel:
            receiver = Receiver(
                jobworker_pb2_grpc.JobWorkerStub(channel),
                reader.job_id,
                plan,
                label,
                lambda: time.monotonic() - self._zero_s,
                lambda stream: self._say(to_json(stream)),
                on_first_byte=lambda: self._say(json.dumps({"joined": reader.label})),
            )
            with self._lock:
                self._receivers.append(receiver)
            if self._leaving.is_set():
                receiver.cancel()
            return receiver.run()


def main() -> None:
    """Take the order and carry it out."""
    threading.stack_size(_STACK_BYTES)
    StreamerProcess(json.loads(sys.stdin.readline())).run()


if __name__ == "__main__":
    main()
