"""A guest that tests share, and certificates for servers in it."""

from collections.abc import Iterator

import pytest

from harness.drive.identities import IdentityStore, make_identities
from harness.vm.guest import Guest, boot_guest


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    with boot_guest("tests") as shared:
        yield shared


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))
