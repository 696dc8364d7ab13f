"""A quick benchmark of one server: `python -m loadtests.bench`, or `make bench`.

Measures, in one run on one machine: replay and live following of a large log by one client, 10 and
100 concurrent streams, the start of a short job, and the server's memory and CPU meanwhile. Beside
them, a plain grpcio server that sends the same bytes in 1 MiB messages: the share of that is the
figure to compare, absolute ones vary with the machine. Every stream's bytes are counted and hashed.

Not covered: latency under load, more clients than 100, comparisons of two servers; for these
`python -m loadtests`.
"""

import argparse
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

# TLS 1.3 only: read once, when grpc is imported.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"

import grpc
import psutil

from jobworker.v1 import jobworker_pb2 as pb
from jobworker.v1 import jobworker_pb2_grpc
from loadtests.limits import PLAIN_SERVICE

MIB: Final = 1024 * 1024
LISTENING: Final = re.compile(r"listening on (\S+)")
START_TIMEOUT_S: Final = 60.0
STREAM_TIMEOUT_S: Final = 300.0

# Writes so many MiB of a pattern that differs from block to block, as fast as it can.
EMITTER: Final = """
import os, sys
block = bytes(range(256)) * 4096
for number in range(int(sys.argv[1])):
    data = memoryview(number.to_bytes(8, "big") + block[8:])
    while data:
        data = data[os.write(1, data):]
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure: how many bytes in what time, and what the server spent on it."""

    name: str
    size_bytes: int
    wall_s: float
    server_cpu_s: float
    server_rss_bytes: int

    def line(self) -> str:
        """Return a row of the table."""
        rate = self.size_bytes / self.wall_s / 1e6
        return (
            f"{self.name:38} {rate:8.0f} MB/s  wall {self.wall_s:6.2f} s  "
            f"server CPU {self.server_cpu_s:6.2f} s  memory {self.server_rss_bytes / MIB:7.0f} MiB"
        )


class Target:
    """A server process that was started here, and a way to measure it."""

    def __init__(self, process: subprocess.Popen[str], address: str, certs: Path) -> None:
        self.address = address
        self._certs = certs
        self._process = psutil.Process(process.pid)

    def channel(self) -> grpc.Channel:
        """Return a new connection, as an admin."""
        read = {name: (self._certs / name).read_bytes() for name in ("ca.crt", "admin.crt")}
        credentials = grpc.ssl_channel_credentials(
            read["ca.crt"], (self._certs / "admin.key").read_bytes(), read["admin.crt"]
        )
        options = [
            ("grpc.max_receive_message_length", 64 * MIB),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.secure_channel(self.address, credentials, options)

    def measure(self, name: str, work: Callable[[], int]) -> Measured:
        """Run some work that returns the bytes it received."""
        before = self._process.cpu_times()
        started_s = time.perf_counter()
        size_bytes = work()
        wall_s = time.perf_counter() - started_s
        after = self._process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        return Measured(name, size_bytes, wall_s, cpu_s, self.memory_bytes())

    def memory_bytes(self) -> int:
        """Return the server's own memory and that of its memfds, which no RSS shows."""
        memfds = {}
        for fd in Path(f"/proc/{self._process.pid}/fd").iterdir():
            try:
                if "/memfd:" in str(fd.readlink()):
                    status = fd.stat()
                    memfds[status.st_ino] = status.st_blocks * 512
            except OSError:
                continue  # closed meanwhile
        return int(self._process.memory_info().rss) + sum(memfds.values())


@contextmanager
def launched(command: list[str], certs: Path) -> Iterator[Target]:
    """Start a server that prints `listening on HOST:PORT`, and end it with SIGTERM."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield Target(process, _listening_address(process, log), certs)
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _listening_address(process: subprocess.Popen[str], log: IO[str]) -> str:
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        for line in process.stdout or ():
            if found := LISTENING.search(line):
                return found[1]
    finally:
        timer.cancel()
    log.seek(0)
    raise SystemExit(f"the server did not start: {log.read()[-2000:]}")


def receive(target: Target, job_id: str) -> tuple[int, str]:
    """Stream a job's output on a connection of its own; return its size and its SHA-256."""
    digest = hashlib.sha256()
    size_bytes = 0
    with target.channel() as channel:
        stub = jobworker_pb2_grpc.JobWorkerStub(channel)
        request = pb.StreamLogsRequest(job_id=job_id)
        for message in stub.StreamLogs(request, timeout=STREAM_TIMEOUT_S):
            size_bytes += len(message.message)
            digest.update(message.message)
    return size_bytes, digest.hexdigest()


def receive_by_many(target: Target, job_id: str, count: int) -> int:
    """Stream to many clients at once; all must receive the same."""
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(lambda _: receive(target, job_id), range(count)))
    if len(set(results)) != 1:
        raise SystemExit(f"the {count} streams differ: {sorted(set(results))}")
    return sum(size_bytes for size_bytes, _ in results)


def start_emitter(target: Target, size_mib: int) -> str:
    """Start a job that writes so many MiB at once, and return its id."""
    with target.channel() as channel:
        stub = jobworker_pb2_grpc.JobWorkerStub(channel)
        request = pb.StartJobRequest(
            command_name=sys.executable, command_args=["-c", EMITTER, str(size_mib)]
        )
        job_id: str = stub.StartJob(request, timeout=START_TIMEOUT_S).job_id
    return job_id


def start_times_ms(target: Target, count: int) -> list[float]:
    """Return how long each of so many starts of /bin/true took, one after the other."""
    times_ms = []
    with target.channel() as channel:
        stub = jobworker_pb2_grpc.JobWorkerStub(channel)
        request = pb.StartJobRequest(command_name="/bin/true")
        stub.StartJob(request, timeout=START_TIMEOUT_S)
        for _ in range(count):
            started_s = time.perf_counter()
            stub.StartJob(request, timeout=START_TIMEOUT_S)
            times_ms.append((time.perf_counter() - started_s) * 1000)
    return times_ms


def receive_plain(target: Target) -> int:
    """Receive what the plain server sends, and hash it as `receive` does."""
    digest = hashlib.sha256()
    size_bytes = 0
    with target.channel() as channel:
        call: Any = channel.unary_stream(f"/{PLAIN_SERVICE}/Get")
        for message in call(b"", timeout=STREAM_TIMEOUT_S):
            size_bytes += len(message)
            digest.update(message)
    return size_bytes


def run(command: list[str], certs: Path, size_mib: int, rounds: int) -> None:
    """Measure everything and print the table."""
    plain = [sys.executable, "-m", "loadtests.limits", "grpc", str(size_mib)]
    plain += [str(certs / name) for name in ("ca.crt", "server.crt", "server.key")]
    rates: dict[str, list[float]] = {"plain": [], "replay": []}
    with launched(plain, certs) as reference, launched(command, certs) as server:
        job_id = start_emitter(server, size_mib)
        print(
            server.measure(
                f"live, 1 stream, {size_mib} MiB", lambda: receive(server, job_id)[0]
            ).line()
        )
        for _ in range(rounds):
            for name, target, work in (
                ("plain", reference, lambda: receive_plain(reference)),
                ("replay", server, lambda: receive(server, job_id)[0]),
            ):
                measured = target.measure(f"{name}, 1 stream, {size_mib} MiB", work)
                rates[name].append(measured.size_bytes / measured.wall_s)
                print(measured.line())
        share = statistics.median(rates["replay"]) / statistics.median(rates["plain"])
        print(f"replay is {share:.2f} of plain grpcio with 1 MiB messages (medians of {rounds})")
        for count, mib in ((10, size_mib // 16), (100, size_mib // 16)):
            job_id = start_emitter(server, mib)
            work = _many(server, job_id, count)
            print(server.measure(f"live, {count} streams, {mib} MiB each", work).line())
        times_ms = sorted(start_times_ms(server, 300))
        print(
            f"start of /bin/true, 300 one by one: p50 {times_ms[150]:.2f} ms, "
            f"p99 {times_ms[297]:.2f} ms"
        )


def _many(server: Target, job_id: str, count: int) -> Callable[[], int]:
    return lambda: receive_by_many(server, job_id, count)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--certs", type=Path, default=Path("certs/out"), help="made by `make certs`"
    )
    parser.add_argument("--size-mib", type=int, default=1024, help="the large log")
    parser.add_argument("--rounds", type=int, default=3, help="of plain and replay in turn")
    parser.add_argument(
        "command", nargs="*",
        help="starts the server and prints `listening on HOST:PORT`; default: ours, without limits",
    )  # fmt: skip
    options = parser.parse_args()
    files = {"ca": "ca.crt", "cert": "server.crt", "key": "server.key"}
    default = [str(Path(sys.executable).with_name("worker-service")), "serve", "--no-limits"]
    default += ["--listen", "127.0.0.1:0", "--log-level", "warning"]
    for flag, name in files.items():
        default += [f"--{flag}", str(options.certs / name)]
    run(options.command or default, options.certs, options.size_mib, options.rounds)


if __name__ == "__main__":
    main()
