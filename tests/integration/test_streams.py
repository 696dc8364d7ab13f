"""Streams of real jobs over real TLS: every byte, to everybody, whatever the others do."""

import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.service import Certificates, client_for, running_server
from worker_service.client import CallError, Client, Output, Start
from worker_service.log import LogReader, OutputLog
from worker_service.server import Server

# Bursts of binary output of all byte values, with lines, single bytes and large writes between.
BURSTY = """
import os, random
source = random.Random(int(__import__("sys").argv[1]))
for size in [1, 4096, 70_000, 1, 1, 300_000, 17, 1_000_000] * int(__import__("sys").argv[2]):
    data = memoryview(source.randbytes(size))
    while data:
        data = data[os.write(1, data):]
"""


def expected_bursts(seed: int, rounds: int) -> bytes:
    source = random.Random(seed)
    sizes = [1, 4096, 70_000, 1, 1, 300_000, 17, 1_000_000] * rounds
    return b"".join(source.randbytes(size) for size in sizes)


def start_bursty(client: Client, seed: int, rounds: int = 1) -> str:
    return client.start(sys.executable, ["-c", BURSTY, str(seed), str(rounds)])


def collect(client: Client, job_id: str, start: Start | None = None, **options: Any) -> bytes:
    """Read a stream to its end, checking that the offsets leave no gap."""
    data = bytearray()
    first_offset = None
    for output in client.stream(job_id, start, timeout_s=60, **options):
        if first_offset is None:
            first_offset = output.offset
        assert output.offset == first_offset + len(data)
        data += output.data
    return bytes(data)


def open_stream(client: Client, job_id: str) -> tuple[grpc.Call, Any]:
    """Start a stream; return the call, to cancel it, and the iterator after its first output."""
    calls: list[Any] = []
    stream = client.stream(job_id, timeout_s=60, on_call=calls.append)
    next(stream)
    return calls[0], stream


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        time.sleep(0.005)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_concurrent_streams_of_a_bursty_binary_job_are_byte_exact(
    count: int, server: Server, certificates: Certificates, admin: Client
) -> None:
    rounds = 3 if count < 100 else 1
    job_id = start_bursty(admin, count, rounds)
    digest = hashlib.sha256(expected_bursts(count, rounds)).hexdigest()

    def read(_: int) -> str:
        with client_for(server.address, certificates.user, timeout_s=60) as client:
            return hashlib.sha256(collect(client, job_id)).hexdigest()

    with ThreadPoolExecutor(count) as pool:
        assert set(pool.map(read, range(count))) == {digest}


def test_200_short_jobs_of_65_kb_lose_no_byte(admin: Client) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes([int(sys.argv[1])]) * 65000)"

    def run(number: int) -> bytes:
        return collect(admin, admin.start(sys.executable, ["-S", "-c", program, str(number)]))

    with ThreadPoolExecutor(4) as pool:
        for number, data in enumerate(pool.map(run, range(200))):
            assert data == bytes([number]) * 65000


def test_a_late_joiner_gets_everything_without_gap_or_duplicate(
    admin: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = admin.start("sh", ["-c", f"echo early; read line <{gate}; echo late"])
    assert next(admin.stream(job_id)) == Output(0, b"early\n")
    stream = admin.stream(job_id, timeout_s=60)
    assert next(stream) == Output(0, b"early\n")
    gate.write_text("go on\n")
    assert next(stream) == Output(6, b"late\n")
    assert list(stream) == []
    assert collect(admin, job_id) == b"early\nlate\n"


def test_a_stream_of_an_ended_job_replays_it_and_the_status_is_final(admin: Client) -> None:
    job_id = admin.start("sh", ["-c", "echo out; echo err >&2; exit 7"])
    assert collect(admin, job_id) == b"out\nerr\n"
    job = admin.query(job_id)
    assert (job.status, job.exit_code, job.signal) == ("exited", 7, 0)
    assert collect(admin, job_id) == b"out\nerr\n"


def test_a_stream_resumes_at_an_offset_and_refuses_one_beyond_the_end(admin: Client) -> None:
    job_id = start_bursty(admin, 5)
    whole = collect(admin, job_id)
    assert collect(admin, job_id, Start(from_offset=70_000)) == whole[70_000:]
    assert collect(admin, job_id, Start(from_offset=len(whole))) == b""
    with pytest.raises(CallError) as refused:
        collect(admin, job_id, Start(from_offset=len(whole) + 1))
    assert refused.value.code is grpc.StatusCode.OUT_OF_RANGE
    assert str(len(whole)) in str(refused.value)


def test_tails_and_no_follow(admin: Client) -> None:
    job_id = admin.start("sh", ["-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 100"])
    wait_until(lambda: admin.query(job_id).log_size_bytes == 35)
    assert collect(admin, job_id, follow=False) == b"line 1\nline 2\nline 3\nline 4\nline 5\n"
    assert collect(admin, job_id, Start(tail_lines=2), follow=False) == b"line 4\nline 5\n"
    assert collect(admin, job_id, Start(tail_bytes=4), follow=False) == b"e 5\n"
    assert collect(admin, job_id, Start(tail_lines=0), follow=False) == b""
    admin.stop(job_id, grace_s=0)


def test_no_follow_ends_although_the_job_goes_on_writing(admin: Client) -> None:
    job_id = admin.start("yes")
    wait_until(lambda: (admin.query(job_id).log_size_bytes or 0) > 1_000_000)
    assert len(collect(admin, job_id, follow=False)) >= 1_000_000
    admin.stop(job_id, grace_s=0)


def test_a_stalled_client_disturbs_nobody(
    server: Server, certificates: Certificates, admin: Client
) -> None:
    job_id = start_bursty(admin, 9, rounds=12)  # more than a stalled client's window takes
    with client_for(server.address, certificates.user, timeout_s=60) as stalled:
        call, stream = open_stream(stalled, job_id)
        whole = collect(admin, job_id)
        assert hashlib.sha256(whole).digest() == hashlib.sha256(expected_bursts(9, 12)).digest()
        assert admin.query(job_id).status == "exited"
        call.cancel()
        stream.close()


def test_retention_tells_exactly_how_many_bytes_were_missed(certificates: Certificates) -> None:
    with (
        running_server(certificates, log_retention=1_000_000) as server,
        client_for(server.address, certificates.admin) as client,
    ):
        job_id = start_bursty(client, 3, rounds=4)
        wait_until(lambda: not client.query(job_id).running)
        whole = expected_bursts(3, 4)
        outputs = list(client.stream(job_id))
        kept = b"".join(output.data for output in outputs)
        job = client.query(job_id)
        assert sum(output.missed_bytes for output in outputs) + len(kept) == len(whole)
        assert whole.endswith(kept)
        assert len(kept) >= 1_000_000
        assert (job.log_size_bytes, job.log_first_offset) == (len(whole), outputs[0].offset)


def test_the_next_stream_over_the_maximum_is_refused_at_once_and_calls_go_on(
    certificates: Certificates,
) -> None:
    with (
        running_server(certificates, max_streams=2, unary_threads=2) as server,
        client_for(server.address, certificates.admin) as client,
    ):
        job_id = client.start("sh", ["-c", "echo ready; sleep 100"])
        open_ones = [open_stream(client, job_id) for _ in range(2)]
        with pytest.raises(CallError, match="max capacity reached") as refused:
            next(client.stream(job_id, timeout_s=10))
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert client.query(job_id).status == "running"
        assert client.start("true")
        open_ones[0][0].cancel()
        wait_until(lambda: server.admission.taken() == 1)
        open_ones.append(open_stream(client, job_id))
        client.stop(job_id, grace_s=0)
        for call, stream in open_ones:
            call.cancel()
            stream.close()


def test_cancelling_a_silent_stream_frees_its_slot_and_its_thread(
    server: Server, admin: Client
) -> None:
    job_id = admin.start("sh", ["-c", "echo ready; sleep 100"])
    taken = server.admission.taken()
    call, stream = open_stream(admin, job_id)
    assert server.admission.taken() == taken + 1
    log = server.worker.log(job_id)
    wait_until(lambda: len(log._waiting) == 1)
    call.cancel()
    wait_until(lambda: server.admission.taken() == taken and not log._waiting)
    stream.close()
    admin.stop(job_id, grace_s=0)


def test_a_stream_that_looks_for_its_tail_keeps_its_slot_until_its_thread_is_free(
    server: Server, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = admin.start("true")
    taken = server.admission.taken()
    begun, go_on, reader_at_tail_lines = (
        threading.Event(), threading.Event(), OutputLog.reader_at_tail_lines,
    )  # fmt: skip

    def slowly(log: OutputLog, count: int) -> LogReader:
        begun.set()
        assert go_on.wait(30)
        return reader_at_tail_lines(log, count)

    monkeypatch.setattr(OutputLog, "reader_at_tail_lines", slowly)
    try:
        with pytest.raises(CallError):
            list(admin.stream(job_id, Start(tail_lines=2**63), timeout_s=1))
        assert begun.is_set()
        for _ in range(10):  # on the same connection: the server has seen the end before them
            admin.list_jobs()
        assert server.admission.taken() == taken + 1
    finally:
        go_on.set()
    wait_until(lambda: server.admission.taken() == taken)


def test_a_deadline_ends_a_follow_and_frees_its_slot(server: Server, admin: Client) -> None:
    job_id = admin.start("sleep", ["100"])
    taken = server.admission.taken()
    with pytest.raises(CallError) as ended:
        list(admin.stream(job_id, timeout_s=0.2))
    assert ended.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: server.admission.taken() == taken)
    admin.stop(job_id, grace_s=0)


def test_a_line_reaches_a_waiting_client_while_the_job_is_silent_again(admin: Client) -> None:
    job_id = admin.start("sh", ["-c", "echo one; sleep 100"])
    received = threading.Event()

    def read() -> None:
        for output in admin.stream(job_id, timeout_s=60):
            assert output.data == b"one\n"
            received.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert received.wait(10)
    admin.stop(job_id, grace_s=0)
    thread.join(10)
    assert not thread.is_alive()


def test_two_jobs_outputs_never_mix(admin: Client) -> None:
    jobs = [start_bursty(admin, seed) for seed in (21, 22)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda job: collect(admin, job), jobs)
    assert first == expected_bursts(21, 1)
    assert second == expected_bursts(22, 1)
