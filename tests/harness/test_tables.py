"""The tables are complete: each check has a mutant, each mutant fits the source."""

import re
from collections import Counter
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.checks.check import Check
from harness.mutation import check_mutants as table
from harness.mutation.mutation import SERVICE, Mutation, edited_text
from harness.record.history import History
from harness.record.verdict import Verdict
from harness.run.judging import judge_check
from harness.run.selftest import CONTROL_CHECKS, WITHOUT_CONTROL_CHECK

ROOT = Path(__file__).parents[2]
NAMES = {check.name for check in ALL}


def test_every_check_catches_a_mutant() -> None:
    assert NAMES - {mutant.caught_by for mutant in table.ALL} == set()


def test_at_least_100_mutants_with_unique_names() -> None:
    assert len(table.ALL) >= 100
    assert [name for name, n in Counter(m.name for m in table.ALL).items() if n > 1] == []


@pytest.mark.parametrize("mutant", table.ALL, ids=lambda mutant: mutant.name)
def test_mutant_fits_the_source_and_names_existing_checks(mutant: Mutation) -> None:
    assert {mutant.caught_by, *mutant.also} <= NAMES
    for edit in mutant.edits:
        text = (ROOT / SERVICE / edit.file).read_text()
        broken = edited_text(mutant, edit, text)
        assert broken != text
        compile(broken, edit.file, "exec")


def test_check_names_are_unique_and_guarantees_are_sentences() -> None:
    assert [name for name, n in Counter(check.name for check in ALL).items() if n > 1] == []
    for check in ALL:
        assert re.fullmatch(r"[a-z]+\.[a-z0-9-]+", check.name), check.name
        assert check.guarantee.endswith("."), check.name
        assert check.cites, f"{check.name} cites no case and no requirement"


def test_each_area_has_a_control_check_or_an_exemption() -> None:
    assert {check.area for check in ALL} == {*CONTROL_CHECKS, *WITHOUT_CONTROL_CHECK}
    assert set(CONTROL_CHECKS.values()) <= NAMES


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
def test_judge_of_an_empty_run_does_not_pass(check: Check) -> None:
    verdicts = {finding.verdict for finding in judge_check(check, History([]))}
    assert verdicts & {Verdict.BROKEN, Verdict.FAIL}, "a run without records passed"
