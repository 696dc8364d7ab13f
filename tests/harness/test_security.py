"""The table of security cases is whole, and the document says what the rows say."""

import re
from pathlib import Path

import pytest

from harness.checks import ALL
from harness.mutation import check_mutants as mutants
from harness.project.security_table import (
    DOCUMENT,
    NOT_RUN,
    OBSERVED_COLUMN,
    ROWS,
    WITHIN,
    Row,
    differing,
    documented,
    observed,
    table,
    with_table,
)
from harness.record.results import CheckResult
from harness.record.verdict import BrokenError, Finding, Verdict
from tests.mutants.table import MUTANTS as TESTS_MUTANTS

ROOT = Path(__file__).parents[2]
CHECKS = {check.name: check for check in ALL}
CAUGHT_BY = {mutant.name: mutant.caught_by for mutant in mutants.ALL}
CAUGHT_BY_A_TEST = {mutant.name: mutant.caught_by for mutant in TESTS_MUTANTS}
UNPROVEN_MAX = 14  # a new row has a mutant, or is a reason to say it in docs/security.md
CATALOGUE = {str(number) for number in (*range(1, 31), *range(79, 83))}


def without_observed(line: str) -> list[str]:
    cells = line.split("|")
    return cells[:OBSERVED_COLUMN] + cells[OBSERVED_COLUMN + 1 :]


def test_the_document_has_the_rows_of_the_table_and_something_observed_for_each() -> None:
    lines = documented((ROOT / DOCUMENT).read_text())
    assert list(map(without_observed, lines)) == list(map(without_observed, table([])))
    for line in lines[2:]:
        seen = line.split("|")[OBSERVED_COLUMN].strip()
        assert seen != NOT_RUN, line
        assert not re.match("FAIL|BROKEN|SKIPPED", seen), line


def test_every_case_of_the_catalogue_has_a_row() -> None:
    assert {row.case for row in ROWS} >= CATALOGUE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.case}-{row.what}")
def test_a_row_names_what_judges_it_and_mutants_that_this_catches(row: Row) -> None:
    if row.is_test:
        path, _, name = row.judge.partition("::")
        assert f"def {name}" in (ROOT / path).read_text()
    else:
        assert row.judge in CHECKS
    caught_by = CAUGHT_BY_A_TEST if row.is_test else CAUGHT_BY
    # A test's mutant may name one of its parameters.
    judges = {caught_by.get(name, "").partition("[")[0] for name in row.mutants}
    assert judges <= {row.judge}
    assert bool(row.mutants) != bool(row.unproven), "either a mutant, or why there is none"
    assert "|" not in row.what + row.expected


def test_a_mutant_that_a_row_names_is_one_of_the_very_checks_or_tests_that_judge_it() -> None:
    named = {name for row in ROWS for name in row.mutants}
    assert named <= {*CAUGHT_BY, *CAUGHT_BY_A_TEST}
    without = [row.what for row in ROWS if not row.mutants]
    assert len(without) <= UNPROVEN_MAX, without


def test_what_a_run_saw_is_held_against_what_is_told() -> None:
    told = ["| 1 | a | refused | OK | `x` | m |", "| 2 | b | refused | OK | `x` | m |"]
    assert differing(told, told) == []
    seen = [told[0], told[1].replace("OK", "INTERNAL")]
    assert differing(told, seen) == [f"seen:  {seen[1]}"]
    assert differing(told, [told[0], told[1].replace("OK", NOT_RUN)]) == []
    assert differing(told, [told[0], told[1].replace("OK", "SKIPPED: no wing")]) == []
    assert differing(told, [told[0]]) == [f"told:  {told[1]}"]
    assert differing([told[0]], told) == [f"seen:  {told[1]}"]


def result(verdict: Verdict, *findings: Finding) -> CheckResult:
    return CheckResult("local", "identity.roles", "", verdict, findings, 1.0)


@pytest.mark.parametrize(
    ("findings", "seen"),
    [
        ([Finding(Verdict.PASS, "a user may not start", "PERMISSION_DENIED: no")] * 2,
         "PERMISSION_DENIED"),
        ([Finding(Verdict.PASS, "a user may not list", "refused: SSLEOFError")], "refused"),
        ([Finding(Verdict.PASS, "a user may not stop", "0.125")], WITHIN),
        ([Finding(Verdict.PASS, "a user may not stop", "a|b\nc")], "a/b c"),
        ([Finding(Verdict.FAIL, "a user may not stop", "OK")], "FAIL: OK"),
    ],
)  # fmt: skip
def test_what_was_observed_is_what_the_findings_got(findings: list[Finding], seen: str) -> None:
    row = Row("23", "", "", "identity.roles", "a user may not")
    assert observed(row, [result(Verdict.PASS, *findings)]) == seen


def test_what_was_not_judged_is_not_passed_off_as_observed() -> None:
    row = Row("23", "", "", "identity.roles", "a user may not")
    assert observed(row, []) == NOT_RUN
    skipped = result(Verdict.SKIPPED, Finding(Verdict.SKIPPED, "the target lacks a wing"))
    assert observed(row, [skipped]) == "SKIPPED: the target lacks a wing"
    with pytest.raises(BrokenError, match="no finding"):
        observed(row, [result(Verdict.PASS, Finding(Verdict.PASS, "something else"))])


def test_a_document_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(BrokenError, match="lacks the lines"):
        with_table("no table here", [])
