"""Servers with other APIs, judged by their dialects: what each check says of each fault.

The servers stand in for public job workers (`tests/support/foreign_server.py`). A fault must FAIL
the checks that own its promise, and no other.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from harness.checks import ALL
from harness.checks.check import Need, Scale
from harness.dialects.load import load_dialect
from harness.drive import client
from harness.drive.identities import make_identities
from harness.record.results import CheckResult
from harness.record.verdict import Verdict
from harness.run.capabilities import Capabilities, probe_capabilities
from harness.run.check_runner import Options, run_checks
from harness.targets.local import LocalTarget

DIALECTS: Final = Path(__file__).parents[1] / "dialects"
COMMAND: Final = (
    "{python} -m tests.support.foreign_server KIND FAULT --listen {listen} --ca {ca} --cert {cert} "
    "--key {key}"
)
CHECKS: Final = (
    "lifecycle.ids", "lifecycle.stop-twice", "lifecycle.bad-commands", "lifecycle.literal",
    "lifecycle.signals", "lifecycle.last-words", "lifecycle.stop-tree", "streams.writes",
    "streams.end", "streams.order", "identity.roles", "identity.strangers",
)  # fmt: skip
BY_NAME: Final = {check.name: check for check in ALL}
# What each kind of server lacks, so that a check is SKIPPED.
LACKING: Final[dict[str, dict[str, str]]] = {
    "units": {},
    "nested": {
        "lifecycle.signals": "signals in its query", "streams.order": "one order",
        "identity.roles": "roles in certificates", "lifecycle.last-words": "this promise",
    },
    "required": {
        "identity.roles": "roles in certificates", "lifecycle.last-words": "this promise"
    },
}  # fmt: skip
# The checks that a faulty server is judged by: quick ones, and those that own its promise.
FEWER: Final = (
    "lifecycle.ids", "lifecycle.stop-twice", "lifecycle.literal", "streams.writes", "streams.end"
)  # fmt: skip


class Faulty(NamedTuple):
    """A server with a fault.

    Attributes:
        kind: of the server.
        fault: of it, or several, with spaces between.
        failing: the checks that FAIL.
        unjudged: those that could not be judged because of them.
        checks: that are run beside those that FAIL.
    """

    kind: str
    fault: str
    failing: frozenset[str]
    unjudged: frozenset[str] = frozenset()
    checks: tuple[str, ...] = FEWER


FAULTY: Final = (
    Faulty("units", "corrupt", frozenset({"streams.writes"}), frozenset({"lifecycle.literal"})),
    # A reader of a running job loses its tail only by chance; one that joins later, always.
    Faulty("nested", "tail-lost", frozenset({"streams.after-end"}), checks=FEWER[:3]),
    Faulty("units", "children-left", frozenset({"lifecycle.stop-tree"})),
    # What it does to processes is judged although nothing that a job prints can be trusted.
    Faulty(
        "units", "corrupt endless children-left",
        frozenset({"streams.writes", "streams.end", "lifecycle.stop-tree"}),
        frozenset({"lifecycle.literal"}),
    ),
    Faulty(
        "units", "corrupt says-stopped",
        frozenset({
            "streams.writes", "lifecycle.escalates", "lifecycle.stopped-job", "lifecycle.stop-tree",
        }),
        frozenset({"lifecycle.literal"}),
    ),
    Faulty(
        "nested", "corrupt missing-program",
        frozenset({"streams.writes", "lifecycle.bad-commands"}), frozenset({"lifecycle.literal"}),
    ),
    Faulty("nested", "missing-program", frozenset({"lifecycle.bad-commands"})),
    Faulty("required", "unknown-job", frozenset({"lifecycle.ids"})),
    Faulty("units", "never-running", frozenset({"lifecycle.stop-twice"})),
    Faulty("units", "exit-codes", frozenset({"lifecycle.exit-codes"})),
    Faulty("nested", "old-tls", frozenset({"identity.versions"}), checks=("identity.openssl",)),
)  # fmt: skip
# Without access to the server's machine, the processes of a tree are those that it prints.
BLIND: Final = {
    "children-left": {"lifecycle.stop-tree": Verdict.FAIL},
    "corrupt children-left": {
        "lifecycle.stop-tree": Verdict.SKIPPED, "streams.writes": Verdict.FAIL
    },
    "": {
        "lifecycle.escalates": Verdict.PASS, "lifecycle.stopped-job": Verdict.PASS,
        "lifecycle.stop-tree": Verdict.PASS,
    },
}  # fmt: skip


class Silent:
    """Reports no progress."""

    def note(self, text: str) -> None: ...
    def started(self, target: str, name: str) -> None: ...
    def finished(self, result: CheckResult) -> None: ...


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identities")


@contextmanager
def open_target(kind: str, fault: str, identities: Path) -> Iterator[LocalTarget]:
    dialect = load_dialect(str(DIALECTS / f"{kind}.toml"))
    store = make_identities(identities / kind, scheme=dialect.identities)
    flag = " ".join(f"--fault {each}" for each in fault.split())
    target = LocalTarget(store, COMMAND.replace("KIND", kind).replace("FAULT", flag), {})
    target.dialect = dialect
    yield target


@functools.cache
def capabilities(kind: str, identities: Path) -> Capabilities:
    with open_target(kind, "", identities) as target, target.launch() as server:
        return probe_capabilities(target, server, Scale.FULL)


def verdicts(
    kind: str,
    fault: str,
    names: Iterable[str],
    identities: Path,
    tmp_path: Path,
    *,
    lacking: Mapping[Need, str] = {},
) -> tuple[dict[str, Verdict], str]:
    """Return the verdict of each check, and all findings as a text."""
    checks = [BY_NAME[name] for name in names]
    with open_target(kind, fault, identities) as target:
        found = {**capabilities(kind, identities), **lacking}
        results = run_checks(target, checks, Options("tests", tmp_path), Silent(), found)
    findings = [
        f"{result.verdict} {result.name}: {finding.sentence()}"
        for result in results
        for finding in result.findings
        if finding.verdict is not Verdict.PASS
    ]
    return {result.name: result.verdict for result in results}, "\n".join(findings)


def named(found: dict[str, Verdict], verdict: Verdict) -> set[str]:
    return {name for name, each in found.items() if each is verdict}


@pytest.mark.parametrize("kind", LACKING)
def test_a_server_without_a_fault_passes_all_that_its_dialect_names(
    kind: str, identities: Path, tmp_path: Path
) -> None:
    found, findings = verdicts(kind, "", CHECKS, identities, tmp_path)
    assert named(found, Verdict.SKIPPED) == set(LACKING[kind]), findings
    assert named(found, Verdict.PASS) == set(CHECKS) - set(LACKING[kind]), findings
    for name, reason in LACKING[kind].items():
        assert f"SKIPPED {name}: the target lacks {reason}" in findings


# identity.versions offers deprecated versions of TLS on purpose.
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("server", FAULTY, ids=lambda each: f"{each.kind}-{each.fault}")
def test_a_fault_fails_the_checks_that_own_its_promise_and_no_other(
    server: Faulty, identities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUIET_S", 0.5)  # each stream that does not end takes so long
    names = dict.fromkeys([*server.checks, *server.failing])
    found, findings = verdicts(server.kind, server.fault, names, identities, tmp_path)
    assert named(found, Verdict.FAIL) == server.failing, findings
    assert named(found, Verdict.SKIPPED) == server.unjudged, findings
    assert not named(found, Verdict.BROKEN), findings


@pytest.mark.parametrize("fault", BLIND)
def test_trees_are_judged_by_what_they_print_where_the_machine_cannot_be_seen(
    fault: str, identities: Path, tmp_path: Path
) -> None:
    lacking = {Need.HOST: "the target lacks access to the server's machine"}
    found, findings = verdicts("units", fault, BLIND[fault], identities, tmp_path, lacking=lacking)
    assert found == BLIND[fault], findings
