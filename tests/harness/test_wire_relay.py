"""The relay in front of a real server: what passes, what is changed, and what checks make of it."""

from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from harness.checks import ALL
from harness.checks.check import Check, Need
from harness.cli.wire import wire
from harness.drive.client import Client
from harness.drive.identities import CASES, IdentityStore, make_identities
from harness.drive.receiver import StreamPlan
from harness.judge.promises import assumed, equal
from harness.record.history import Recorder
from harness.run.selftest import local_target
from harness.targets.fronted import direct_target
from harness.targets.target import RunningServer, Target, Variant
from harness.wire import equivalents
from harness.wire.mutants import FieldMutant, StreamMutant, WireMutant, generate
from harness.wire.proof import BAD, ControlledCheck, Controls, Outcome, control, prove
from harness.wire.tap import MutantTap, Tap
from harness.wire.target import SERVICE, open_target
from tests.test_tidy import ROOT

BY_NAME = {mutant.name: mutant for mutant in generate(SERVICE)}
EXIT_CODE = "wire.QueryJobResponse.exit_code.plus-one"


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="module")
def target(identities: IdentityStore) -> Target:
    return local_target(identities, ROOT)


@pytest.fixture(scope="module")
def server(target: Target) -> Iterator[RunningServer]:
    with target.shared() as server:
        yield server


def test_caller_is_represented_by_its_own_certificate(
    target: Target, server: RunningServer
) -> None:
    expected = {"user": "PERMISSION_DENIED", "admin": "OK"}
    expected |= {case.file_name: case.expected for case in CASES if case.name == "no role"}
    got = {}
    with open_target(target, server, Tap()) as relayed, relayed.shared() as relay:
        assert relay.address != server.address
        assert relay.pid == server.pid
        for name in expected:
            with Client(relay.address, target.identities.files(name), Recorder()) as client:
                got[name] = client.start("true").call.code
    assert got == expected


def test_mutant_changes_the_traffic_and_the_server_keeps_working(
    target: Target, server: RunningServer
) -> None:
    files = target.identities.files("admin")
    tap = MutantTap(BY_NAME[EXIT_CODE])
    with (
        open_target(target, server, tap) as relayed,
        relayed.shared() as relay,
        Client(relay.address, files, Recorder()) as mutated,
        Client(server.address, files, Recorder()) as direct,
    ):
        job_id = mutated.must_start("sh", ["-c", "echo out; exit 3"])
        assert mutated.output(job_id) == "out\n"
        assert mutated.must_query(job_id).exit_code == 4
        assert direct.must_query(job_id).exit_code == 3
    assert tap.applied == 1


def test_changed_status_reaches_the_client_of_a_call_that_was_made(
    target: Target, server: RunningServer
) -> None:
    tap = MutantTap(BY_NAME["wire.StopJob.status.OK.next"])
    with (
        open_target(target, server, tap) as relayed,
        relayed.shared() as relay,
        Client(relay.address, target.identities.files("admin"), Recorder()) as client,
    ):
        job_id = client.must_start("sleep", ["100"])
        assert client.stop(job_id).call.code == "CANCELLED"
        assert client.must_query(job_id).status == "signaled"


def test_cancelled_stream_ends_at_the_server_too(identities: IdentityStore) -> None:
    one_stream = local_target(identities, ROOT)

    with one_stream.launch(Variant(max_streams=1)) as server:
        target = direct_target(one_stream, server)
        with (
            open_target(target, server, Tap()) as relayed,
            relayed.shared() as relay,
            Client(relay.address, identities.files("admin"), Recorder()) as client,
        ):
            job_id = client.must_start("sh", ["-c", "echo ready; exec sleep 100"])
            for _ in range(5):  # each needs the only slot that the one before it had
                stream = client.stream(job_id, StreamPlan(stop_after_bytes=1))
                assert stream.received_bytes == 6


def check(name: str, *, kept: bool, broken: bool = False) -> Check:
    """Return a check that judges nothing of the server."""

    def judge(_: object) -> Iterator[Any]:
        if broken:
            yield assumed("a set-up", true=False, got="another one")
        yield equal("a promise", kept, want=True)

    return Check(name, "Nothing.", lambda _: None, judge)


PASSES = check("fake.passes", kept=True)
FAILS = check("fake.fails", kept=False)
BREAKS = check("fake.breaks", kept=True, broken=True)


def outcome(
    target: Target,
    server: RunningServer,
    mutant: WireMutant,
    *checks: Check,
    concerned: bool = True,
) -> Outcome:
    names = frozenset({mutant.name} if concerned else ())
    usable = tuple(ControlledCheck(check, 1.0, names) for check in checks)
    lacking = dict.fromkeys(Need, "") | {Need.LIMIT_FIELDS: "no limits"}
    return prove(target, server, mutant, Controls(lacking, usable, {}, {})).outcome


def test_outcome_follows_from_the_checks(
    target: Target, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = BY_NAME[EXIT_CODE]
    split = BY_NAME["wire.StreamLogs.stream.split"]
    status = BY_NAME["wire.QueryJob.status.ABORTED.next"]
    unprovoked = BY_NAME["wire.QueryJob.status.NOT_FOUND.next"]
    limits = BY_NAME["wire.StartJobRequest.limits.pids_max.dropped"]
    equivalent = BY_NAME["wire.QueryJobResponse.message.dropped"]
    assert isinstance(plain, FieldMutant)
    assert isinstance(split, StreamMutant)
    monkeypatch.setattr(equivalents, "EQUIVALENTS", {equivalent.name: "no promise at all"})

    def of(mutant: WireMutant, *checks: Check, concerned: bool = True) -> Outcome:
        return outcome(target, server, mutant, *checks, concerned=concerned)

    assert of(plain, PASSES, BREAKS, FAILS) is Outcome.CAUGHT
    assert of(plain, PASSES, BREAKS) is Outcome.MISSED
    assert of(plain, FAILS, concerned=False) is Outcome.UNUSED
    assert of(status, FAILS, concerned=False) is Outcome.UNRETURNED
    assert of(unprovoked, FAILS, concerned=False) is Outcome.UNPROVOKED
    assert of(limits, FAILS, concerned=False) is Outcome.LACKING
    assert of(limits, PASSES) is Outcome.LACKING
    assert of(limits, FAILS) is Outcome.CAUGHT
    assert of(equivalent, PASSES) is Outcome.EQUIVALENT
    assert of(equivalent, FAILS) is Outcome.STALE
    assert of(split, PASSES) is Outcome.HARMLESS
    assert of(split, FAILS) is Outcome.FALSE_ALARM
    assert {
        Outcome.MISSED,
        Outcome.UNUSED,
        Outcome.UNPROVOKED,
        Outcome.STALE,
        Outcome.FALSE_ALARM,
    } == BAD


def test_controls_sort_checks_by_what_passes_directly_and_through_the_relay(
    target: Target, server: RunningServer
) -> None:
    rotation = next(check for check in ALL if check.name == "identity.rotation")
    literal = next(check for check in ALL if check.name == "lifecycle.literal")
    controls = control(target, server, [literal, FAILS, rotation], list(BY_NAME.values()))
    assert [each.check.name for each in controls.usable] == ["lifecycle.literal"]
    assert "wire.StartJobRequest.command_args.dropped" in controls.usable[0].mutants
    assert "wire.QueryJobRequest.job_id.dropped" not in controls.usable[0].mutants
    assert set(controls.unusable) == {"fake.fails"}
    # It judges the certificate that the server shows, which a relay's clients do not see.
    assert set(controls.unreachable) == {"identity.rotation"}


def test_command_reports_each_mutant_and_fails_for_a_missed_one(identities: IdentityStore) -> None:
    words = ["--identities", str(identities.directory), "--checks", "lifecycle.stop-twice"]
    caught = CliRunner().invoke(wire, ["-k", "QueryJobResponse.exit_code.p", *words])
    assert caught.exit_code == 0, caught.output
    assert "1 checks pass directly and through an unchanging relay" in caught.output
    assert "caught       wire.QueryJobResponse.exit_code.plus-one" in caught.output
    assert "1 mutants: 1 caught" in caught.output
    missed = CliRunner().invoke(wire, ["-k", "QueryJobResponse.log_size_bytes.p", *words])
    assert missed.exit_code == 1, missed.output
    assert "MISSED       wire.QueryJobResponse.log_size_bytes.plus-one" in missed.output


def test_list_shows_names_and_the_reasons_of_equivalents() -> None:
    listed = CliRunner().invoke(wire, ["--list", "-k", "QueryJobResponse.(message|pid).dropped"])
    pid, message = listed.output.splitlines()
    assert pid == "wire.QueryJobResponse.pid.dropped"
    assert message.startswith("wire.QueryJobResponse.message.dropped  equivalent: a text for")
