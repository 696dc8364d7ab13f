"""What the tests of the load tests share."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.identities import IdentityStore, make_identities
from harness.targets.local import OUR_COMMAND, LocalServer, LocalTarget

# The package comes with the lock file; until it is there, nothing here can be imported.
if find_spec("hdrh") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def server(store: IdentityStore) -> Iterator[LocalServer]:
    with LocalTarget(store, f"{OUR_COMMAND} --no-limits").launched() as running:
        yield running


@pytest.fixture
def own_profile(tmp_path: Path) -> Callable[[str], str]:
    """Write profiles to a file and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "profiles.toml"
        path.write_text(text)
        return str(path)

    return write
