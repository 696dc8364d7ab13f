"""One real server for the tests that do not need their own."""

import logging
from collections.abc import Iterator

import pytest

from tests.support.service import Certificates, client_for, running_server
from worker_service.client import Client
from worker_service.server import Server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def server(certificates: Certificates) -> Iterator[Server]:
    with running_server(certificates) as running:
        yield running


@pytest.fixture
def admin(server: Server, certificates: Certificates) -> Iterator[Client]:
    with client_for(server.address, certificates.admin) as client:
        yield client


@pytest.fixture
def user(server: Server, certificates: Certificates) -> Iterator[Client]:
    with client_for(server.address, certificates.user) as client:
        yield client


@pytest.fixture
def audit_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture the audit lines of servers in this process."""
    with caplog.at_level(logging.INFO, "worker_service.audit"):
        yield caplog
