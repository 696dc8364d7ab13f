"""One guest for the tests that only look into it, and certificates for servers in it."""

from collections.abc import Iterator

import pytest

from harness.drive.identities import IdentityStore, make_identities
from harness.vm.guest import Guest, booted


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    with booted("tests") as shared:
        yield shared


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))
