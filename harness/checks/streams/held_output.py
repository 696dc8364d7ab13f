"""Output that is held back to be sent in fewer messages, while a retention drops what is old."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harness.checks.check import Check, Need, Stage
from harness.checks.common import KIB, WriterJob, WriterStep, open_gate, start_writer
from harness.checks.streams.plans import PYTHON
from harness.drive.receiver import StreamPlan
from harness.judge.promises import equal
from harness.record.history import History
from harness.record.verdict import Finding
from harness.targets.target import Variant

# Held back for the whole interval, four times as much would be written as is kept. A reader that
# gets half of what is kept at once may be late by two writes.
RETENTION_BYTES: Final = 64 * KIB
FLUSH_INTERVAL_S: Final = 10.0
WRITES: Final = WriterStep(16 * KIB, pause_ms=500, repeat=16)


def run_held_output(stage: Stage) -> None:
    """Follow a job that writes slowly, on a server that may hold output back for long."""
    variant = Variant(retention_bytes=RETENTION_BYTES, flush_interval_s=FLUSH_INTERVAL_S)
    with stage.fresh_server(variant) as server, stage.client(server=server) as client:
        writer = start_writer(stage, client, [WRITES], gated=True)
        plan = StreamPlan(pattern=writer.pattern)
        reader = client.receiver(writer.job_id, plan, label="reader")
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(reader.run)
            reader.first_byte.wait(stage.join_timeout_s)
            open_gate(client, writer)
            reading.result()


def judge_held_output(history: History) -> Iterator[Finding]:
    """The reader gets all of it."""
    reader, total = history.stream("reader"), history.the(WriterJob).total_bytes
    yield equal("bytes missed by a reader that keeps up", reader.missed_bytes, 0)
    yield equal("bytes that it gets", reader.received_bytes, total)
    yield equal("they are right", (reader.wrong_at, reader.gap), (None, ""))


HELD_OUTPUT: Final = Check(
    "streams.held-output",
    "A reader that keeps up misses nothing: output that is held back is sent before it is dropped.",
    run_held_output,
    judge_held_output,
    needs=PYTHON | {Need.LAUNCH, Need.RETENTION, Need.NATIVE},
    cites=("108", "R-STREAM-7"),
    alone=True,
)

CHECKS: Final = (HELD_OUTPUT,)
