"""Where `make verify` runs, what it may skip there, and that it says so."""

import dataclasses
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.checks import ALL
from harness.cli.verify import verify
from harness.project import verify_location
from harness.project.verify import STEPS, WAYS, checks_of, chosen_steps, run_step
from harness.project.verify_location import Place, Sight, decide
from harness.record.verdict import BrokenError, Verdict
from harness.run.choice import Choice

NO_LIMITS = "this machine has no cgroup v2 at /sys/fs/cgroup"
NO_GUEST = "a guest needs qemu"

TABLE = [
    (Sight(vagrant_provider="libvirt"), Place.VAGRANT, "machine of this checkout runs (libvirt)"),
    (Sight(vagrant_provider="libvirt", disposable_host=True), Place.VAGRANT, "(libvirt)"),
    (Sight(disposable_host=True), Place.HERE, "was made to be verified in"),
    (Sight(), Place.GUEST, "a guest is booted"),
    (Sight(no_limits_because=NO_LIMITS), Place.GUEST, "no Vagrant machine"),
    (Sight(no_guest_because=NO_GUEST), Place.HERE, f"cgroup v2 machine, as root; {NO_GUEST}"),
]


@pytest.mark.parametrize(("sight", "place", "says"), TABLE)
def test_the_place_is_chosen_by_what_is_seen(sight: Sight, place: Place, says: str) -> None:
    where = decide(sight)
    assert where.place is place
    assert says in str(where)


def test_without_any_place_it_is_broken_and_every_way_out_is_told() -> None:
    with pytest.raises(BrokenError) as raised:
        decide(Sight(no_limits_because=NO_LIMITS, no_guest_because=NO_GUEST))
    assert all(why in str(raised.value) for why in (NO_LIMITS, NO_GUEST, "vagrant up"))


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ((None, 0, "2.41"), "no cgroup v2"),
        (("cpu memory pids", 0, "2.41"), "lacks io"),
        (("cpu memory io pids", 1000, "2.41"), "not for this user to write"),
        (("cpuset cpu io memory pids", 0, "2.36"), "need glibc >= 2.39, and this is glibc 2.36"),
        (("cpuset cpu io memory pids", 0, "2.39"), ""),
    ],
)
def test_a_machine_that_cannot_give_limits_says_why(
    machine: tuple[str | None, int, str],
    says: str,
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
    told = verify_location.no_limits_because()
    assert says in told
    assert bool(told) == bool(says)


def test_in_place_no_limit_may_be_skipped_but_those_that_take_an_empty_disk() -> None:
    allowed = {name for name in WAYS[Place.HERE].skips_allowed if name.startswith("local:limits.")}
    assert allowed == {
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
def test_steps_are_chosen_as_checks_are(choice: Choice, steps: int, checks: int) -> None:
    judged = checks_of(choice)
    assert len(chosen_steps(choice)) == steps
    assert (len(judged.checks()) if judged else 0) == checks


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice(keyword="no-such"), "no check fits -k 'no-such'"),
        (Choice(keyword="("), "is no regular expression"),
        (Choice(areas=("project", "typo")), "no area is called typo"),
    ],
)
def test_a_choice_of_nothing_is_refused(choice: Choice, says: str) -> None:
    with pytest.raises(BrokenError, match=re.escape(says)):
        checks_of(choice)


def test_a_place_that_there_is_not_is_refused() -> None:
    done = CliRunner().invoke(verify, ["--in", "heaven"])
    assert done.exit_code == click.UsageError.exit_code
    assert "'vagrant', 'guest', 'here'" in done.output


def test_what_make_verify_was_told_does_not_reach_the_make_of_a_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text('show:\n\t@echo "told <$(ARGS)>"\n')
    monkeypatch.setenv("MAKEFLAGS", " -- ARGS=--area\\ limits")
    monkeypatch.setenv("ARGS", "--area limits")
    command = ("make", "-f", str(makefile), "show")
    result = run_step(dataclasses.replace(STEPS[0], command=command, shows="told <>"))
    assert result.verdict is Verdict.PASS, [finding.sentence() for finding in result.findings]
