"""What tests of a worker do with jobs."""

from typing import Any

from worker_service.job import JobStatus
from worker_service.log import LogReader
from worker_service.spawn import Command
from worker_service.worker import Worker


def shell(script: str) -> Command:
    return Command("sh", ("-c", script))


def read_until(reader: LogReader, wanted: bytes = b"") -> bytes:
    """Read until some output has appeared, or to the end of the log."""
    data = b""
    while True:
        data += reader.read(2**20).data
        pending, closed = reader.pending_bytes()
        if (wanted and wanted in data) or (closed and not pending):
            return data
        reader.wait(1, 30)


def output(worker: Worker, status: JobStatus, wanted: bytes = b"") -> bytes:
    return read_until(worker.log(status.job_id).reader_at(0), wanted)


def listed(worker: Worker, **given: Any) -> list[str]:
    return [status.job_id for _, status in worker.list_jobs(**given)]
