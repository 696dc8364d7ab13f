"""The tables are whole: a check without a mutant, a mutant that fits nothing, fail the build."""

import re
from collections import Counter
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.checks.check import Check
from harness.history import History
from harness.mutants import table
from harness.mutants.mutant import SERVICE, Mutant
from harness.selftest import CANARIES, WITHOUT_CANARY
from harness.session import judge
from harness.verdict import Verdict

ROOT = Path(__file__).parents[2]
NAMES = {check.name for check in ALL}


def test_every_check_has_a_mutant_that_it_catches() -> None:
    assert NAMES - {mutant.caught_by for mutant in table.ALL} == set()


def test_there_are_the_hundred_mutants_of_the_readme() -> None:
    assert len(table.ALL) >= 100
    assert [name for name, n in Counter(m.name for m in table.ALL).items() if n > 1] == []


@pytest.mark.parametrize("mutant", table.ALL, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source_and_names_checks_that_exist(mutant: Mutant) -> None:
    assert {mutant.caught_by, *mutant.also} <= NAMES
    for file, old, new in mutant.edits:
        text = (ROOT / SERVICE / file).read_text()
        assert text.count(old) == 1, f"{file}: {old!r}"
        broken = text.replace(old, new)
        assert broken != text
        compile(broken, file, "exec")


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
    verdicts = {finding.verdict for finding in judge(check, History([]))}
    assert verdicts & {Verdict.BROKEN, Verdict.FAIL}, "nothing was done, and it passed"
