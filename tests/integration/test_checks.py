"""The quick checks of the harness, against one server that this test session started.

A promise to clients is judged by a check, in any server; the other tests here see what no check
sees.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

import pytest

from harness.checks import ALL
from harness.checks.check import Scale
from harness.checks.quick import QUICK
from harness.drive.identities import IdentityStore, make_identities
from harness.record.results import CheckResult
from harness.record.verdict import Verdict
from harness.run.capabilities import Capabilities, probe_capabilities
from harness.run.check_runner import Options, run_checks
from harness.targets.local import OUR_COMMAND, LocalServer, LocalTarget

COMMAND: Final = f"{OUR_COMMAND} --no-limits"
CHECKS: Final = {check.name: check for check in ALL}


class StartedTarget(LocalTarget):
    """A target on this host whose shared server is already running."""

    def __init__(self, identities: IdentityStore, server: LocalServer) -> None:
        super().__init__(identities, COMMAND)
        self.server = server

    def shared(self) -> AbstractContextManager[LocalServer]:
        return nullcontext(self.server)


class Silent:
    """Reports no progress."""

    def note(self, text: str) -> None: ...
    def started(self, target: str, name: str) -> None: ...
    def finished(self, result: CheckResult) -> None: ...


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedTarget]:
    identities = make_identities(tmp_path_factory.mktemp("identities"))
    with LocalTarget(identities, COMMAND).launch() as server:
        yield StartedTarget(identities, server)


@pytest.fixture(scope="session")
def capabilities(target: StartedTarget) -> Capabilities:
    return probe_capabilities(target, target.server, Scale.FULL)


# identity.versions offers deprecated versions of TLS on purpose.
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("name", QUICK)
def test_quick_check_passes(
    name: str, target: StartedTarget, capabilities: Capabilities, tmp_path: Path
) -> None:
    options = Options("tests", tmp_path)
    [result] = run_checks(target, [CHECKS[name]], options, Silent(), capabilities)
    assert result.verdict is Verdict.PASS, "\n".join(map(str, result.findings))
