"""Fixtures of the load tests' tests."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.drive.identities import IdentityStore, make_identities
from harness.targets.local import OUR_COMMAND, LocalServer, LocalTarget
from loadtests.charts import charts, curves


@pytest.fixture(autouse=True, scope="session")
def _fonts() -> None:
    """Draw once before the leak guard counts: matplotlib keeps its fonts open for the process."""
    draw = partial(curves, "t", "c", "x", "y", {"line": [(1.0, 1.0), (2.0, 50.0)]})
    charts([draw], "warm")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="module")
def server(store: IdentityStore) -> Iterator[LocalServer]:
    with LocalTarget(store, f"{OUR_COMMAND} --no-limits").launch() as running:
        yield running


@pytest.fixture
def own_profile(tmp_path: Path) -> Callable[[str], str]:
    """Write profiles to a file and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "profiles.toml"
        path.write_text(text)
        return str(path)

    return write
