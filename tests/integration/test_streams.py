"""When a stream's slot and thread are free again: what only the server itself shows."""

import threading
from typing import Any

import pytest

from tests.support.service import audit_lines, wait_until
from worker_service.client import CallError, Client, Start
from worker_service.log import LogReader, OutputLog
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


def test_stream_that_searches_its_tail_keeps_its_slot_until_its_thread_is_free(
    server: Server, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = admin.start("true")
    taken = server.admission.taken()
    searching, go_on = threading.Event(), threading.Event()
    reader_at_tail_lines = OutputLog.reader_at_tail_lines

    def search_slowly(log: OutputLog, count: int) -> LogReader:
        searching.set()
        assert go_on.wait(30)
        return reader_at_tail_lines(log, count)

    monkeypatch.setattr(OutputLog, "reader_at_tail_lines", search_slowly)
    try:
        with pytest.raises(CallError):
            list(admin.stream(job_id, Start(tail_lines=2**63), timeout_s=1))
        assert searching.is_set()
        for _ in range(10):  # on the same connection: the server has seen the cancel before them
            admin.list_jobs()
        assert server.admission.taken() == taken + 1
    finally:
        go_on.set()
    wait_until(lambda: server.admission.taken() == taken, "the slot to be free")
