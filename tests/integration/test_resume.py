"""Streams that are resumed over real sockets: nothing lost, nothing twice, and an end."""

import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import grpc
import pytest

from harness.drive.fault_proxy import FaultProxy, NetworkFault
from tests.support.service import (
    Certificates,
    audit_lines,
    client_for,
    running_server,
    wait_until,
)
from tests.support.stand_in_server import JOB_ID, StandIn, stand_in_server
from worker_service.client import ClientOptions, Output, Start
from worker_service.resume import JobGoneError, Patience, ResumedStream, StreamBrokenError
from worker_service.server import Server
from worker_service.tls import CertificateFiles

MIB: Final = 1024 * 1024
SIZE_BYTES: Final = 64 * MIB
# `seq` numbers its lines, so each part differs from every other.
SCRIPT: Final = f"seq 1 9000000 | head -c {SIZE_BYTES}"
# Short, since a stall is noticed after the silence and a query without an answer. On a busy machine
# an answer may be late, which costs a further attempt.
STALL_TIMEOUT_S: Final = 1.5
PATIENCE: Final = Patience(give_up_after_s=20, first_pause_s=0.05, silence_s=0.5)
FAULTS: Final[dict[str, Callable[[int], NetworkFault]]] = {
    "reset": lambda offset: NetworkFault(reset_after_bytes=offset),
    "half-close": lambda offset: NetworkFault(half_close_after_bytes=offset),
    "client half-close": lambda offset: NetworkFault(client_half_close_after_bytes=offset),
    "stall": lambda offset: NetworkFault(blackhole_after_bytes=offset),
}
SEEDS: Final = (1, 2, 3)


@pytest.fixture(scope="module")
def written() -> str:
    """The digest of what the job writes, from the same programs without a server."""
    done = subprocess.run(["sh", "-c", SCRIPT], capture_output=True, check=True, timeout=60)
    assert len(done.stdout) == SIZE_BYTES
    return hashlib.sha256(done.stdout).hexdigest()


@pytest.fixture(scope="module")
def large_job(server: Server, certificates: Certificates) -> Iterator[str]:
    with client_for(server.address, certificates.admin) as client:
        job_id = client.start("sh", ["-c", SCRIPT])
        yield job_id
        client.delete(job_id)


Connect = Callable[..., ClientOptions]


@pytest.fixture
def options(certificates: Certificates) -> Connect:
    """How a user connects to an address."""
    files = certificates.user
    return lambda address, timeout_s=10.0: ClientOptions(
        address, CertificateFiles(files.ca, files.cert, files.key), timeout_s=timeout_s
    )


class Received:
    """What a stream yielded, which must be consecutive."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.next_offset = 0
        self.missed_bytes = 0

    def add(self, output: Output) -> None:
        assert output.offset == self.next_offset + output.missed_bytes
        self.missed_bytes += output.missed_bytes
        self.digest.update(output.data)
        self.next_offset = output.offset + len(output.data)


@pytest.mark.parametrize("fault", FAULTS)
def test_stream_through_one_fault_is_exact(
    fault: str, server: Server, large_job: str, written: str, options: Connect
) -> None:
    offset = random.Random(fault).randrange(SIZE_BYTES // 2)
    breaks: list[StreamBrokenError] = []
    received = Received()
    with FaultProxy(server.address, FAULTS[fault](offset)) as proxy:
        stream = ResumedStream(
            options(proxy.address, STALL_TIMEOUT_S),
            large_job,
            patience=PATIENCE,
            on_break=breaks.append,
        )
        for output in stream:
            received.add(output)
    assert breaks
    # gRPC itself would notice that its last ping has no answer, 20 s later.
    assert fault != "stall" or "no answer to a query" in str(breaks[0])
    assert (received.missed_bytes, stream.received_bytes) == (0, SIZE_BYTES)
    assert received.digest.hexdigest() == written


@pytest.mark.parametrize("seed", SEEDS)
def test_stream_through_all_faults_and_restarts_of_a_proxy_is_exact(
    seed: int, server: Server, large_job: str, written: str, options: Connect
) -> None:
    chosen = random.Random(seed)
    kinds = [*FAULTS.values(), *chosen.choices(list(FAULTS.values()), k=2)]
    restarts = sorted(chosen.randrange(SIZE_BYTES) for _ in range(3))
    breaks: list[StreamBrokenError] = []
    received = Received()
    with ExitStack() as stack:
        # A chain: each proxy has one fault, which happens once.
        address = server.address
        proxies = []
        for kind in kinds:
            fault = kind(chosen.randrange(SIZE_BYTES // 8))
            proxies.append(stack.enter_context(FaultProxy(address, fault)))
            address = proxies[-1].address
        stream: ResumedStream | None = None
        port = 0
        outputs: Iterator[Output] = iter(())
        for until in (*restarts, SIZE_BYTES):
            with FaultProxy(address, NetworkFault(), port) as first:
                port = int(first.address.rpartition(":")[2])
                if stream is None:
                    stream = ResumedStream(
                        options(first.address, STALL_TIMEOUT_S),
                        large_job,
                        patience=PATIENCE,
                        on_break=breaks.append,
                    )
                    outputs = iter(stream)
                for output in outputs:
                    received.add(output)
                    if received.next_offset >= until:
                        break
        assert list(outputs) == []
    assert all(proxy.injected for proxy in proxies)
    assert len(breaks) >= len(restarts)
    assert (received.missed_bytes, received.next_offset) == (0, SIZE_BYTES)
    assert received.digest.hexdigest() == written


class Interruption:
    """A proxy that can be away for a number of attempts; a context manager."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._stack = ExitStack()
        self._attempts = 0
        self.breaks: list[StreamBrokenError] = []
        self._closing = threading.Lock()  # until its port is free, the next cannot be opened
        self.address = self._open(0)

    def _open(self, port: int) -> str:
        proxy = self._stack.enter_context(FaultProxy(self._server, NetworkFault(), port))
        return proxy.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, attempts: int) -> None:
        """Close all connections, and refuse others until so many attempts have failed."""
        self._attempts = len(self.breaks) + attempts
        with self._closing:
            self._stack.close()

    def on_break(self, broken: StreamBrokenError) -> None:
        """End the interruption once it is due."""
        self.breaks.append(broken)
        if len(self.breaks) == self._attempts:
            with self._closing:
                self._open(int(self.address.rpartition(":")[2]))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def test_output_dropped_during_an_interruption_is_counted(
    certificates: Certificates, options: Connect, gate: Path
) -> None:
    script = f"head -c 1000 /dev/zero; read x < {gate}; head -c 300000 /dev/zero; exec sleep 100"
    with (
        running_server(certificates, log_retention=4096) as server,
        client_for(server.address, certificates.admin) as admin,
        Interruption(server.address) as network,
    ):
        job_id = admin.start("sh", ["-c", script])
        received = Received()
        stream = ResumedStream(
            options(network.address), job_id, patience=PATIENCE, on_break=network.on_break
        )
        outputs = iter(stream)
        while received.next_offset < 1000:
            received.add(next(outputs))
        network.begin(attempts=3)
        gate.write_text("go on\n")
        wait_until(lambda: admin.query(job_id).log_size_bytes == 301_000, "the output")
        received.add(next(outputs))
        assert received.missed_bytes == 300_000 - 4096
        admin.stop(job_id, grace_s=0)
        for output in outputs:
            received.add(output)
        assert received.next_offset == 301_000
        assert stream.received_bytes == 1000 + 4096
        assert [broken.attempts for broken in network.breaks] == [1, 2, 3]


@pytest.mark.parametrize(
    ("before", "start", "expected"),
    [
        ("", Start(tail_lines=5), b"new\n"),
        ("one\\ntwo\\n", Start(tail_lines=0), b"new\n"),
        ("one\\ntwo\\n", Start(tail_bytes=4), b"two\nnew\n"),
        ("one\\ntwo\\n", Start(tail_bytes=100), b"one\ntwo\nnew\n"),
    ],
)
def test_tail_stays_where_it_was_when_the_stream_began(
    *,
    before: str,
    start: Start,
    expected: bytes,
    server: Server,
    certificates: Certificates,
    options: Connect,
    gate: Path,
) -> None:
    script = f"printf '{before}'; read x < {gate}; seq 100; echo new"
    with (
        client_for(server.address, certificates.admin) as admin,
        Interruption(server.address) as network,
        ThreadPoolExecutor(1) as pool,
    ):
        job_id = admin.start("sh", ["-c", script])
        size_bytes = len(before.replace("\\n", "n"))
        wait_until(lambda: admin.query(job_id).log_size_bytes == size_bytes, "the first output")
        first = threading.Event()

        def read() -> bytes:
            data = b""
            for output in stream:
                assert not output.missed_bytes
                data += output.data
                first.set()
            return data

        stream = ResumedStream(
            options(network.address), job_id, start, patience=PATIENCE,
            on_break=network.on_break,
        )  # fmt: skip
        reading = pool.submit(read)
        wait_until(lambda: server.admission.taken() == 1, "the stream")
        if start.tail_bytes:
            assert first.wait(10)
        network.begin(attempts=2)
        gate.write_text("go on\n")
        numbers = b"".join(b"%d\n" % number for number in range(1, 101))
        assert reading.result(30) == expected.replace(b"new\n", numbers + b"new\n")


def test_silent_job_is_followed_for_longer_than_the_patience(
    server: Server,
    certificates: Certificates,
    options: Connect,
    gate: Path,
    audit_log: pytest.LogCaptureFixture,
) -> None:
    patience = Patience(give_up_after_s=0.3, first_pause_s=0.05, silence_s=0.2)
    with (
        client_for(server.address, certificates.admin) as admin,
        Interruption(server.address) as network,
        ThreadPoolExecutor(1) as pool,
    ):
        job_id = admin.start("sh", ["-c", f"read x < {gate}; echo new"])
        stream = ResumedStream(
            options(network.address), job_id, patience=patience, on_break=network.on_break
        )
        reading = pool.submit(list, stream)
        for number in range(1, 4):
            # For longer than the patience: each answer to a query renews it.
            audit_lines(audit_log, "QueryJob", 3 * number)
            assert not reading.done()
            network.begin(attempts=1)
            wait_until(lambda count=number: len(network.breaks) == count, "the break")  # type: ignore[misc]
        gate.write_text("go on\n")
        assert reading.result(30) == [Output(0, b"new\n")]
        assert [broken.attempts for broken in network.breaks] == [1, 1, 1]


def test_stream_gives_up_in_time_and_says_what_it_received(
    server: Server, certificates: Certificates, options: Connect
) -> None:
    with (
        client_for(server.address, certificates.admin) as admin,
        Interruption(server.address) as network,
    ):
        job_id = admin.start("sh", ["-c", "echo 12345; exec sleep 100"])
        patience = Patience(give_up_after_s=1, first_pause_s=0.05, longest_pause_s=0.1)
        stream = ResumedStream(
            options(network.address), job_id, patience=patience, on_break=network.on_break
        )
        outputs = iter(stream)
        assert next(outputs) == Output(0, b"12345\n")
        network.begin(attempts=1000)
        started_s = time.monotonic()
        with pytest.raises(StreamBrokenError) as raised:
            next(outputs)
        error = raised.value
        assert time.monotonic() - started_s < 20
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert (error.received_bytes, error.next_offset) == (6, 6)
        assert error.attempts == len(network.breaks) + 1 > 2
        assert error.without_progress_s >= 1
        assert f"received 6 bytes, then failed attempts: {error.attempts}, in " in str(error)
        admin.stop(job_id, grace_s=0)


@pytest.mark.parametrize(
    "code",
    ["PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "DATA_LOSS", "NOT_FOUND"],
)
def test_refusal_that_will_not_change_is_not_tried_again(
    code: str, certificates: Certificates, options: Connect
) -> None:
    answers = StandIn(refusals=[grpc.StatusCode[code]] * 5)
    with stand_in_server(certificates, answers) as address:
        stream = ResumedStream(options(address), JOB_ID, patience=Patience())
        with pytest.raises(StreamBrokenError) as raised:
            list(stream)
    assert raised.value.code.name == code
    assert str(raised.value) == "refused"
    assert not isinstance(raised.value, JobGoneError)
    assert answers.calls == ["StreamLogs"]


def test_stream_waits_for_a_free_stream(certificates: Certificates, options: Connect) -> None:
    answers = StandIn(output=b"output", refusals=[grpc.StatusCode.RESOURCE_EXHAUSTED] * 3)
    with stand_in_server(certificates, answers) as address:
        stream = ResumedStream(options(address), JOB_ID, patience=Patience(first_pause_s=0.05))
        assert list(stream) == [Output(0, b"output")]
    assert answers.calls == ["StreamLogs"] * 4


def test_cancel_ends_a_stream_that_waits_and_one_that_pauses(
    server: Server, certificates: Certificates, options: Connect
) -> None:
    with (
        client_for(server.address, certificates.admin) as admin,
        Interruption(server.address) as network,
        ThreadPoolExecutor(1) as pool,
    ):
        job_id = admin.start("sleep", ["100"])
        patience = Patience(first_pause_s=50, longest_pause_s=50)
        for interrupted in (False, True):
            stream = ResumedStream(
                options(network.address),
                job_id,
                patience=patience,
                on_break=network.on_break,
            )
            reading = pool.submit(list, stream)
            wait_until(lambda: server.admission.taken() == 1, "the stream")
            if interrupted:
                network.begin(attempts=2)
                wait_until(lambda: len(network.breaks) == 1, "the break")
            stream.cancel()
            with pytest.raises(StreamBrokenError) as raised:
                reading.result(10)
            assert raised.value.code is grpc.StatusCode.CANCELLED
        admin.stop(job_id, grace_s=0)
