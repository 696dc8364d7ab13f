"""Readers of a log, and when they wait."""

import threading

from worker_service.log import LogReader


def waits(reader: LogReader) -> threading.Event:
    """Return what is set as soon as a reader is queued to be woken."""
    queued = threading.Event()
    original = reader.prepare_wait

    def prepare(wanted_offset: int) -> None:
        original(wanted_offset)
        queued.set()

    reader.prepare_wait = prepare  # type: ignore[method-assign] # of this one reader only
    return queued
