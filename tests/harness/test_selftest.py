"""What `selftest` says at its end: which mutants were not caught, why, and how to repeat each."""

import re
import shlex
from collections.abc import Iterator, Sequence

import pytest
from click.testing import CliRunner

from harness.cli import selftest as command
from harness.mutation import check_mutants as table
from harness.mutation.mutation import Mutation
from harness.record.verdict import BrokenError, Verdict
from harness.run.selftest import MutantProof


def outcome(mutant: Mutation) -> MutantProof:
    """Return a proof as of a run in which three mutants are not caught, each for another reason."""
    if mutant is table.LOCAL[0]:
        return MutantProof(mutant, Verdict.PASS, "every promise kept")
    if mutant is table.LOCAL[1]:
        return MutantProof(mutant, Verdict.FAIL, "noticed", ("identity.roles BROKEN: no server",))
    if mutant is table.GUEST[0]:
        return MutantProof(mutant, Verdict.BROKEN, "the guest died")
    return MutantProof(mutant, Verdict.FAIL, "noticed")


def run_with(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, fails_after: int | None = None
) -> tuple[int, list[str]]:
    """Return the exit code and the lines of a self-test whose proofs are `outcome`s."""

    def prove(
        local: Sequence[Mutation], guest: Sequence[Mutation], _on_start: object
    ) -> Iterator[MutantProof]:
        for number, mutant in enumerate((*local, *guest)):
            if number == fails_after:
                raise BrokenError("no guest can be booted")
            yield outcome(mutant)

    monkeypatch.setattr(command, "_prove", prove)
    done = CliRunner().invoke(command.selftest, arguments)
    return done.exit_code, done.output.splitlines()


def test_mutants_that_are_not_caught_end_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = run_with(monkeypatch)
    assert code == 1
    count = len(table.LOCAL) + len(table.GUEST)
    [first] = [number for number, line in enumerate(lines) if line.startswith(f"{count - 3} of ")]
    end = "\n".join(lines[first + 1 :])
    assert "not caught: 3" in end
    for mutant, reason in (
        (table.LOCAL[0], f"{table.LOCAL[0].caught_by} is PASS: every promise kept"),
        (table.LOCAL[1], "control check identity.roles BROKEN: no server"),
        (table.GUEST[0], f"{table.GUEST[0].caught_by} is BROKEN: the guest died"),
    ):
        assert f"  {mutant.caught_by}: a server that {mutant.name}\n      {reason}\n" in end


def test_repeat_command_of_each_mutant_chooses_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, lines = run_with(monkeypatch)
    repeats = [line.partition("repeat: ")[2] for line in lines if "repeat: " in line]
    everyone = (*table.LOCAL, *table.GUEST)
    chosen = []
    for repeat in repeats:
        words = shlex.split(repeat)
        assert words[-3:-1] == ["selftest", "-k"]
        pattern = words[-1]
        chosen.append([each for each in everyone if pattern_matches(pattern, each)])
    assert chosen == [[table.LOCAL[0]], [table.LOCAL[1]], [table.GUEST[0]]]


def pattern_matches(pattern: str, mutant: Mutation) -> bool:
    return re.search(pattern, f"{mutant.caught_by} {mutant.name}") is not None


def test_pattern_of_a_mutant_matches_no_other() -> None:
    everyone = (*table.LOCAL, *table.GUEST)
    wrong = {
        mutant.name: chosen
        for mutant in everyone
        if (
            chosen := [each for each in everyone if pattern_matches(command._pattern(mutant), each)]
        )
        != [mutant]
    }
    assert wrong == {}


def test_harness_that_fails_still_lists_what_was_not_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, lines = run_with(monkeypatch, fails_after=2)
    assert "not caught: 2" in lines


def test_nothing_follows_the_count_if_all_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    share = f"{len(table.LOCAL)}/{len(table.LOCAL)}"  # the last of as many shares as mutants
    code, lines = run_with(monkeypatch, "--where", "local", "--share", share)
    assert code == 0
    assert lines[-2].startswith("1 of 1 mutants caught")
    assert lines[-1].endswith("mutants are in other shares")
