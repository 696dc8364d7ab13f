"""A standard error that is not read, or cannot be written, harms neither calls nor the end."""

import errno
import fcntl
import logging
import os
import re
import signal
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support.service import COMMAND, Certificates, client_for, wait_until
from worker_service import stderr as stderr_module
from worker_service.client import Client
from worker_service.stderr import StderrHandler

CALLS: Final = 60
AUDIT_LINE: Final = re.compile(rb" INFO worker_service\.audit .*ListJobs")
NOTE: Final = re.compile(rb"^(\d+) lines were dropped here: ", re.MULTILINE)
PIPE: Final = 4096
# As little as a pipe can hold: the server's own, so that it is full after a few lines.
SMALL_PIPE: Final = (
    "import worker_service.stderr as s; s._PIPE_BYTES = 4096; "
    "from worker_service.cli import main; main()"
)


@contextmanager
def server_with(
    certificates: Certificates, stderr: int, *arguments: str
) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """Run a server with a standard error of the test's, and a small pipe before it."""
    files = certificates.server
    python = COMMAND.removesuffix("worker-service") + "python"
    with subprocess.Popen(
        [
            python, "-c", SMALL_PIPE, "serve", "--no-limits", "--listen", "127.0.0.1:0",
            "--ca", files.ca, "--cert", files.cert, "--key", files.key, *arguments,
        ],
        stdout=subprocess.PIPE, stderr=stderr,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[-1].decode()
            with client_for(address, certificates.admin) as client:
                yield process, client
        finally:
            process.kill()


def full_pipe() -> tuple[int, int]:
    """Return a pipe that has no room."""
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE)
    os.write(write_fd, b"." * (PIPE - 1) + b"\n")
    return read_fd, write_fd


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop the server; it must end soon and orderly."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


@pytest.mark.timeout(90)
def test_calls_and_the_end_do_not_wait_for_a_stderr_that_is_never_read(
    certificates: Certificates,
) -> None:
    read_fd, write_fd = full_pipe()
    try:
        with server_with(certificates, write_fd) as (process, client):
            for _ in range(CALLS):
                client.list_jobs()
            end(process)
    finally:
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.timeout(90)
def test_dropped_lines_are_counted_exactly_once_there_is_room(certificates: Certificates) -> None:
    read_fd, write_fd = full_pipe()
    read = bytearray()
    with server_with(certificates, write_fd) as (process, client):
        os.close(write_fd)
        for _ in range(CALLS):
            client.list_jobs()
        reader = threading.Thread(target=lambda: _read_all(read_fd, read))
        reader.start()
        wait_until(lambda: NOTE.search(bytes(read)) is not None, "the number of dropped lines")
        client.list_jobs()
        end(process)
        reader.join(20)
    os.close(read_fd)
    # Several numbers: there may be room for one of them alone, and then none for the next line.
    dropped = sum(int(number) for number in NOTE.findall(bytes(read)))
    written = bytes(read).partition(b"\n")[2].splitlines()
    audited = sum(AUDIT_LINE.search(line) is not None for line in written)
    assert dropped > 0
    assert audited + dropped == CALLS + 1
    assert written[-1].endswith(b"stopped")
    order = [NOTE.match(line) is not None for line in written]
    assert any(AUDIT_LINE.search(line) for line in written[order.index(True) :]), (
        "the order is kept"
    )
    assert all(NOTE.match(line) or re.match(rb"\d{4}-", line) for line in written), "a torn line"


def _read_all(fd: int, into: bytearray) -> None:
    while data := os.read(fd, 65536):
        into += data


def closed() -> int:
    """Return a pipe whose reader has gone."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    return write_fd


@pytest.mark.timeout(90)
@pytest.mark.parametrize("opens", [closed, lambda: os.open("/dev/full", os.O_WRONLY)])
def test_stderr_that_cannot_be_written_fails_no_call(
    certificates: Certificates, opens: Callable[[], int]
) -> None:
    stderr = opens()
    try:
        with server_with(certificates, stderr) as (process, client):
            for _ in range(CALLS):
                client.list_jobs()
            end(process)
    finally:
        os.close(stderr)


@pytest.mark.timeout(90)
def test_reader_that_is_killed_harms_nothing(certificates: Certificates) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        assert reader.stdin is not None
        with server_with(certificates, reader.stdin.fileno()) as (process, client):
            client.list_jobs()
            reader.kill()
            reader.wait()
            for _ in range(CALLS):
                client.list_jobs()
            end(process)


def test_reader_of_a_full_disk_gets_what_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for the first two lines; a handler of this process, not a server's."""
    taken: list[bytes] = []
    outcomes = iter([OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full")])
    write = os.write

    def full_at_first(fd: int, data: bytes) -> int:
        if fd == 2 or threading.current_thread().name != "stderr":
            return write(fd, data)
        if (error := next(outcomes, None)) is not None:
            turn.set()
            raise error
        taken.append(bytes(data))
        turn.set()
        return len(data)

    turn = threading.Event()
    before = os.fstat(2)
    monkeypatch.setattr(os, "write", full_at_first)
    handler = StderrHandler()
    try:
        for text in ("first", "second", "third", "\udcff"):
            handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, text, None, None))
            assert turn.wait(20)
            turn.clear()
    finally:
        handler.close()
    assert taken == [
        b"2 lines were dropped here: standard error did not take them\nthird\n",
        b"\\udcff\n",
    ]
    assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)


@pytest.mark.timeout(60)
def test_line_that_cannot_be_formatted_is_written_without_waiting() -> None:
    read_fd, write_fd = full_pipe()
    saved_fd = os.dup(2)
    os.dup2(write_fd, 2)
    os.close(write_fd)
    read = bytearray()
    reader = threading.Thread(target=lambda: _read_all(read_fd, read))
    handler = StderrHandler()
    bad = logging.LogRecord("n", logging.INFO, "p", 1, "%d lines", ("two",), None)

    def fill() -> None:  # beyond what the pipes hold
        for _ in range(2000):
            handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, "x" * 1000, None, None))
        handler.handle(bad)

    caller = threading.Thread(target=fill, daemon=True)
    try:
        caller.start()
        caller.join(20)
        assert not caller.is_alive(), "a log line waits for the reader of standard error"
        reader.start()
        wait_until(lambda: NOTE.search(read) is not None, "the number of dropped lines")
        handler.handle(bad)
    finally:
        handler.close()
        os.dup2(saved_fd, 2)
        os.close(saved_fd)
        if reader.ident is not None:
            reader.join(20)
        os.close(read_fd)
    assert b"a log line cannot be formatted" in read
    assert b"TypeError: " in read


def test_line_that_does_not_fit_at_once_is_completed_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stderr_module, "_PIPE_BYTES", PIPE)
    read_fd, write_fd = full_pipe()
    saved_fd = os.dup(2)
    os.dup2(write_fd, 2)
    os.close(write_fd)
    read = bytearray()
    reader = threading.Thread(target=lambda: _read_all(read_fd, read))
    handler = StderrHandler()
    try:
        handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, "x" * 6000, None, None))
        reader.start()
        wait_until(lambda: len(read) >= 2 * PIPE, "the beginning of the line")
        handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, "next", None, None))
    finally:
        handler.close()
        os.dup2(saved_fd, 2)
        os.close(saved_fd)
        reader.join(20)
        os.close(read_fd)
    assert bytes(read).splitlines()[1:] == [b"x" * 6000, b"next"]


def is_written(file: Path, text: str) -> bool:
    return text in file.read_text()


@pytest.mark.timeout(60)
def test_forwarding_a_line_allocates_its_bytes_and_not_the_size_of_the_pipe(tmp_path: Path) -> None:
    file = tmp_path / "stderr"
    saved_fd = os.dup(2)
    file_fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(file_fd, 2)
    os.close(file_fd)
    handler = StderrHandler()
    tracemalloc.start()
    try:
        for number in range(5):  # each is forwarded by a read of its own
            text = f"line {number}"
            handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, text, None, None))
            wait_until(partial(is_written, file, text), text)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        handler.close()
        os.dup2(saved_fd, 2)
        os.close(saved_fd)
    assert file.read_text() == "".join(f"line {number}\n" for number in range(5))
    assert peak_bytes < stderr_module._PIPE_BYTES // 4
