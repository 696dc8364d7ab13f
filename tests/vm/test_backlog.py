"""A listener of another process, and how many connections it lets wait."""

import logging
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.vm.backlog import widen_backlog

AT_ONCE = 60
# What QEMU's own network does: it listens for one, and accepts when it comes to it.
NARROW = """
import os, socket, sys
os.pipe()
socket.socketpair()
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def narrow() -> Iterator[tuple[int, int]]:
    with subprocess.Popen(
        [sys.executable, "-c", NARROW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
        assert process.stdin
        process.stdin.close()


def connected(port: int, timeout_s: float) -> int:
    """Tell how many of `AT_ONCE` connections that begin at once are there in time."""
    with ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for _ in range(AT_ONCE):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
            waiting.register(each, selectors.EVENT_WRITE)
        there = 0
        while there < AT_ONCE and (ready := waiting.select(timeout_s)):
            for key, _ in ready:
                waiting.unregister(key.fileobj)
            there += len(ready)
        return there


def test_connections_at_once_find_room(narrow: tuple[int, int]) -> None:
    pid, port = narrow
    assert connected(port, 0.5) < AT_ONCE // 2
    widen_backlog(pid, port)
    assert connected(port, 30) == AT_ONCE


def test_a_port_that_nobody_listens_at_is_told(
    narrow: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    pid, port = narrow
    with caplog.at_level(logging.WARNING):
        widen_backlog(pid, port + 1)
    assert f"port {port + 1} of process {pid} takes few connections at once" in caplog.text
    assert "listens there no longer" in caplog.text


def test_a_process_that_is_not_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with caplog.at_level(logging.WARNING):
        widen_backlog(process.pid, 1)
    assert "No such process" in caplog.text
