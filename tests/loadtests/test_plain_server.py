"""Plain grpcio runs the same loads, and is no reason for a verdict on the server beside it."""

import dataclasses
from pathlib import Path

import pytest

from harness.drive.identities import IdentityStore
from harness.record.verdict import Verdict
from harness.targets.local import LocalServer, LocalTarget
from loadtests import plain_server
from loadtests.generator import Generator, Setting
from loadtests.judge import Strictness
from loadtests.metrics import Recorded, fold, read_load
from loadtests.pacer import flood, steady
from loadtests.profiles import MORE, PROFILES, Profile, Storm
from loadtests.record import save_load
from loadtests.results import PLAIN, SERVER
from loadtests.session import Point, ServerChoice, Session, fold_and_judge

KIB = 1024


def run_load(profile: Profile, store: IdentityStore, path: Path) -> Recorded:
    with LocalTarget(store, plain_server.COMMAND).launch() as server:
        Generator(profile, Setting(server, store.files("admin"), path)).run()
    return read_load(path)


@pytest.mark.parametrize(
    "profile",
    [
        Profile("lines", "", pace=steady(100, 1), streamers=4, late=1),
        Profile("live", "", message_bytes=64 * KIB, pace=flood(64), streamers=2),
        Profile("stampede", "", message_bytes=64 * KIB, pace=flood(64), streamers=4, late=4),
        # No multiple of a message, so that the last one is smaller.
        Profile("replay", "", message_bytes=100 * KIB, pace=flood(33), streamers=2, replay=True),
    ],
    ids=lambda profile: profile.name,
)
def test_every_reader_gets_every_byte(
    profile: Profile, store: IdentityStore, tmp_path: Path
) -> None:
    load = run_load(profile, store, tmp_path).load
    ends = [(end.code, end.wrong, end.checked_bytes) for end in load.streams]
    assert ends == [("OK", "", profile.size_bytes)] * profile.streamers
    assert load.exit_code == 0


@pytest.mark.parametrize("storm", [Storm(20, 1, 4), Storm(0, 1, 4)], ids=["planned", "closed"])
def test_every_start_and_stop_succeeds(storm: Storm, store: IdentityStore, tmp_path: Path) -> None:
    found = run_load(Profile("storm", "", storm=storm), store, tmp_path)
    assert [each.failures for each in found.load.processes] == [{}]
    assert len(found.calls) >= 20
    figures = fold(found)
    assert (figures.storm.stop_p50_ms is None) == storm.is_closed
    # Processor time of jobs that live for a millisecond is the jobs', not another program's.
    jobs_s = found.load.samples[-1].jobs_cpu_s - found.load.samples[0].jobs_cpu_s
    assert jobs_s > 0


def test_load_is_run_on_plain_grpcio_right_after_the_server(
    store: IdentityStore, tmp_path: Path
) -> None:
    profile = Profile(
        "starts", "", storm=Storm(0, 1, 2), beside_plain=True, limits={"start_p50_ms": 0.0}
    )
    lines = Profile("lines", "", pace=steady(50, 1))
    shown: list[str] = []
    session = Session(
        ServerChoice(),
        store,
        tmp_path,
        Strictness(noisy=True),
        lambda each: shown.append(each.title),
    )
    session.run_all([Point(profile, {"round": "1"}), Point(lines)])
    assert shown == ["starts round=1", f"starts round=1 {SERVER}={PLAIN}", "lines"]
    ours, plain, beside = session.results
    assert ours.plain == plain.figures
    assert ours.shares()["starts_achieved_per_s"] > 0
    assert (plain.shares(), beside.shares()) == ({}, {})
    # A profile's limits, and the rate to reach, are for the server.
    yardstick = read_load(tmp_path / plain.directory).load.profile
    assert (yardstick.limits, yardstick.floor.rate_share) == ({}, 0.0)
    assert yardstick.storm == profile.storm
    assert ours.verdict in {Verdict.FAIL, Verdict.SKIPPED}
    assert plain.verdict in {Verdict.PASS, Verdict.SKIPPED}


def test_fault_of_plain_grpcio_is_not_the_servers(
    server: LocalServer, store: IdentityStore, tmp_path: Path
) -> None:
    profile = Profile("replay", "", message_bytes=64 * KIB, pace=flood(4), replay=True)
    setting = Setting(server, store.files("admin"), tmp_path, labels={SERVER: PLAIN})
    load = Generator(profile, setting).run()
    wrong = tuple(dataclasses.replace(end, wrong="at message 1") for end in load.streams)
    save_load(dataclasses.replace(load, streams=wrong), tmp_path)
    _, findings, _ = fold_and_judge(tmp_path, Strictness())
    assert [each.verdict for each in findings if each.got == "streamer 0 at message 1"] == [
        Verdict.BROKEN
    ]


def test_only_loads_that_plain_grpcio_can_run_are_run_beside_it() -> None:
    """It resumes nothing, and holds the thread of a reader that leaves."""
    for profile in (*PROFILES, *MORE):
        if profile.beside_plain:
            assert not profile.slow
            assert not profile.cut_every_bytes
