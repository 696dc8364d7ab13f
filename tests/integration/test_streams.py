"""When a stream's slot and thread are free again: what only the server itself shows."""

import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from tests.support.service import audit_lines, wait_until
from worker_service import log as log_module
from worker_service.client import CallError, Client, Start
from worker_service.log import LogReader
from worker_service.server import Server

READY = "ready\n"


def test_cancelled_silent_stream_frees_its_slot_and_its_thread(
    server: Server,
    admin: Client,
    audit_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare_wait, waits_for_more = LogReader.prepare_wait, threading.Event()

    def prepare(reader: LogReader, wanted_offset: int) -> None:
        prepare_wait(reader, wanted_offset)
        if wanted_offset > len(READY):
            waits_for_more.set()

    monkeypatch.setattr(LogReader, "prepare_wait", prepare)
    job_id = admin.start("sh", ["-c", "echo ready; sleep 100"])
    taken = server.admission.taken()
    calls: list[Any] = []
    stream = admin.stream(job_id, timeout_s=60, on_call=calls.append)
    next(stream)
    assert server.admission.taken() == taken + 1
    assert waits_for_more.wait(10)  # a cancel before that would end the call without a wake-up
    calls[0].cancel()
    [line] = audit_lines(audit_log, "StreamLogs")  # the last act of the call's thread
    assert f"job={job_id}" in line
    assert "code=CANCELLED" in line
    assert server.admission.taken() == taken
    stream.close()  # type: ignore[attr-defined] # it is a generator
    admin.stop(job_id, grace_s=0)


def test_cancel_frees_the_slot_of_a_stream_that_searches_its_tail_and_ends_the_search(
    server: Server, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = admin.start("head", ["-c", "5000000", "/dev/zero"])
    list(admin.stream(job_id, timeout_s=60))
    taken = server.admission.taken()
    searching, go_on = threading.Event(), threading.Event()
    searched: list[int] = []

    def search_slowly(memory: memoryview) -> int:
        searched.append(len(memory))
        searching.set()
        assert go_on.wait(30)
        return 0

    monkeypatch.setattr(log_module, "count_newlines", search_slowly)
    ended = end_of_search(monkeypatch)
    calls: SimpleQueue[Any] = SimpleQueue()
    stream = admin.stream(job_id, Start(tail_lines=2), timeout_s=60, on_call=calls.put)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, stream)
        assert searching.wait(10)
        calls.get(timeout=10).cancel()
        with pytest.raises(CallError):
            reading.result(10)
    try:
        wait_until(lambda: server.admission.taken() == taken, "the slot to be free")
    finally:
        go_on.set()
    assert ended.wait(10)
    assert len(searched) == 1, "the search went on after its client was gone"


def end_of_search(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a search for lines has ended."""
    ended = threading.Event()
    seek_tail_lines = LogReader.seek_tail_lines

    def seek(reader: LogReader, count: int) -> None:
        seek_tail_lines(reader, count)
        ended.set()

    monkeypatch.setattr(LogReader, "seek_tail_lines", seek)
    return ended
