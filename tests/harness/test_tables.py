"""The tables are whole: a check without a mutant, a mutant that fits nothing, fail the build."""

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
from harness.run.selftest import CANARIES, WITHOUT_CANARY

ROOT = Path(__file__).parents[2]
NAMES = {check.name for check in ALL}


def test_every_check_has_a_mutant_that_it_catches() -> None:
    assert NAMES - {mutant.caught_by for mutant in table.ALL} == set()


def test_there_are_the_hundred_mutants_of_the_readme() -> None:
    assert len(table.ALL) >= 100
    assert [name for name, n in Counter(m.name for m in table.ALL).items() if n > 1] == []


@pytest.mark.parametrize("mutant", table.ALL, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source_and_names_checks_that_exist(mutant: Mutation) -> None:
    assert {mutant.caught_by, *mutant.also} <= NAMES
    for edit in mutant.edits:
        text = (ROOT / SERVICE / edit.file).read_text()
        broken = edited_text(mutant, edit, text)
        assert broken != text
        compile(broken, edit.file, "exec")


def test_names_are_unique_and_guarantees_are_sentences() -> None:
    assert [name for name, n in Counter(check.name for check in ALL).items() if n > 1] == []
    for check in ALL:
        assert re.fullmatch(r"[a-z]+\.[a-z0-9-]+", check.name), check.name
        assert check.guarantee.endswith("."), check.name
        assert check.cites, f"{check.name} cites no case and no requirement"


def test_each_area_has_a_canary() -> None:
    assert {check.area for check in ALL} == {*CANARIES, *WITHOUT_CANARY}
    assert set(CANARIES.values()) <= NAMES


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
def test_a_judge_never_passes_an_empty_run(check: Check) -> None:
    verdicts = {finding.verdict for finding in judge_check(check, History([]))}
    assert verdicts & {Verdict.BROKEN, Verdict.FAIL}, "nothing was done, and it passed"
