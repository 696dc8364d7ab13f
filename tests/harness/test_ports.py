"""Ports for servers are neither taken, nor reserved, nor in the kernel's ephemeral range."""

import itertools
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.host import ports
from harness.host.ports import free_port, reserved_port
from harness.record.verdict import BrokenError

PLENTY = 100


class Dice(random.Random):
    """Returns the given numbers."""

    def __init__(self, falls: Iterator[int]) -> None:
        super().__init__()
        self._falls = falls

    def choice(self, _: object) -> Any:
        return next(self._falls)


@pytest.mark.parametrize(
    ("ephemeral", "least", "most"),
    [
        ("32768\t60999\n", 10_000, 32_767),
        ("1024\t60999\n", 61_000, 65_535),
        ("1024\t65535\n", 10_000, 65_535),
    ],
)
def test_free_port_is_outside_the_ephemeral_range_if_enough_are(
    ephemeral: str, least: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ip_local_port_range"
    path.write_text(ephemeral)
    monkeypatch.setattr(ports, "_EPHEMERAL", path)
    assert all(least <= free_port() <= most for _ in range(PLENTY))


def test_reserved_port_is_not_chosen_by_any_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with reserved_port() as port:
        theirs = f"from harness.host import ports; ports._random.choice = lambda *_: {port}; "
        done = subprocess.run(
            [sys.executable, "-c", theirs + "ports.free_port()"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert f"no free port on 127.0.0.1 in {ports._TRIES} tries" in done.stderr
        other = free_port()
        monkeypatch.setattr(ports, "_random", Dice(iter([port, port, port, other])))
        assert free_port() == other
    monkeypatch.setattr(ports, "_random", Dice(iter([port])))
    assert free_port() == port


def test_no_free_port_is_broken_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(ports, "_random", Dice(itertools.repeat(port)))
        with pytest.raises(BrokenError, match="end the processes that listen there"):
            free_port()
