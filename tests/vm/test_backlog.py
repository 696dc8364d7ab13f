"""`widen_backlog`: how many connections a listener of another process lets wait."""

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
# Like QEMU's user network: a backlog of 1, and no accept while it is busy.
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


def count_connected(port: int, timeout_s: float) -> int:
    """Return how many of `AT_ONCE` simultaneous connections are established in time."""
    with ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for _ in range(AT_ONCE):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
            waiting.register(each, selectors.EVENT_WRITE)
        established = 0
        while established < AT_ONCE and (ready := waiting.select(timeout_s)):
            for key, _ in ready:
                waiting.unregister(key.fileobj)
            established += len(ready)
        return established


def test_widened_backlog_holds_simultaneous_connections(narrow: tuple[int, int]) -> None:
    pid, port = narrow
    assert count_connected(port, 0.5) < AT_ONCE // 2
    widen_backlog(pid, port)
    assert count_connected(port, 30) == AT_ONCE


def test_port_without_listener_is_warned_of(
    narrow: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    pid, port = narrow
    with caplog.at_level(logging.WARNING):
        widen_backlog(pid, port + 1)
    assert f"port {port + 1} of process {pid} keeps its short backlog" in caplog.text
    assert "no longer listens on it" in caplog.text


def test_ended_process_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with caplog.at_level(logging.WARNING):
        widen_backlog(process.pid, 1)
    assert "No such process" in caplog.text
