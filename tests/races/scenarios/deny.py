"""The deny list: a denied certificate stays denied, whichever thread reloads the changed file."""

import tempfile
from pathlib import Path
from unittest import mock

from harness.races.exploration import atomic_step
from harness.races.instrumentation import Watch
from harness.races.scenario import Scenario
from tests.races.support import run_threads
from worker_service import watched_files
from worker_service.deny import DenyList
from worker_service.errors import NotAuthenticatedError
from worker_service.watched_files import WatchedFiles

LOST = 0xBAD


def refused(deny_list: DenyList) -> bool:
    try:
        deny_list.check(LOST)
    except NotAuthenticatedError:
        return True
    return False


def a_certificate_is_denied() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="races-deny-") as directory,
        # A recently changed list is read at every check; for how long depends on a real clock.
        mock.patch.object(watched_files, "SETTLED_S", 0.0),
    ):
        file = Path(directory, "denied")
        file.write_text("# none\n")
        deny_list = DenyList(file)
        seen: list[bool] = []

        def operator() -> None:
            with atomic_step():
                file.write_text(f"{LOST:x}\n")
            assert refused(deny_list), "accepted after it was denied"

        def client() -> None:
            seen.extend(refused(deny_list) for _ in range(2))

        run_threads(operator, client)
        assert seen == sorted(seen), "accepted after it was refused"
        assert refused(deny_list)


SCENARIOS = (
    Scenario(
        "deny.change", "A certificate is refused from the moment it is on the list.",
        a_certificate_is_denied, (watched_files,), Watch((WatchedFiles,)),
    ),
)  # fmt: skip
