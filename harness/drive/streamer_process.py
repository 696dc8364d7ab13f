"""A process of readers, started by `streamers.ConcurrentReaders`.

Standard input: the first line is a `streamers.Order`. Then `go` starts the timers of late joiners,
and `cancel`, or the end of input (the harness is gone), cancels all streams. Standard output: a
line when a reader has its first byte, and a record for each stream.

Threads: one for each reader, one for standard input. Shared state and its guard: `_receivers` under
`_lock`, standard output under `_out_lock`; the rest is events.
"""

import functools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from harness.dialects.load import load_dialect
from harness.drive.receiver import Receiver, StreamPlan
from harness.drive.streamers import Order, Reader
from harness.host.cert_files import CertFiles
from harness.payloads.burst_writer import Pattern
from harness.record.history import Stream, to_json

_STACK_BYTES: Final = 512 * 1024  # there may be hundreds of threads


class StreamerProcess:
    """All readers of this process."""

    def __init__(self, order: Order) -> None:
        self._address = order.address
        self._files = CertFiles(*map(Path, order.files))
        self._dialect = load_dialect(order.dialect)
        self._zero_s = order.zero_s
        self._lock = threading.Lock()
        self._out_lock = threading.Lock()
        self._receivers: list[Receiver] = []
        self._go = threading.Event()
        self._cancelled = threading.Event()
        # All readers of a job share its pattern's bytes.
        self._pattern = functools.cache(Pattern)
        self._threads = [
            threading.Thread(target=self._read, args=(reader,)) for reader in order.readers
        ]

    def run(self) -> None:
        """Run all readers to their end."""
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
        self._cancelled.set()
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
            self._cancelled.wait(reader.late_s)
        plan = StreamPlan(
            pattern=self._pattern(reader.seed),
            timeout_s=reader.timeout_s,
            bytes_per_s=reader.bytes_per_s,
            stop_after_bytes=reader.cut_after_bytes,
        )
        first = self._stream(reader, plan, reader.label)
        if reader.cut_after_bytes is None or first.code != "CANCELLED" or self._cancelled.is_set():
            return
        rest = plan.resumed_at(first.start_offset + first.received_bytes, offsets=reader.offsets)
        self._stream(reader, rest, f"{reader.label} resumed")

    def _stream(self, reader: Reader, plan: StreamPlan, label: str) -> Stream:
        with self._dialect.connect(self._address, self._files) as connection:
            receiver = Receiver(
                connection.stub,
                reader.job_id,
                plan,
                label,
                lambda: time.monotonic() - self._zero_s,
                lambda stream: self._say(to_json(stream)),
                on_first_byte=lambda: self._say(json.dumps({"joined": reader.label})),
            )
            with self._lock:
                self._receivers.append(receiver)
            if self._cancelled.is_set():
                receiver.cancel()
            return receiver.run()


def main() -> None:
    """Run the readers of the order on standard input."""
    threading.stack_size(_STACK_BYTES)
    StreamerProcess(msgspec.json.decode(sys.stdin.readline(), type=Order)).run()


if __name__ == "__main__":
    main()
