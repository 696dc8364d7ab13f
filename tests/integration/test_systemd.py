"""What the service manager is sent, sd_notify(3): that clients are served, and the end."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import COMMAND, Certificates, client_for, launched_server
from worker_service import systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.settimeout(20)
        receiving.bind(str(tmp_path / "notify"))
        yield receiving


def test_ready_is_sent_once_clients_are_served_and_stopping_at_the_end(
    certificates: Certificates, manager: socket.socket
) -> None:
    program = ("env", f"NOTIFY_SOCKET={manager.getsockname()}", COMMAND)
    with launched_server(certificates, program=program) as (process, address):
        assert manager.recv(100) == b"READY=1"
        with client_for(address, certificates.admin) as client:
            job_id = client.start("sh", ["-c", "echo socket: $NOTIFY_SOCKET"])
            output = b"".join(bytes(each.data) for each in client.stream(job_id))
        assert output == b"socket:\n"  # a job cannot speak for the server
        process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(timeout=20) == 0


def test_abstract_socket_is_one_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.settimeout(5)
        name = f"jobworker-{os.urandom(6).hex()}"
        receiving.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify(systemd.READY)
        assert receiving.recv(100) == b"READY=1"


def test_nothing_is_sent_without_a_manager_and_one_that_has_gone_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with caplog.at_level(logging.WARNING):
        systemd.notify(systemd.READY)
        assert not caplog.messages
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
        systemd.notify(systemd.READY)
    assert "did not receive READY=1: " in caplog.text
