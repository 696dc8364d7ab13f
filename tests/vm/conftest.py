"""One guest for all tests here, with our server in it; the tests call it from this host."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.clock import poll_until
from harness.vm.guest import PYTHONPATH, Guest, booted
from tests.support.service import Certificates, client_for
from worker_service.client import Client

SERVER_PORT = 50051
START_TIMEOUT_S = 90.0


@dataclasses.dataclass
class GuestServer:
    """Our server in the guest."""

    guest: Guest
    certificates: Certificates
    address: str = ""
    log: Path = Path()

    @contextmanager
    def running(self, *flags: str, port: int = SERVER_PORT) -> Iterator[None]:
        """Run it for as long as the context lasts; it ends by SIGTERM, as far as it still runs."""
        command = (
            f"cd project && PYTHONPATH={PYTHONPATH} exec python3 -m worker_service serve "
            f"--listen 10.0.2.15:{port} --ca /root/ca.crt --cert /root/server.crt "
            f"--key /root/server.key --log-level warning {' '.join(flags)}"
        )
        with tempfile.TemporaryDirectory() as directory:
            self.log = Path(directory) / "log"
            with self.guest.background(command, self.log) as process:

                def listening() -> bool | None:
                    said = self.log.read_text(errors="replace")
                    assert process.poll() is None, said
                    return True if "listening on" in said else None

                poll_until(listening, START_TIMEOUT_S, "the server", self.log.read_text)
                yield
                self.guest.run(f"pkill -TERM -f '[-]-listen 10.0.2.15:{port} '")
                process.wait(timeout=60)

    def client(self) -> Client:
        """Return an admin's client."""
        return client_for(self.address, self.certificates.admin, timeout_s=60)


@pytest.fixture(scope="session")
def stopped_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestServer]:
    """A guest with everything in it to run our server."""
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with booted("tests") as guest:
        guest.put_project()
        files = certificates.server
        for path in (files.ca, files.cert, files.key):
            guest.put(f"/root/{path.name}", path.read_bytes(), mode=0o600)
        address = f"127.0.0.1:{guest.forward(SERVER_PORT)}"
        yield GuestServer(guest, certificates, address)


@pytest.fixture(scope="session")
def server(stopped_server: GuestServer) -> Iterator[GuestServer]:
    """The server, running with limits."""
    with stopped_server.running():
        yield stopped_server


@pytest.fixture
def client(server: GuestServer) -> Iterator[Client]:
    with server.client() as connected:
        yield connected


@pytest.fixture
def in_guest(server: GuestServer) -> Callable[[str], str]:
    """Run a shell command in the guest and return its output."""
    return server.guest.require
