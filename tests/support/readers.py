"""Log readers of which a test sees when they start to wait and when they are woken."""

import threading

from worker_service.log import LogReader


def waiting_event(reader: LogReader) -> threading.Event:
    """Return an event that is set as soon as the reader is queued to be woken."""
    queued = threading.Event()
    original = reader.prepare_wait

    def prepare(wanted_offset: int) -> None:
        original(wanted_offset)
        queued.set()

    reader.prepare_wait = prepare  # type: ignore[method-assign] # of this one reader only
    return queued


def woken_event(reader: LogReader) -> threading.Event:
    """Return an event that is set as soon as the log wakes the reader."""
    woken = threading.Event()
    original = reader.wake

    def wake() -> None:
        woken.set()
        original()

    reader.wake = wake  # type: ignore[method-assign] # of this one reader only
    return woken
