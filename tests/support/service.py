"""A real server for a test, in this process or as a separate program, and clients for it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import grpc
import pytest

from harness.drive.certificates import ADMIN, USER, Authority, CertificateSpec, server_spec
from harness.host.cert_files import CertFiles
from harness.host.clock import poll_until
from worker_service.client import Client, ClientOptions
from worker_service.config import Settings
from worker_service.server import Server
from worker_service.tls import CertificateFiles, channel_credentials

START_TIMEOUT_S: Final = 30.0
COMMAND: Final = str(Path(sys.executable).with_name("worker-service"))


class Certificates:
    """A CA and the certificates that a test needs, in a directory laid out like `certs/out`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.server = self.authority.write(directory, "server", server_spec())
        self.admin = self.authority.write(directory, "admin", CertificateSpec(roles=(ADMIN,)))
        self.user = self.authority.write(directory, "user", CertificateSpec(roles=(USER,)))

    def settings(self) -> Settings:
        """Return settings for a server on a free port, without limits."""
        return Settings(
            listen="127.0.0.1:0",
            ca=self.server.ca,
            cert=self.server.cert,
            key=self.server.key,
            limits=False,
            stop_grace=2.0,
        )


def client_for(address: str, files: CertFiles, timeout_s: float = 20.0) -> Client:
    """Return a client with a certificate."""
    return Client(
        ClientOptions(
            address, CertificateFiles(files.ca, files.cert, files.key), timeout_s=timeout_s
        )
    )


def channel_for(address: str, files: CertFiles) -> grpc.Channel:
    """Return a gRPC channel with a certificate."""
    return grpc.secure_channel(
        address, channel_credentials(CertificateFiles(files.ca, files.cert, files.key))
    )


def audit_lines(caplog: pytest.LogCaptureFixture, rpc: str, count: int = 1) -> list[str]:
    """Wait for the audit lines of an rpc: a call's line is written after its response."""

    def found() -> list[str] | None:
        lines = [
            record.getMessage()
            for record in caplog.records
            if record.name == "worker_service.audit"
            and re.match(rf"rpc={re.escape(rpc)}\s", record.getMessage())
        ]
        return lines if len(lines) >= count else None

    return poll_until(found, 10, f"{count} audit lines of {rpc}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        BrokenError: it timed out.
    """
    poll_until(lambda: condition() or None, 10, what)


@contextmanager
def running_server(certificates: Certificates, **changes: object) -> Iterator[Server]:
    """Run a server in this process; remaining jobs are killed at the end."""
    with Server(replace(certificates.settings(), **changes)) as server:  # type: ignore[arg-type]
        yield server


@contextmanager
def launched_server(
    certificates: Certificates, *arguments: str, program: Sequence[str] = (COMMAND,)
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `worker-service serve`, or a similar program; yield the process and its address."""
    files = certificates.server
    command = [*program, "serve", "--no-limits", "--listen", "127.0.0.1:0"]
    command += ["--ca", str(files.ca), "--cert", str(files.cert), "--key", str(files.key)]
    log_path = certificates.directory / f"server-{os.urandom(4).hex()}.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield process, _address(process, log_path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _address(process: subprocess.Popen[str], log_path: Path) -> str:
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        for line in process.stdout or ():
            if found := re.search(r"listening on (\S+)", line):
                return found[1]
    finally:
        timer.cancel()
        timer.join()
    raise AssertionError(f"the server did not start: {log_path.read_text()[-2000:]}")
