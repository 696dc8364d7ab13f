"""Where `make verify` runs, what it may skip there, and which steps it runs."""

import dataclasses
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.checks import ALL
from harness.cli.verify import verify
from harness.project import verify_location
from harness.project.steps import STEPS, run_step
from harness.project.verify import PLANS, checks_of, chosen_steps
from harness.project.verify_location import HostFacts, Location, decide
from harness.record.verdict import BrokenError, Verdict
from harness.run.choice import Choice

NO_LIMITS = "this machine has no cgroup v2 at /sys/fs/cgroup"
NO_GUEST = "a guest needs qemu"

TABLE = [
    (
        HostFacts(vagrant_provider="libvirt"),
        Location.VAGRANT,
        "machine of this checkout runs (libvirt)",
    ),
    (HostFacts(vagrant_provider="libvirt", disposable_host=True), Location.VAGRANT, "(libvirt)"),
    (HostFacts(disposable_host=True), Location.HERE, "was provisioned for running checks"),
    (HostFacts(), Location.GUEST, "a guest is booted"),
    (HostFacts(limits_obstacle=NO_LIMITS), Location.GUEST, "no Vagrant machine"),
    (HostFacts(guest_obstacle=NO_GUEST), Location.HERE, f"has cgroup v2, and root; {NO_GUEST}"),
]


@pytest.mark.parametrize(("facts", "location", "text"), TABLE)
def test_location_follows_from_the_facts(facts: HostFacts, location: Location, text: str) -> None:
    decision = decide(facts)
    assert decision.location is location
    assert text in str(decision)


def test_host_without_any_location_is_broken_and_every_obstacle_is_named() -> None:
    with pytest.raises(BrokenError) as raised:
        decide(HostFacts(limits_obstacle=NO_LIMITS, guest_obstacle=NO_GUEST))
    assert all(text in str(raised.value) for text in (NO_LIMITS, NO_GUEST, "vagrant up"))


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ((None, 0, "2.41"), "no cgroup v2"),
        (("cpu memory pids", 0, "2.41"), "lacks io"),
        (("cpu memory io pids", 1000, "2.41"), "need root, and a writable cgroup v2"),
        (
            ("cpuset cpu io memory pids", 0, "2.36"),
            "need glibc >= 2.39, and this machine has glibc 2.36",
        ),
        (("cpuset cpu io memory pids", 0, "2.39"), ""),
    ],
)
def test_limits_obstacle_names_what_the_machine_lacks(
    machine: tuple[str | None, int, str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controllers, user, libc = machine
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(controllers + "\n")
        (tmp_path / "cgroup.subtree_control").write_text("")
    monkeypatch.setattr(verify_location, "CGROUP_MOUNT", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", libc))
    obstacle = verify_location.limits_obstacle()
    assert text in obstacle
    assert bool(obstacle) == bool(text)


def test_on_this_host_only_limits_that_need_an_empty_disk_may_be_skipped() -> None:
    allowed = PLANS[Location.HERE].skips_allowed
    assert {name for name in allowed if name.startswith("local:limits.")} == {
        "local:limits.io-bytes-per-second",
        "local:limits.io-operations-per-second",
        "local:limits.io-read-bytes-per-second",
        "local:limits.io-write-operations-per-second",
        "local:limits.io-weight",
    }


@pytest.mark.parametrize(
    ("choice", "steps", "checks"),
    [
        (Choice(), len(STEPS), len(ALL)),
        (Choice(keyword=r"^project\.lint$"), 1, 0),
        (Choice(areas=("project",)), len(STEPS), 0),
        (Choice(areas=("limits",)), 0, sum(check.area == "limits" for check in ALL)),
        (Choice(areas=("project", "limits"), keyword="memory-bomb|lint"), 1, 1),
        (Choice(keyword=r"^streams\.live$"), 0, 1),
    ],
)
def test_keyword_and_area_choose_steps_like_checks(choice: Choice, steps: int, checks: int) -> None:
    judged = checks_of(choice)
    assert len(chosen_steps(choice)) == steps
    assert (len(judged.checks()) if judged else 0) == checks


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (Choice(keyword="no-such"), "no check matches -k 'no-such'"),
        (Choice(areas=("project", "typo")), "unknown area typo"),
    ],
)
def test_choice_without_checks_is_rejected(choice: Choice, text: str) -> None:
    with pytest.raises(BrokenError, match=re.escape(text)):
        checks_of(choice)


def test_unknown_location_is_rejected() -> None:
    done = CliRunner().invoke(verify, ["--in", "heaven"])
    assert done.exit_code == click.UsageError.exit_code
    assert "'vagrant', 'guest', 'here'" in done.output


def test_arguments_of_make_verify_do_not_reach_the_make_of_a_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text('show:\n\t@echo "arguments <$(ARGS)>"\n')
    monkeypatch.setenv("MAKEFLAGS", " -- ARGS=--area\\ limits")
    monkeypatch.setenv("ARGS", "--area limits")
    command = ("make", "-f", str(makefile), "show")
    result = run_step(dataclasses.replace(STEPS[0], command=command, shows="arguments <>"))
    assert result.verdict is Verdict.PASS, [finding.sentence() for finding in result.findings]
